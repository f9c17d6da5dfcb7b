"""Waiting and grouping: tasks in, batches to workers, answers out."""
