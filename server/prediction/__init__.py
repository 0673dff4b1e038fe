"""Prediction with a trained model: in Python, from files, for the service."""
