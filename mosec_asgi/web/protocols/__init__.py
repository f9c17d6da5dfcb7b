"""The protocols of clients: each turns requests into calls, and outcomes into answers."""
