"""The open inference protocol (KServe's and Triton's "v2"): tensors in, tensors out.

What a request and its answer are is said here once, for each way in which they come: `datatypes`, `tensors`,
`description` and `inference` know neither HTTP nor gRPC.
"""
