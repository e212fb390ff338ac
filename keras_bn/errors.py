"""The errors of the package."""


class KerasBNError(ValueError):
    """The input cannot be used. The message says what was wrong, where, and what to do.

    Nothing has been changed: no weight moved, no file written.
    """


class CheckFailedError(KerasBNError):
    """A check ran and its answer is no: a SavedModel is not in inference mode, a result is out of tolerance.

    The command line exits with 1 for this error, and with 2 for every other.
    """
