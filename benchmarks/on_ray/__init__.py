"""This package beside Ray Serve: `make ray`."""
