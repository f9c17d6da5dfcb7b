"""Forms, in processes and in threads."""

from __future__ import annotations

import itertools
import json
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import request_workers as workers
from harness import DEADLINE, Program, serving
from test_request import BOTH, client_of

from mosec_asgi import Server, ValidationError
from mosec_asgi.mixin import File, Form

PNG = ("a.png", b"x", "image/png")
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


# -- real servers ------------------------------------------------------------------------------------------------------

GIGABYTE = 1 << 30
MEGABYTE = 1 << 20
UPLOAD = """
from request_workers import UploadPhoto
server.append_worker(UploadPhoto)
"""
SERVERS = pytest.mark.parametrize("by", ["run", "uvicorn", "mounted"])


def peak(program: Program) -> int:
    """Return the most bytes of memory that the server and its workers have had, all together."""
    found = [re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()) for pid in program.members()]
    return sum(int(each[1]) * 1024 for each in found if each)


def sent_until_answered(program: Program, path: str, *, declared: bool) -> tuple[bytes, int]:
    """Send a form with a part of a gigabyte until there is an answer; return that and how many bytes were sent."""
    begin = part('form-data; name="image"; filename="a.png"', b"")[:-2]
    size = len(begin) + GIGABYTE + len(b"\r\n--b--\r\n")
    length = f"content-length: {size}" if declared else "transfer-encoding: chunked"
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {BOUNDARY['content-type']}\r\n{length}\r\n\r\n"
    piece, sent = bytes(MEGABYTE), 0
    with socket.create_connection(("127.0.0.1", program.port), timeout=DEADLINE) as connection:
        connection.sendall(head.encode())
        for data in itertools.chain([begin], itertools.repeat(piece, GIGABYTE // MEGABYTE)):
            connection.sendall(data if declared else b"%x\r\n%b\r\n" % (len(data), data))
            sent += len(data)
            if select.select([connection], [], [], 0)[0]:
                break
        return connection.recv(65536), sent


@SERVERS
@pytest.mark.parametrize("declared", [True, False])
def test_a_part_of_a_gigabyte_is_answered_413_before_it_is_there_and_takes_no_memory(
    by: str, declared: bool, tmp_path: Path
) -> None:
    with serving(tmp_path, UPLOAD, by=by) as program:
        path = "/ml/inference" if by == "mounted" else "/inference"
        good = program.client.post("inference", files={"image": PNG})
        before = peak(program)
        for _ in range(3):
            answer, sent = sent_until_answered(program, path, declared=declared)
            assert answer.startswith(b"HTTP/1.1 413 "), answer
            assert sent < GIGABYTE / 4
        assert peak(program) - before < 100 * MEGABYTE
        assert program.client.post("inference", files={"image": PNG}).json() == good.json()


@SERVERS
def test_a_client_that_sends_all_of_a_gigabyte_gets_its_answer(by: str, tmp_path: Path) -> None:
    def body() -> Iterator[bytes]:
        yield part('form-data; name="image"; filename="a.png"', b"")[:-2]
        yield from itertools.repeat(bytes(MEGABYTE), GIGABYTE // MEGABYTE)

    with serving(tmp_path, UPLOAD, by=by) as program:
        before = peak(program)
        assert program.client.post("inference", content=body(), headers=BOUNDARY).status_code == 413
        assert peak(program) - before < 100 * MEGABYTE
        assert program.client.post("inference", files={"image": PNG}).status_code == 200


HOSTILE: list[tuple[bytes, str, int]] = [
    (part('form-data; name="f"'), "multipart/form-data", 400),
    (part('form-data; name="f"') * 10_000 + b"--b--\r\n", BOUNDARY["content-type"], 413),
    (part('form-data; name="image"; filename="a"', bytes(11 * MEGABYTE)) + b"--b--\r\n", BOUNDARY["content-type"], 413),
    (b"--b\r\n" * 100_000, BOUNDARY["content-type"], 400),
    (b"--b\r\n" + b"a: b\r\n" * 100_000 + b"\r\nx\r\n--b--\r\n", BOUNDARY["content-type"], 400),
    (b"--b\r\n" + b"a" * MEGABYTE + b": b\r\n\r\nx\r\n--b--\r\n", BOUNDARY["content-type"], 400),
    (bytes(MEGABYTE), BOUNDARY["content-type"], 400),
    (b"a=b&" * MEGABYTE, "application/x-www-form-urlencoded", 413),
]


@SERVERS
def test_hostile_forms_are_each_refused_and_the_next_is_served(by: str, tmp_path: Path) -> None:
    with serving(tmp_path, UPLOAD, environment={"MOSEC_MAX_REQUEST_SIZE": str(64 * MEGABYTE)}, by=by) as program:
        for body, kind, status in HOSTILE:
            answer = program.client.post("inference", content=body, headers={"content-type": kind})
            assert (answer.status_code, len(answer.text) < 1000) == (status, True), (body[:100], answer.text[:1000])
            good = program.client.post("inference", files={"image": ("../../x", b"", "image/png")})
            assert good.json() == ["x", "none", 1, []]
        assert program.restarts("UploadPhoto_1") == 0
        # The library has warnings of its own for such forms, as many as clients want.
        assert not re.search("^Expected boundary", program.output, re.MULTILINE)


# -- what forward is annotated with ------------------------------------------------------------------------------------


@BOTH
async def test_forward_gets_what_it_is_annotated_with(executor: str) -> None:
    async with client_of(workers.UploadPhoto, executor=executor) as (client, server):
        more = [("image", PNG), ("more", ("b", b"")), ("more", ("c", b""))]
        answer = await client.post("/inference", data={"caption": "a bear", "copies": "3"}, files=more)
        assert answer.json() == ["a.png", "a bear", 3, ["b", "c"]]
        # A page sends what nobody has filled in as an empty text.
        left_empty = await client.post("/inference", data={"caption": "", "copies": ""}, files={"image": PNG})
        assert left_empty.json() == ["a.png", "none", 1, []]
        image = File("d", "", b"")
        for item in (Form([("image", image)]), workers.Photo(image), {"image": image}):
            assert await server.infer(item) == ["d", "none", 1, []]
    async with client_of(workers.UploadAttached, executor=executor) as (client, _):
        assert (await client.post("/inference", files={"attachment": PNG, "other": PNG})).json() == 1


@BOTH
async def test_a_form_without_files_is_a_model_of_pydantic_in_a_batch(executor: str) -> None:
    async with client_of(workers.TakeOrders, executor=executor, max_batch_size=4) as (client, server):
        answer = await client.post("/inference", data={"the-buyer": "ada", "tags": "one", "gift": "on"})
        assert answer.json() == {"the-buyer": "ada", "tags": ["one"], "gift": True}
        assert (await server.infer(Form([("the-buyer", "ada")]))).tags is None


@BOTH
async def test_a_field_that_does_not_fit_is_named_and_fails_alone(executor: str) -> None:
    async with client_of(workers.UploadPhoto, executor=executor) as (client, server):
        answer = await client.post("/inference", data={"image": "no file", "caption": "x" * 11, "copies": "u"})
        assert answer.status_code == 422
        errors = json.loads(answer.text.removeprefix("request validation error: "))
        assert {error["loc"][0]: error["msg"] for error in errors} == {
            "image": "Input should be an instance of File",
            "caption": "String should have at most 10 characters",
            "copies": "Input should be a valid integer, unable to parse string as an integer",
        }
        with pytest.raises(ValidationError, match="Field required"):
            await server.infer({"caption": "x"})
        assert (await client.post("/inference", files={"image": PNG})).status_code == 200


async def test_an_annotation_that_is_no_form_says_what_to_do(logged: pytest.LogCaptureFixture) -> None:
    async with client_of(workers.TakesNoForm) as (client, _):
        assert (await client.post("/inference", files={"image": PNG})).status_code == 500
        assert "TakesNoForm.forward takes forms, and is annotated with dict[str, str]; annotate it with" in logged.text


def test_the_document_shows_what_forward_is_annotated_with() -> None:
    server = Server()
    server.append_worker(workers.UploadPhoto, route="/photo")
    server.append_worker(workers.TakeOrders, max_batch_size=4, route="/order")
    document = server.openapi()
    schemas = document["components"]["schemas"]
    binary = {"type": "string", "format": "binary"}

    def content(path: str) -> Any:
        return document["paths"][path]["post"]["requestBody"]["content"]

    assert content("/photo") == {"multipart/form-data": {"schema": {"$ref": "#/components/schemas/Photo"}}}
    assert schemas["Photo"]["required"] == ["image"]
    assert schemas["Photo"]["properties"] == {
        "image": binary,
        "caption": {"type": "string", "default": "none", "maxLength": 10},
        "copies": {"type": "integer", "default": 1},
        "more": {"type": "array", "items": binary},
    }
    # Without files both kinds of forms will do.
    shown = {"schema": {"$ref": "#/components/schemas/Order"}}
    assert content("/order") == {"multipart/form-data": shown, "application/x-www-form-urlencoded": shown}
    assert list(schemas["Order"]["properties"]) == ["the-buyer", "tags", "gift"]
