"""The one error class of the package."""


class KerasBNError(ValueError):
    """Something the caller can mend: the message says what was wrong, where, and what to do.

    Raised before anything is changed: no weight moved, no file written.
    """
