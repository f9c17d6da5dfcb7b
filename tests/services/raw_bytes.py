"""Bytes in, an image out: a worker with a format of its own."""

from __future__ import annotations

from mosec import DecodingError, Server, Worker

PNG = b"\x89PNG\r\n\x1a\n"


class Paint(Worker):
    resp_mime_type = "image/png"

    def deserialize(self, data: bytes) -> bytes:
        if data == b"no picture":
            raise DecodingError("not a picture")
        return bytes(data)

    def forward(self, data: bytes) -> bytes:
        return data[::-1]

    def serialize(self, data: bytes) -> bytes:
        return PNG + data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Paint)
    server.run()
