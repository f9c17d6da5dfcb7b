"""The models: their workers run in processes of their own."""

import asyncio
import dataclasses
import struct
from collections.abc import AsyncIterator
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from mosec_asgi import SSEWorker, ValidationError
from mosec_asgi.mixin import File, MultipartMixin, PydanticMixin


class Answer(TypedDict):
    """How long it takes to read a text."""

    seconds: float


class Read(PydanticMixin):
    """Say how long it takes to read a text."""

    words_a_minute = 240

    def forward(self, data: list[str]) -> list[Answer]:
        """Return the seconds for each text of a batch."""
        return [{"seconds": round(len(text.split()) * 60 / self.words_a_minute, 2)} for text in data]


@dataclasses.dataclass
class Picture:
    """A form with an image."""

    image: File
    title: Annotated[str, Field(max_length=100)] = "Untitled"


class Describe(MultipartMixin, SSEWorker):
    """Describe an image, word by word; the answer is a stream of plain text."""

    resp_mime_type = "text/plain; charset=utf-8"

    async def forward(self, data: Picture) -> AsyncIterator[str]:
        """Yield the words."""
        content = data.image.data
        if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) < 24:
            raise ValidationError("the image is no PNG")
        width, height = struct.unpack(">II", content[16:24])
        for word in f"{data.title}: an image of {width} by {height} pixels in {len(content)} bytes.".split():
            yield f"{word} "
            await asyncio.sleep(0.1)
