"""What runs in a worker, whatever the worker runs on: decode, forward, encode, time limits, events."""
