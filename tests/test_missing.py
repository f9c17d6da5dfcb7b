from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from mosec_asgi.web.missing import missing

REQUEST = Request({"type": "http", "method": "GET", "path": "/", "headers": []})


async def test_a_text_lists_so_many_routes_and_no_more() -> None:
    handlers = missing([f"POST /{number}" for number in range(25)])
    text = bytes((await handlers[HTTPStatus.NOT_FOUND](REQUEST, HTTPException(404))).body).decode()
    assert "POST /19, and 5 more, and GET /openapi/metadata.json" in text
    assert "/20" not in text


async def test_a_wrong_method_keeps_the_headers_that_say_which_are_right() -> None:
    answer = await missing(["POST /a"])[HTTPStatus.METHOD_NOT_ALLOWED](
        REQUEST, HTTPException(405, headers={"Allow": "PUT"})
    )
    assert (answer.status_code, answer.headers["allow"]) == (405, "PUT")
    assert bytes(answer.body) == b"Method Not Allowed: this path does not take GET; it takes PUT"
