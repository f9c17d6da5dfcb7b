"""The Swagger page in a real browser, on its own and behind a mount and a proxy; its files and addresses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, complaints, requested
from harness import python, running, wait_until, written

from mosec_asgi import Server, Worker
from mosec_asgi.web.swagger import ASSETS, POLICY

SERVICE = '''
import dataclasses
from typing import Any

from typing_extensions import TypedDict

from mosec_asgi import Server, Worker
from mosec_asgi.mixin import File, MultipartMixin


class Text(TypedDict):
    text: str


class Counts(TypedDict):
    words: int
    unique: int


class CountWords(Worker):
    """Count the words of a text."""

    example = {"text": "to be or not to be"}

    def forward(self, data: Text) -> Counts:
        words = data["text"].split()
        return {"words": len(words), "unique": len(set(words))}


class Shout(Worker):
    """Say it louder."""

    req_mime_type = resp_mime_type = "text/plain"

    def deserialize(self, data: bytes) -> str:
        return data.decode()

    def forward(self, data: str) -> str:
        return data.upper()

    def serialize(self, data: str) -> bytes:
        return data.encode()


@dataclasses.dataclass
class Letter:
    attachment: File
    subject: str = "none"


class Post(MultipartMixin, Worker):
    """Post a letter."""

    def forward(self, data: Letter) -> Any:
        return [data.subject, data.attachment.filename, len(data.attachment.data)]


server = Server()
server.append_worker(CountWords, route="/v1/count")
server.append_worker(Shout, route="/v1/shout")
server.append_worker(Post, route="/v1/post")

if __name__ == "__main__":
    server.run()
'''
MOUNTED = """
from starlette.applications import Starlette
from starlette.routing import Mount

from service import server

app = Starlette(routes=[Mount("/ml", server)], lifespan=server.lifespan)
"""
# As nginx does with `location /proxy/ { proxy_pass http://upstream/; }`: the prefix is cut off.
PROXY = """
import sys

import httpx
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{sys.argv[2]}", trust_env=False)


async def forward(request):
    headers = {name: value for name, value in request.headers.items() if name in ("accept", "content-type")}
    path, body = "/" + request.path_params["path"], await request.body()
    answer = await client.request(request.method, path, headers=headers, content=body)
    names = {"content-type", "content-security-policy"} & answer.headers.keys()
    kept = {name: answer.headers[name] for name in names}
    return Response(answer.content, answer.status_code, kept)


app = Starlette(routes=[Route("/proxy/{path:path}", forward, methods=["GET", "POST"])])

if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


def client_of(server: Server, root_path: str = "") -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(server, root_path=root_path), base_url="http://test")


class Echo(Worker):
    def forward(self, data: Any) -> Any:
        return data


# -- in a real browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


class Page:
    """The Swagger page as somebody uses it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait_for(".opblock")

    def all(self, selector: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def wait_for(self, selector: str) -> Any:
        wait_until(lambda: self.all(selector), f"the page shows no {selector}: {self.driver.page_source[:3000]}")
        return self.all(selector)[0]

    def click(self, selector: str) -> None:
        element = self.wait_for(selector)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def routes(self) -> set[str]:
        return {element.get_attribute("data-path") for element in self.all(".opblock-summary-path")}

    def try_out(
        self, operation: str, body: str | None = None, *, file: Path | None = None, fields: dict[str, str] | None = None
    ) -> tuple[str, str]:
        """Return the status and the body that an operation's answer shows."""
        block = f"#operations-inference-{operation}"
        self.click(f"{block} .opblock-summary-control")
        self.click(f"{block} .try-out__btn")
        if body is not None:
            field = self.wait_for(f"{block} textarea.body-param__text")
            field.send_keys("\ue009a\ue000", "\ue017", body)  # control and a, delete
        if file is not None:
            self.wait_for(f"{block} input[type=file]").send_keys(str(file))
        for name, text in (fields or {}).items():
            field = self.wait_for(f"{block} tr[data-property-name={name}] input[type=text]")
            field.send_keys("\ue009a\ue000", "\ue017", text)
        self.click(f"{block} .execute")
        status = self.wait_for(f"{block} .live-responses-table tbody .response-col_status")
        shown = self.wait_for(f"{block} .live-responses-table tbody .response-col_description code")
        return status.text.split()[0], shown.text


@contextmanager
def on_its_own(folder: Path) -> Iterator[str]:
    with running(python(written(folder, SERVICE, "service.py")), folder / "service.log") as program:
        program.wait_ready()
        yield f"http://127.0.0.1:{program.port}"


@contextmanager
def mounted_behind_a_proxy(folder: Path) -> Iterator[str]:
    written(folder, SERVICE, "service.py")
    written(folder, MOUNTED, "mounted.py")
    command = [sys.executable, "-m", "uvicorn", "mounted:app", "--port", "{port}", "--root-path", "/proxy"]
    with running(command, folder / "mounted.log", cwd=folder) as mounted:
        mounted.wait_ready("/ml/readyz")
        proxy = [sys.executable, str(written(folder, PROXY, "proxy.py")), "{port}", str(mounted.port)]
        with running(proxy, folder / "proxy.log", stops=False) as program:
            program.wait_ready("/proxy/ml/readyz")
            yield f"http://127.0.0.1:{program.port}/proxy/ml"


@pytest.mark.parametrize("served", [on_its_own, mounted_behind_a_proxy])
def test_try_it_out_shows_the_answer_of_the_model_with_no_network(browser: Any, tmp_path: Path, served: Any) -> None:
    with served(tmp_path) as url:
        page = Page(browser, f"{url}/openapi/swagger/")
        assert {"/v1/count", "/v1/shout", "/livez", "/readyz", "/metrics"} <= page.routes()

        status, answer = page.try_out("v1_count")
        browser.save_screenshot(str(tmp_path / "swagger.png"))
        assert (status, json.loads(answer)) == ("200", {"words": 6, "unique": 4})

        status, answer = page.try_out("v1_shout", "hello")
        assert (status, answer.strip('"')) == ("200", "HELLO")

        letter = written(tmp_path, "dear reader", "letter.txt")
        status, answer = page.try_out("v1_post", file=letter, fields={"subject": "news"})
        assert (status, json.loads(answer)) == ("200", ["news", "letter.txt", 11])

        assert all(address.startswith((f"{url}/", "data:")) for address in requested(browser)), requested(browser)
        assert complaints(browser) == []


# -- its files and addresses -------------------------------------------------------------------------------------------


@pytest.fixture
def server() -> Server:
    server = Server()
    server.append_worker(Echo)
    return server


@pytest.mark.parametrize("prefix", ["", "/proxy"])
async def test_the_page_and_its_files_are_there_whether_or_not_the_path_has_the_prefix(
    server: Server, prefix: str
) -> None:
    async with server.lifespan(), client_of(server, root_path="/proxy") as client:
        page = await client.get(f"{prefix}/openapi/swagger/")
        files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        assert len(files) == 4
        for file in files:
            answer = await client.get(f"{prefix}/openapi/swagger/{file}")
            assert (answer.status_code, answer.content) == (200, (ASSETS / file).read_bytes())
        without_slash = await client.get(f"{prefix}/openapi/swagger")
        assert (without_slash.status_code, without_slash.headers["location"]) == (307, "swagger/")


async def test_the_browser_is_told_to_load_nothing_from_elsewhere(server: Server) -> None:
    async with server.lifespan(), client_of(server) as client:
        page = await client.get("/openapi/swagger/")
        assert page.headers["content-security-policy"] == POLICY
        assert "http" not in POLICY
        # All addresses are relative, and no script stands in the page itself.
        assert re.findall(r'(?:src|href)="(?:/|\w+:)', page.text) == []
        assert re.findall(r"<script[^>]*>[^<]", page.text) == []


async def test_a_browser_that_has_the_file_is_sent_no_second_copy(server: Server) -> None:
    async with server.lifespan(), client_of(server) as client:
        file = "/openapi/swagger/swagger-ui/swagger-ui.css"
        first = await client.get(file)
        again = await client.get(file, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["unknown.js", "../swagger.py", "%2e%2e/swagger.py", "//etc/passwd", "swagger-ui"])
async def test_nothing_but_the_files_of_the_page_is_sent(server: Server, path: str) -> None:
    async with server.lifespan(), client_of(server) as client:
        assert (await client.get(f"/openapi/swagger/{path}")).status_code == 404


def test_the_licence_of_swagger_ui_lies_beside_it() -> None:
    folder = ASSETS / "swagger-ui"
    assert "Apache License" in (folder / "LICENSE").read_text()
    assert "SmartBear" in (folder / "NOTICE").read_text()
    version = re.search(r"# swagger-ui-dist (\S+)", (folder / "README.md").read_text())
    assert version
    assert f'"{version[1]}"' in (folder / "swagger-ui-bundle.js").read_text()
