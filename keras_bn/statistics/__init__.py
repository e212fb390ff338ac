"""Moments of batches, moving averages, moments of data sets."""
