"""Runs of several seeds and methods, compared."""
