"""Standard input, output and error of a program that was started without some of them."""

from __future__ import annotations

import os
import sys


def open_missing() -> None:
    """Open the null device in the place of each that is closed.

    To be called before anything else is opened, which would get its number: the event loop would refuse to close that,
    and end the program by an abort, and what a worker prints would reach somebody's socket.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # So says Python of one that it has found closed. The number may belong to a file of the program's by now.
            stream = open(os.devnull, mode)  # noqa: SIM115 - for good
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def drop_output() -> None:
    """Have what is still written to standard output go nowhere.

    To be called where that has failed: Python would try it again at its end, and complain.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
