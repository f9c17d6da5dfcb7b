"""docs/batching.md is true: its program runs as it stands there, and its names and numbers are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

from mosec_asgi import Server, testing
from mosec_asgi.batching.tenants import MOST_TENANTS
from mosec_asgi.call_order import MOST_PRIORITY
from mosec_asgi.config import FIELDS
from mosec_asgi.labels import HOOKS, MOST_KEY

PAGE = (Path(__file__).parent.parent / "docs" / "batching.md").read_text()


def test_the_program_batches_by_cost_and_key() -> None:
    [program] = re.findall(r"```python\n(# tokens.py\n.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "tokens"}
    exec(program, names)

    async def check() -> None:
        async with testing.serving(names["server"]) as service:
            texts = [("a " * length, adapter) for length in (2, 90, 3, 91) for adapter in ("base", "french")]
            answers = await asyncio.gather(
                *(service.client.post("/inference", json={"text": t, "adapter": a}) for t, a in texts)
            )
            assert [answer.json()["adapter"] for answer in answers] == [adapter for _, adapter in texts]

    testing.run(check())


def test_the_function_says_whose_a_request_is() -> None:
    [program] = re.findall(r"```python\n(# tenants.py\n.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"__name__": "tenants"}
    exec(program, names)

    async def check() -> None:
        async with testing.serving(names["server"]) as service:
            ours = {"authorization": "Bearer key-1"}
            assert (await service.client.post("/inference", json=4, headers=ours)).json() == 8
            refused = await service.client.post("/inference", json=4)
            assert (refused.status_code, "one of our keys" in refused.text) == (400, True)

    testing.run(check())


def test_it_names_what_there_is() -> None:
    for name in (*HOOKS, "x-batch-key", "x-priority", "gave_way"):
        assert f"{name}" in PAGE
    for setting in ("priority_header", "tenant_header", "tenant_weights"):
        assert setting in FIELDS
        assert setting in PAGE
    for argument in ("max_batch_cost", "refuse_over_cost", "sort_by_cost", "coalesce"):
        assert argument in inspect.signature(Server.append_worker).parameters
        assert argument in PAGE
    assert f"{MOST_KEY} bytes" in PAGE
    assert f"from -{MOST_PRIORITY} to {MOST_PRIORITY}" in PAGE
    assert f"{MOST_TENANTS} tenants" in PAGE
