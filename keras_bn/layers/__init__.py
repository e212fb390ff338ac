"""The layer and its variants."""
