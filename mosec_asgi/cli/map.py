"""`mosec-asgi map`: its arguments. What it does is in `offline`."""

from __future__ import annotations

from typing import Any

import click

from mosec_asgi.cli.faults import UsageError
from mosec_asgi.cli.loading import load_server, server_arguments
from mosec_asgi.defined import DEFAULT_ROUTE
from mosec_asgi.offline import command as offline

# \b keeps a paragraph's lines as they are.
_EPILOG = """\b
records: {"line": 17, "output": ...}, where `line` counts from 1. Lines that
fail stand in OUTPUT.errors.jsonl, each with its number, code, text and input.
OUTPUT.run.json says which run these files are of; it may be deleted at the
end.

\b
stopping: ctrl-c takes no more lines and finishes those in hand. However a run
has ended, the same command with --resume does the lines that have no record
yet, and only those.

\b
exit codes: 0 all lines are done; 3 all are done, and some have failed; 1 not
finished; 2 wrong use, nothing was done; 130 or 143 stopped by ctrl-c or
SIGTERM.

\b
examples:
  mosec-asgi map app:server --input in.jsonl --output out.jsonl
  mosec-asgi map app:server --input in.csv --column text --output out.parquet --resume
  mosec-asgi map app:server --input batch.jsonl --output answers.jsonl --format openai-batch
  zcat in.jsonl.gz | mosec-asgi map app:server --input - --output out.jsonl
"""


@click.command("map", epilog=_EPILOG)
@server_arguments
@click.option("--input", required=True, metavar="FILE", help="What to read; - for standard input.")
@click.option("--output", required=True, metavar="FILE", help="What to write; - for standard output, with --errors.")
@click.option("--errors", metavar="FILE", help="Where lines that fail are written (default: OUTPUT.errors.jsonl).")
@click.option(
    "--route",
    metavar="PATH",
    help=f"Whose workers run the items (default: the only route, or {DEFAULT_ROUTE}; with openai-batch, each line's "
    "`url`).",
)
@click.option(
    "--format",
    type=click.Choice(offline.FORMATS),
    help="Of the input (default: by its ending, csv or parquet; else openai-batch where the first line is a request of "
    "a batch, and jsonl where it is not).",
)
@click.option(
    "--output-format",
    type=click.Choice(("jsonl", *offline.TABLES)),
    help="Of the output (default: by its ending). CSV and Parquet are made at the end, with the columns line and "
    "output; until then the records are in OUTPUT.records.jsonl.",
)
@click.option(
    "--column", metavar="NAME", help="What of a line is the item (default: all of it, a dictionary by its columns)."
)
@click.option(
    "--unordered",
    is_flag=True,
    help="Write results as they come, so that a slow item holds up none (default: in the order of the lines).",
)
@click.option(
    "--timeout",
    type=int,
    metavar="MS",
    help="Milliseconds that an item may take, in the place of the service's setting `timeout`; 0 for no limit.",
)
@click.option(
    "--in-flight",
    type=int,
    metavar="N",
    help="The most items that are called at a time (default: for each worker a full batch and one more behind it).",
)
@click.option(
    "--resume", is_flag=True, help="Go on with what an earlier run has written; begin where there is nothing."
)
@click.option("--overwrite", is_flag=True, help="Remove what an earlier run has written, and begin.")
@click.option("--quiet", is_flag=True, help="Show no progress, only what goes wrong.")
def command(server: str, app_dir: str, **given: Any) -> int:
    """Run a model over a file.

    Each line is an item for the route's workers, as in `engine.map`, and each result a line of the output. Whole
    batches run in each worker, and only what is in hand lies in memory. The service's workers are started for the time
    of the run; nothing listens on a port.
    """
    options = offline.Options(**given)
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite exclude each other: one goes on with what is there, one removes it")
    return offline.run(options, load_server(server, app_dir))
