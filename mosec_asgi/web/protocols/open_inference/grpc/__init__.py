"""The open inference protocol over gRPC: its messages, and the endpoints of its service. Needs the extra `grpc`."""
