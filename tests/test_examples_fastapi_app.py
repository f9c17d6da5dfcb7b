"""The example of a FastAPI app with models inside: its own routes, the models', the two together, and its page."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import chromium, complaints, requested
from harness import ROOT, Program, running, wait_until
from test_examples import png

EXAMPLE = ROOT / "examples" / "fastapi_app"
KEY = "sesame"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The service under uvicorn; as `python server.py` it runs in test_examples_openapi.py."""
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", "{port}"]
    with running(command, log, cwd=EXAMPLE, environment={"MOSEC_TIMEOUT": "30000", "API_KEY": KEY}) as program:
        program.wait_ready("/ml/readyz")
        program.client.headers["x-api-key"] = KEY
        yield program


def test_a_route_of_the_app_asks_the_model_as_the_readme_shows(program: Program) -> None:
    [shown] = re.findall(r"```json\n(.*?)\n```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    assert program.client.get("/books/hamlet").json() == json.loads(shown)
    missing = program.client.get("/books/lear")
    assert (missing.status_code, "hamlet" in missing.text) == (404, True)


def test_a_route_of_the_app_checks_what_it_is_sent_before_it_asks(program: Program) -> None:
    answer = program.client.post("/drafts", json={"text": "one two three four"})
    assert answer.json() == {"text": "one two three four", "seconds": 1.0}
    for wrong in ({"text": ""}, {"text": 4}, {"text": "x" * 10_001}, {}):
        assert program.client.post("/drafts", json=wrong).status_code == 422


def test_the_model_is_reached_below_its_mount_and_its_errors_are_its_own(program: Program) -> None:
    assert program.client.post("/ml/inference", json="one two three four").json() == {"seconds": 1.0}
    refused = program.client.post("/ml/inference", json=4)
    assert (refused.status_code, refused.text) == (
        422,
        'request validation error: [{"type":"string_type","loc":[],"msg":"Input should be a valid string"}]',
    )
    assert program.client.post("/inference", json="a").status_code == 404
    servers = program.client.get("/ml/openapi/metadata.json").json()["servers"]
    assert servers == [{"url": "/ml"}]


def test_both_have_their_documents(program: Program) -> None:
    assert "/books/{name}" in program.client.get("/openapi.json").json()["paths"]
    assert "/inference" in program.client.get("/ml/openapi/metadata.json").json()["paths"]


def test_the_apps_own_calls_and_the_clients_go_to_the_same_workers(program: Program) -> None:
    def answered() -> int:
        [line] = [
            one
            for one in program.client.get("/ml/metrics").text.splitlines()
            if 'endpoint="/inference"' in one and 'code="200"' in one
        ]
        return int(float(line.rpartition(" ")[2]))

    program.client.post("/ml/inference", json="a")
    before = answered()
    with ThreadPoolExecutor(8) as threads:
        inside = [threads.submit(program.client.get, "/books/macbeth") for _ in range(8)]
        outside = [threads.submit(program.client.post, "/ml/inference", json="a") for _ in range(8)]
        assert {one.result().status_code for one in inside + outside} == {200}
    assert answered() == before + 16


def test_the_client_asks_both(program: Program) -> None:
    command = [sys.executable, str(EXAMPLE / "client.py"), "one two three four", "--url", program.url, "--key", KEY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["1.0", "s", "one", "two", "three", "four"],
        ["2.5", "s", "hamlet"],
        ["1.25", "s", "macbeth"],
    ]


# -- uploads, keys, other sites ----------------------------------------------------------------------------------------

DESCRIBED = f"Bear: an image of 1 by 1 pixels in {len(png())} bytes. "


def test_an_image_is_described_in_a_stream_and_what_is_none_is_refused(program: Program) -> None:
    with program.client.stream("POST", "/ml/describe", files={"image": png()}, data={"title": "Bear"}) as answer:
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        pieces = list(answer.iter_text())
    assert "".join(pieces) == DESCRIBED
    assert len(pieces) > 2
    for files, data in (({"image": b"text"}, {}), ({}, {"image": "text"}), ({"image": png()}, {"title": "x" * 101})):
        assert program.client.post("/ml/describe", files=files, data=data).status_code in (415, 422)


@pytest.mark.parametrize("key", [None, "", "wrong", "sesamé"])
def test_without_the_key_neither_the_app_nor_the_models_answer(program: Program, key: str | None) -> None:
    headers = {} if key is None else {"x-api-key": key.encode()}
    with httpx.Client(base_url=program.url, trust_env=False) as stranger:
        asked = [
            stranger.get("/books", headers=headers),
            stranger.get("/books/hamlet", headers=headers),
            stranger.post("/drafts", json={"text": "a"}, headers=headers),
            stranger.post("/ml/inference", json="a", headers=headers),
            stranger.post("/ml/describe", files={"image": png()}, headers=headers),
        ]
        assert {answer.status_code for answer in asked} == {401}
        free = ("/ml/readyz", "/ml/metrics", "/ml/openapi/metadata.json", "/openapi.json", "/ui/")
        assert {stranger.get(path).status_code for path in free} == {200}


def test_pages_of_the_sites_that_are_named_may_call_app_and_models(program: Program) -> None:
    for path in ("/drafts", "/ml/inference"):
        wanted = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
        for origin, allowed in (("http://localhost:5173", True), ("http://elsewhere.test", False)):
            asked = program.client.options(path, headers={"origin": origin, **wanted})
            answer = program.client.post(path, json="a", headers={"origin": origin})
            for each in (asked, answer):
                assert each.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert asked.is_success == allowed


# -- what nobody should send -------------------------------------------------------------------------------------------


def odd_requests(count: int) -> Iterator[dict[str, Any]]:
    """Yield requests as clients with faults send them, some of them right."""
    chance = random.Random(11)
    values = [None, 0, -1.5, 10**30, "", "a b", "\x00", "\U0001f43b" * 50, "x" * 20_000, [], ["a"], {}, {"text": 1}]
    values += [{"text": "a"}, {"text": "a", "more": [[[[]]]]}, True]
    types = [
        "application/json",
        "text/plain",
        "multipart/form-data",
        "multipart/form-data; boundary=b",
        "",
        "x/y; charset=z",
    ]
    parts = [png(), png()[:20], b"", b"text", bytes(range(256)), b"\x89PNG\r\n\x1a\n" + bytes(40)]
    for _ in range(count):
        url = chance.choice(["/drafts", "/ml/inference", "/ml/describe", "/books/"])
        request: dict[str, Any] = {"method": "GET" if url == "/books/" else "POST", "url": url}
        if url == "/books/":
            request["url"] += chance.choice(["hamlet", "%00", "a'--", "%ff", "x" * 500])
        if chance.random() < 0.1:
            request["method"] = chance.choice(["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"])
        kind = chance.randrange(3)
        if kind == 0:
            request["json"] = chance.choice(values)
        elif kind == 1:
            names = chance.choices(["image", "title", "", "é", "x" * 300, "../../x"], k=chance.randrange(4))
            request["files"] = [
                (name, (chance.choice(["a.png", "../../x", ""]), chance.choice(parts))) for name in names
            ]
            request["data"] = {"title": chance.choice(["", "a title", "y" * 200])}
        else:
            request["content"] = chance.choice(
                [b"", b"{", b"[" * 5000, b"\xff", b"--b\r\n", b"--b--\r\n", b'"a"', b"NaN"]
            )
            request["headers"] = {"content-type": chance.choice(types)}
        yield request


def test_a_thousand_odd_requests_are_each_answered_and_harm_nothing(program: Program) -> None:
    def status(request: dict[str, Any]) -> int:
        return program.client.request(**request).status_code

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(status, odd_requests(1000)))
    assert set(found) <= {200, 204, 400, 404, 405, 413, 415, 422}
    assert {200, 400, 404, 405, 415, 422} <= set(found)
    assert program.client.get("/books/hamlet").json()["seconds"] == 2.5
    assert program.client.post("/ml/describe", files={"image": png()}, data={"title": "Bear"}).text == DESCRIBED
    assert "Traceback" not in program.output


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


WATCH = """
window.seen = [];
const output = document.querySelector("output");
new MutationObserver(() => seen.push(output.textContent)).observe(output, {childList: true, subtree: true});
"""


def show(driver: Any, program: Program, scheme: str) -> None:
    """Open the page as on a phone, in light or dark."""
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    driver.get(f"{program.url}/ui/")


def send(driver: Any, image: Path, key: str) -> str:
    """Fill in the form and send it; return what the page shows in the end."""
    driver.execute_script(WATCH)
    driver.find_element("css selector", "input[name=image]").send_keys(str(image))
    driver.find_element("css selector", "input[name=title]").send_keys("Bear")
    driver.find_element("css selector", "#key").send_keys(key)
    button = driver.find_element("css selector", "button")
    button.click()
    wait_until(lambda: driver.execute_script("return seen.length > 0") and button.is_enabled(), "there is no answer")
    text: str = driver.execute_script("return document.querySelector('output').textContent")
    return text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_uploads_an_image_and_shows_the_answer_piece_by_piece(
    browser: Any, program: Program, scheme: str, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png())
    show(browser, program, scheme)
    complaints(browser)
    assert send(browser, image, KEY) == DESCRIBED
    seen = [text for text in browser.execute_script("return seen") if text]
    assert len(set(seen)) > 2, "it has come at once"
    assert all(DESCRIBED.startswith(text) for text in seen)
    browser.save_screenshot(str(tmp_path / f"{scheme}.png"))

    # All of it is on a phone's screen.
    assert browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
    # The colour behind the text is the browser's own: bright by day, dark by night.
    shown = browser.execute_script("return getComputedStyle(document.querySelector('h1')).color")
    assert (sum(map(int, re.findall(r"\d+", shown)[:3])) > 384) == (scheme == "dark")
    assert complaints(browser) == []
    assert all(address.startswith((f"{program.url}/", "data:")) for address in requested(browser))


def test_the_page_shows_what_the_server_refuses(browser: Any, program: Program, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"no image")
    for key, said in (("wrong", "send the right key in the header x-api-key"), (KEY, "the image is no PNG")):
        show(browser, program, "light")
        assert said in send(browser, image, key)
        assert browser.find_elements("css selector", "output.failed")
