"""Measuring an exported model on this machine, and the settings for a server that follow."""
