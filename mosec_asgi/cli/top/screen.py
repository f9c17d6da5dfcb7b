"""The live view: the whole terminal, drawn by rich, and keys. The terminal is left as it was found."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mosec_asgi.cli.top import view
from mosec_asgi.cli.top.lines import look
from mosec_asgi.cli.top.source import Source
from mosec_asgi.cli.top.watch import Watch

KEYS = "q quit   s S sort by another column   r turn round   space hold"
# Routes that are shown.
_ROUTES = 8


@dataclass
class Choice:
    """What the keys have chosen.

    Attributes:
        column: to sort by.
        turned: the smallest first.
        held: nothing is asked for the time being.
        quit: the end.
    """

    column: int = 0
    turned: bool = False
    held: bool = False
    quit: bool = False

    def press(self, key: str) -> None:
        """Do what a key stands for; others do nothing."""
        if key in ("q", "Q", "\x03", "\x04"):
            self.quit = True
        elif key == "s":
            self.column = (self.column + 1) % len(view.COLUMNS)
        elif key == "S":
            self.column = (self.column - 1) % len(view.COLUMNS)
        elif key in ("r", "R"):
            self.turned = not self.turned
        elif key == " ":
            self.held = not self.held


def run(source: Source, interval: float) -> int:
    """Show the service until a key ends it."""
    watch, choice = Watch(), Choice()
    console = Console()
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        due = time.monotonic()
        while not choice.quit:
            if time.monotonic() >= due:
                if not choice.held:
                    look(source, watch)
                due = time.monotonic() + interval
            live.update(draw(source.name, watch, choice, time.time(), console.width), refresh=True)
            for key in _pressed(max(0.0, due - time.monotonic())):
                choice.press(key)
    return 0


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Have keys come as they are pressed, ctrl-c among them."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _pressed(seconds: float) -> str:
    """Return the keys that are pressed within a time, as soon as there are any."""
    descriptor = sys.stdin.fileno()
    ready, _, _ = select.select([descriptor], [], [], seconds)
    if not ready:
        return ""
    keys = os.read(descriptor, 64).decode(errors="replace")
    # Of a terminal that is gone there is nothing more to read, for ever. A key such as an arrow is several characters.
    return "q" if not keys else "" if keys.startswith("\x1b") else keys


def draw(name: str, watch: Watch, choice: Choice, seconds: float, width: int) -> RenderableType:
    """Return the picture.

    Args:
        name: of the service.
        watch: what is known of it.
        choice: what the keys have chosen.
        seconds: the time, since 1970.
        width: of the terminal, in characters.
    """
    parts: list[RenderableType] = [_head(name, watch, choice, seconds)]
    if watch.report is not None:
        faint = "dim" if watch.fault else ""
        parts += [_numbers(each, faint) for each in view.summary(watch)]
        bars = view.bars(watch.throughput(), max(10, width - 4))
        parts += [Text(bars, style=faint or "cyan"), _stages(watch, choice, faint, width), _routes(watch, faint)]
    parts.append(Text(KEYS, style="dim"))
    return Group(*parts)


def _head(name: str, watch: Watch, choice: Choice, seconds: float) -> Text:
    head = Text(f"mosec-asgi top  {name}  ", style="bold")
    if watch.fault:
        head.append(f"no answer since {view.clock(watch.lost_at)}: {watch.fault}; tried again", style="bold red")
    elif choice.held:
        head.append("held", style="bold yellow")
    else:
        head.append(view.clock(seconds), style="dim")
    return head


def _numbers(line: list[tuple[str, str, bool]], faint: str) -> Text:
    text = Text()
    for name, value, is_bad in line:
        text.append(f"{name} ", style="dim")
        text.append(f"{value}   ", style=faint or ("bold yellow" if is_bad else "bold"))
    return text


def _stages(watch: Watch, choice: Choice, faint: str, width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    rows = view.rows(watch, choice.column, turned=choice.turned)
    places = view.fitting(rows, width, choice.column)
    for place in places:
        head = Text(view.COLUMNS[place].head, style="bold underline" if place == choice.column else "bold")
        table.add_column(head, justify="left" if place == 0 else "right", no_wrap=place > 0, overflow="fold")
    columns = [view.COLUMNS[place] for place in places]
    for row in rows:
        styles = [faint or ("bold red" if column.bad(row) else "") for column in columns]
        table.add_row(*(Text(column.text(row), style=style) for column, style in zip(columns, styles, strict=True)))
    return table


def _routes(watch: Watch, faint: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("ROUTE", overflow="fold")
    table.add_column("ANSWERS/S", justify="right")
    for route, value in view.routes(watch, _ROUTES):
        table.add_row(Text(route, style=faint), Text(value, style=faint))
    return table
