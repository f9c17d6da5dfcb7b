"""One service, one worker class, reached by the plain route, OpenAI's API and the open inference protocol at once."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import numpy as np
import openai
import tritonclient.grpc.aio as triton
from together_workers import serve

ASKED = 16


def values(metrics: str, name: str) -> dict[str, float]:
    """Return a metric's values by their labels."""
    found = re.findall(rf"^mosec_service_{name}(?:\{{(.*)\}})? (.*)$", metrics, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


async def test_batches_mix_the_requests_of_all_protocols_and_each_gets_its_own_answer() -> None:
    server, tensors = serve(grpc_port=0, grpc_host="127.0.0.1")
    async with server:
        transport = httpx.ASGITransport(server)
        client = httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=20)
        ai = openai.AsyncOpenAI(base_url="http://testserver/v1", api_key="none", http_client=client)
        grpc = triton.InferenceServerClient(f"127.0.0.1:{tensors.grpc_port}")

        async def plain(length: int) -> Any:
            answer = await client.post("/embed", json="p" * length)
            return answer.json()

        async def of_openai(length: int) -> Any:
            answer = await ai.embeddings.create(model="lengths", input="o" * length, encoding_format="float")
            return answer.data[0].embedding

        async def by_http(length: int) -> Any:
            tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["h" * length]}
            answer = await client.post("/v2/models/lengths/infer", json={"inputs": [tensor]})
            return answer.json()["outputs"][0]["data"]

        async def by_grpc(length: int) -> Any:
            tensor = triton.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([b"g" * length], object))
            return (await grpc.infer("lengths", [tensor])).as_numpy("vector")[0].tolist()

        async def infer(length: int) -> Any:
            return await server.infer("i" * length, "/embed")

        ways = (plain, of_openai, by_http, by_grpc, infer)
        lengths = range(1, ASKED + 1)
        answers = await asyncio.gather(*(way(length) for length in lengths for way in ways))
        metrics = (await client.get("/metrics")).text
        await grpc.close()
        await ai.close()
    assert [answer[0] for answer in answers] == [length for length in lengths for _ in ways]
    # Of one way there are so many at most: a larger batch is of several.
    assert max(answer[1] for answer in answers) > ASKED
    batches = {labels: value for labels, value in values(metrics, "batch_size_count").items() if "Embed" in labels}
    sizes = {labels: value for labels, value in values(metrics, "batch_size_sum").items() if "Embed" in labels}
    assert sum(sizes.values()) == len(answers), metrics
    assert sum(batches.values()) < len(answers) / len(ways)
    counted = values(metrics, "throughput_total")
    for path in ("/embed", "/v1/embeddings", "/v2/models/lengths/infer", "/inference.GRPCInferenceService/ModelInfer"):
        assert sum(value for labels, value in counted.items() if f'"{path}"' in labels) >= ASKED, (path, counted)
