"""Ask the file type service about files and folders, many at once.

    python examples/filetype/client.py src docs/logo.png
    python examples/filetype/client.py . --json | grep '"python"'

Exit status: 0 if every file has an answer, 1 if one has none or there is no server.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table

CHUNK = 64 * 1024
ATTEMPTS = 6
LONGEST_PAUSE = 5.0  # seconds
TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """What is known about one file: its label, score and mime type, or the error that kept it from them."""

    path: Path
    label: str = ""
    score: float = 0.0
    mime_type: str = ""
    error: str = ""

    def as_json(self) -> str:
        """Return the outcome as one line of JSON."""
        known = {"error": self.error} if self.error else {"label": self.label, "score": self.score}
        return json.dumps({"path": str(self.path), **known})


def find_files(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield the files named in `roots` and those below its folders, sorted; no symbolic links, no `.git`."""
    for root in roots:
        if not root.is_dir():
            yield root
            continue
        for folder, subfolders, names in os.walk(root, onerror=lambda error: print(error, file=sys.stderr)):
            subfolders[:] = sorted(name for name in subfolders if name != ".git")
            paths = (Path(folder, name) for name in sorted(names))
            yield from (path for path in paths if os.path.isfile(path) and not os.path.islink(path))


async def read_chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield the bytes of a file piece by piece, so that no file is in memory as a whole."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


async def identify(client: httpx.AsyncClient, path: Path) -> Outcome:
    """Return the service's answer for one file; when the service is busy (429), come back later."""
    try:
        size = os.stat(path).st_size
        if not size:
            return Outcome(path, "empty", 1.0, "inode/x-empty")  # nothing to send: Magika's answer is known
        for retries in reversed(range(ATTEMPTS)):
            headers = {"Content-Length": str(size)}
            reply = await client.post("/inference", content=read_chunks(path), headers=headers)
            if reply.status_code != httpx.codes.TOO_MANY_REQUESTS or not retries:
                break
            await asyncio.sleep(pause_before_retry(reply))
    except OSError as error:
        return Outcome(path, error=f"cannot be read: {error.strerror}")
    except httpx.HTTPError as error:
        return Outcome(path, error=f"no answer: {str(error) or type(error).__name__}")
    if reply.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return Outcome(path, error=f"too large: {reply.text}")
    if reply.is_error:
        return Outcome(path, error=f"{reply.status_code}: {reply.text}")
    answer = reply.json()
    return Outcome(path, answer["label"], answer["score"], answer["mime_type"])


def pause_before_retry(reply: httpx.Response) -> float:
    """Return the seconds that a 429 asks to wait, within bounds."""
    try:
        return min(float(reply.headers["Retry-After"]), LONGEST_PAUSE)
    except (KeyError, ValueError):
        return 1.0


async def identify_all(url: str, paths: list[Path], concurrency: int, on_done: Callable[[], object]) -> list[Outcome]:
    """Return the outcomes for `paths`, in their order, with at most `concurrency` requests under way.

    Raises:
        httpx.TransportError: there is no server at `url`.
    """
    outcomes: dict[Path, Outcome] = {}
    remaining = iter(paths)
    # A client for each request under way: one client's pool looks at all its connections before every request,
    # which at 64 connections took four times the processor time.
    new_client = partial(httpx.AsyncClient, base_url=url, timeout=TIMEOUT, verify=httpx.create_ssl_context())

    async def work() -> None:
        async with new_client() as client:
            for path in remaining:
                outcomes[path] = await identify(client, path)
                on_done()

    async with new_client() as client:
        await client.get("/")
    await asyncio.gather(*(work() for _ in range(min(concurrency, len(paths)))))
    return [outcomes[path] for path in paths]


def print_table(console: Console, outcomes: list[Outcome]) -> None:
    """Print a row for each file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("path", "label", "score", "mime type"):
        table.add_column(name, overflow="fold")
    for found in outcomes:
        path = str(found.path).encode(errors="replace").decode()
        if found.error:
            table.add_row(path, "-", "-", found.error, style="red")
        else:
            table.add_row(path, found.label, f"{found.score:.3f}", found.mime_type)
    console.print(table)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Ask the file type service about files and folders.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="FOLDER_OR_FILE")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=64, help="requests at a time (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line instead of a table")
    arguments = parser.parse_args()
    if arguments.concurrency < 1:
        parser.error("--concurrency must be at least 1")

    log = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    paths = list(dict.fromkeys(find_files(arguments.paths)))
    started = time.perf_counter()
    try:
        with Progress(
            *Progress.get_default_columns(),
            MofNCompleteColumn(),
            console=log,
            transient=True,
            disable=not log.is_terminal,
        ) as progress:
            bar = progress.add_task("identifying", total=len(paths))
            outcomes = asyncio.run(
                identify_all(arguments.url, paths, arguments.concurrency, lambda: progress.advance(bar))
            )
    except (httpx.TransportError, httpx.InvalidURL) as error:
        log.print(f"No server at {arguments.url} ({error}). Start one with `make serve`, or give its --url.")
        return 1
    seconds = time.perf_counter() - started

    if arguments.json:
        for found in outcomes:
            print(found.as_json())
    else:
        print_table(Console(markup=False, highlight=False), outcomes)
    failed = sum(bool(found.error) for found in outcomes)
    log.print(
        f"{len(outcomes)} files in {seconds:.2f} s, {len(outcomes) / seconds:.0f} files/s"
        + (f", {failed} without an answer" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
