"""`server.run()`: the port, the signals, the exit code; the dry run."""
