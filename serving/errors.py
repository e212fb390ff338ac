"""The base error of the serving tools."""


class ServingError(ValueError):
    """Something went wrong between a client and a model server; subclasses say what."""
