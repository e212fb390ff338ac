"""Rewriting Keras models around batch normalization."""
