"""Streams of text, pushed by index: one at a time, and a batch behind an earlier stage."""

from mosec import ClientError, Server, SSEWorker, ValidationError, Worker


class Preprocess(Worker):
    def forward(self, data):
        if not isinstance(data.get("events"), list):
            raise ValidationError("'events' must be a list")
        return data["events"]


class One(SSEWorker):
    def forward(self, data):
        if not isinstance(data, dict):
            raise ValidationError("not an object")
        for text in data["events"]:
            if text == "fail":
                raise ClientError("asked to fail\nin the middle")
            if text == "bug":
                raise KeyError("secret")
            self.send_stream_event(text)
        return "ignored"


class Many(SSEWorker):
    def forward(self, data: list[list[str]]):
        for place in range(max(map(len, data))):
            for index, texts in enumerate(data):
                if place < len(texts):
                    self.send_stream_event(texts[place], index=index)
        return ["ignored"] * len(data)


class Middle(SSEWorker):
    def forward(self, data):
        for text in data["events"]:
            if text == "bug":
                raise KeyError("secret")
            self.send_stream_event(f"before {text}")
        return data


class MiddleBatch(SSEWorker):
    def forward(self, data: list):
        for index, item in enumerate(data):
            for text in item["events"]:
                self.send_stream_event(f"before {text}", index=index)
        return data


class Last(Worker):
    def forward(self, data):
        return len(data["events"])


if __name__ == "__main__":
    server = Server()
    server.append_worker(One, route="/one")
    server.append_worker(Preprocess, route="/many")
    server.append_worker(Many, max_batch_size=8, max_wait_time=50, route="/many")
    server.append_worker(Middle, route="/middle")
    server.append_worker(One, route="/middle")
    server.append_worker(MiddleBatch, max_batch_size=8, max_wait_time=50, route="/middle-batch")
    server.append_worker(One, route="/middle-batch")
    server.append_worker(Middle, route="/no-stream")
    server.append_worker(Last, route="/no-stream")
    server.run()
