"""gRPC: how its calls come to the endpoints of a protocol, on a port of their own. Needs the extra `grpc`."""
