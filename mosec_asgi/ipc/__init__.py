"""Bytes between the event loop and the worker processes."""
