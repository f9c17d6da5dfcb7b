"""The version, and how the server names itself."""

__version__ = "0.1.0"
SERVER = f"mosec-asgi/{__version__}"
