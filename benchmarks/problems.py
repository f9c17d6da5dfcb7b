"""The one error that ends a benchmark."""


class BenchmarkError(Exception):
    """The comparison cannot go on, or its numbers would mean nothing; the text says why and what to do."""
