"""Calls from the program itself: Python objects to the models and back, with no HTTP between."""
