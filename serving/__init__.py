"""Serving a SavedModel: TF Serving's configuration, a client, and a local server of the same protocol."""

from serving.errors import ServingError

__all__ = ["ServingError"]
