"""Workers that take the request and reply; a spawned process imports them by name."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from mosec_asgi import ContinuousWorker, Reply, SSEWorker, Worker
from mosec_asgi.mixin import File, Form, MultipartMixin, PydanticMixin


def told(worker: Worker, index: int = 0) -> dict[str, Any]:
    """Return what a worker is told of a request, as JSON has it."""
    request = worker.request(index)
    return {
        "id": request.id,
        "route": request.route,
        "method": request.method,
        "color": request.headers.get("X-Color"),
        "query": request.query,
        "path": dict(request.path_params),
        "traceparent": request.traceparent,
        "state": request.state,
    }


class Plain(Worker):
    def forward(self, data: Any) -> Any:
        return data


class Tells(Worker):
    takes_request = True

    def deserialize(self, data: bytes) -> Any:
        return [super().deserialize(data), self.request().id]

    def serialize(self, data: Any) -> bytes:
        return super().serialize({**data, "serialized": self.request().id})

    def forward(self, data: Any) -> Any:
        return {"data": data, **told(self)}


class TellsLast(Worker):
    """Stands behind another stage."""

    takes_request = True

    def forward(self, data: Any) -> Any:
        return {"data": data, **told(self)}


class TellsOfNothing(Worker):
    """Does not say that it takes the request, and asks."""

    def forward(self, data: Any) -> Any:
        try:
            return self.request().id
        except RuntimeError as error:
            return str(error)


class TellsBatch(Worker):
    takes_request = True

    def deserialize(self, data: bytes) -> Any:
        return [super().deserialize(data), self.request().id]

    def serialize(self, data: Any) -> bytes:
        return super().serialize([*data, self.request().id])

    def forward(self, data: list[Any]) -> list[Any]:
        if any(item[0] == "bad" for item in data) and len(data) > 1:
            # Parts of the batch are run again.
            raise ValueError("not this batch")
        return [[item, self.request(index).id, len(data)] for index, item in enumerate(data)]


class TellsAsync(Worker):
    takes_request = True

    async def forward(self, data: list[Any]) -> list[Any]:
        await asyncio.sleep(0)
        return [[item, self.request(index).id] for index, item in enumerate(data)]


class Streams(SSEWorker):
    takes_request = True
    runs = 0

    def forward(self, data: Any) -> Iterator[str]:
        self.runs += 1
        yield f"{self.request().id} {self.runs}" if data == "count" else self.request().id
        yield self.request().headers.get("x-color", "none")


class StreamsAsync(SSEWorker):
    takes_request = True

    async def forward(self, data: Any) -> AsyncIterator[str]:
        yield self.request().id
        await asyncio.sleep(0)
        yield self.request().headers.get("x-color", "none")


class Slots(ContinuousWorker):
    takes_request = True
    example = 1

    def __init__(self) -> None:
        self.open: dict[int, list[str]] = {}
        self.next = 0

    def admit(self, item: Any) -> Hashable:
        self.next += 1
        request = self.request()
        self.open[self.next] = [request.headers.get("x-color", "none"), request.id]
        return self.next

    def step(self) -> Iterable[tuple[Hashable, Any]]:
        for slot, words in list(self.open.items()):
            yield slot, words.pop() if words else self.FINISHED

    def evict(self, slot: Any) -> None:
        del self.open[slot]


class Warm(Worker):
    """Asks for the request of its example as well."""

    takes_request = True
    example = 1

    def __init__(self) -> None:
        self.ids: list[str] = []

    def forward(self, data: Any) -> Any:
        self.ids.append(self.request().id)
        return self.ids


class Replies(Worker):
    """Replies as it is told: a value, a status and headers."""

    def forward(self, data: Any) -> Any:
        return replied(data)


class RepliesBatch(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return [replied(item) for item in data]


class RepliesStream(SSEWorker):
    def forward(self, data: Any) -> Iterator[Any]:
        yield "first"
        yield Reply("second")


def replied(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    headers = data.get("headers", {})
    return Reply(
        data.get("value"),
        data.get("status", 200),
        headers if isinstance(headers, dict) else [tuple(pair) for pair in headers],
    )


class Upload(MultipartMixin, Worker):
    """Tells what it was sent."""

    def forward(self, data: Form) -> Any:
        return [
            (name, value)
            if isinstance(value, str)
            else (name, value.filename, value.content_type, len(value.data), sum(value.data))
            for name, value in data.parts
        ]


class SmallUpload(Upload):
    max_part_size = 64 * 1024
    form_files = ("image",)
    form_fields = ("caption",)


@dataclasses.dataclass
class Photo:
    """A photo, and what is to be done with it."""

    image: File
    caption: Annotated[str, Field(max_length=10)] = "none"
    copies: int = 1
    more: list[File] = dataclasses.field(default_factory=list)


class Attached(TypedDict):
    attachment: File


class Order(BaseModel):
    buyer: str = Field(alias="the-buyer")
    tags: list[str] | None = None
    gift: bool = False


class UploadPhoto(MultipartMixin, Worker):
    def forward(self, data: Photo) -> Any:
        assert type(data) is Photo
        return [data.image.filename, data.caption, data.copies, [file.filename for file in data.more]]


class UploadAttached(MultipartMixin, Worker):
    def forward(self, data: Attached) -> int:
        return len(data["attachment"].data)


class TakeOrders(MultipartMixin, PydanticMixin):
    """A batch, answered by pydantic."""

    def forward(self, data: list[Order]) -> list[Order]:
        assert all(type(order) is Order for order in data)
        return data


class TakesNoForm(MultipartMixin, Worker):
    def forward(self, data: dict[str, str]) -> Any:
        return data
