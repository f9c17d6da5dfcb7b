"""Forms, in processes and in threads."""

from __future__ import annotations

from typing import Any

import pytest
import request_workers as workers
from test_request import BOTH, client_of

from mosec_asgi import Server
from mosec_asgi.mixin import File, Form

BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}


def part(head: str, data: bytes = b"x") -> bytes:
    return f"--b\r\ncontent-disposition: {head}\r\n\r\n".encode() + data + b"\r\n"


def test_a_form_has_its_last_values_by_name_and_all_of_them() -> None:
    one, two = File("a", "", b"1"), File("b", "", b"2")
    form = Form([("f", one), ("t", "1"), ("f", two), ("t", "2")])
    assert (form.fields, form.files, form.all("f"), form.all("t")) == ({"t": "2"}, {"f": two}, [one, two], ["1", "2"])


@BOTH
async def test_forward_gets_fields_and_files(executor: str) -> None:
    async with client_of(workers.Upload, workers.Plain, executor=executor) as (client, server):
        answer = await client.post(
            "/inference",
            data={"caption": "ein Bär"},
            files={"image": ("bär.png", bytes(range(256)), "image/png"), "large": ("l", b"\r\n--" * 100_000)},
        )
        assert answer.json() == [
            ["caption", "ein Bär"],
            ["image", "bär.png", "image/png", 256, sum(range(256))],
            ["large", "l", "application/octet-stream", 400_000, sum(b"\r\n--") * 100_000],
        ]
        answer = await client.post("/inference", data={"caption": "a b&c", "empty": ""})
        assert answer.json() == [["caption", "a b&c"], ["empty", ""]]
        assert await server.infer(Form([("a", "b")])) == [("a", "b")]


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("../../x", "x"), ("C:\\temp\\x.png", "x.png"), ("/etc/passwd", "passwd"), ("a/..", ""), ("a\x01b", "ab")],
)
async def test_a_file_name_is_no_path(sent: str, seen: str) -> None:
    async with client_of(workers.Upload) as (client, _):
        body = part(f'form-data; name="f"; filename="{sent}"') + b"--b--\r\n"
        answer = await client.post("/inference", content=body, headers=BOUNDARY)
        assert answer.json()[0][1] == seen


async def test_a_field_without_a_chosen_file_has_none() -> None:
    async with client_of(workers.Upload) as (client, _):
        body = part('form-data; name="f"; filename=""', b"") + b"--b--\r\n"
        assert (await client.post("/inference", content=body, headers=BOUNDARY)).json() == []


NAMED = 'form-data; name="f"'


@BOTH
@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (part(NAMED), {"content-type": "multipart/form-data"}, 400, "names no boundary"),
        (part(NAMED), {"content-type": "application/json"}, 415, "must be multipart/form-data or application/x-www"),
        (part(NAMED), {"content-type": "multipart/form-data; boundary=" + 300 * "b"}, 400, "Boundary length"),
        (part(NAMED) * 10_000 + b"--b--\r\n", BOUNDARY, 413, "more than 1000 parts"),
        (part(NAMED, bytes(65 * 1024)) + b"--b--\r\n", BOUNDARY, 413, "a part is larger than 65536 bytes"),
        (part(f'form-data; name="{"n" * 256}"') + b"--b--\r\n", BOUNDARY, 413, "longer than 255 bytes"),
        (part(f'{NAMED}; filename="{"n" * 256}"') + b"--b--\r\n", BOUNDARY, 413, "longer than 255 bytes"),
        (part(NAMED)[:-4], BOUNDARY, 400, "ends before its last boundary"),
        (part(NAMED), BOUNDARY, 400, "ends before its last boundary"),
        (b"no form at all", BOUNDARY, 400, "the body is no multipart/form-data"),
        (part("form-data") + b"--b--\r\n", BOUNDARY, 400, "a part of the form has no name"),
        (part(NAMED, b"\xff") + b"--b--\r\n", BOUNDARY, 400, "the field 'f' of the form is not UTF-8"),
        (b"a=1&" * 1000, {"content-type": "application/x-www-form-urlencoded"}, 413, "more than 1000 fields"),
        (b"a=%ff", {"content-type": "application/x-www-form-urlencoded"}, 400, "the form is not UTF-8"),
    ],
)
async def test_what_is_no_form_is_refused_and_says_why(
    executor: str, body: bytes, headers: dict[str, str], status: int, text: str
) -> None:
    async with client_of(workers.SmallUpload, executor=executor) as (client, _):
        answer = await client.post("/inference", content=body, headers=headers)
        assert (answer.status_code, text in answer.text) == (status, True), answer.text
        good = await client.post("/inference", data={"a": "b"})
        assert good.json() == [["a", "b"]]


def test_the_document_shows_a_file_picker() -> None:
    server = Server()
    server.append_worker(workers.SmallUpload)
    body: dict[str, Any] = server.openapi()["paths"]["/inference"]["post"]["requestBody"]
    assert body["content"] == {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "format": "binary"}, "caption": {"type": "string"}},
            }
        }
    }
