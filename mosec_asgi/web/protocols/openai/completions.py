"""`POST /v1/completions`: prompts, each of which is gone on with."""

from __future__ import annotations

import pickle
from typing import Any

from mosec_asgi.events import Delta
from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.errors import Refused
from mosec_asgi.web.protocols.openai.fields import checked, flag, inputs, required, text, whole
from mosec_asgi.web.protocols.openai.generation import Generation, Shape, Written
from mosec_asgi.web.protocols.seam import Ask

# Prompts of a request.
MOST_PROMPTS = 128
# Bytes of the other fields, where there are several prompts.
MOST_BESIDE = 65_536
_CHECKS = {"echo": flag, "suffix": text, "best_of": whole(1, 1), "logprobs": whole(0, 5)}
_PROMPTS = inputs(MOST_PROMPTS)


class Completions(Generation):
    """Goes on with texts."""

    name = "/completions"
    param = "prompt"
    shape = Shape("cmpl", "text_completion", "text_completion")
    max_calls = MOST_PROMPTS

    def read(self, name: str, route: str, fields: dict[str, Any]) -> Ask:
        """Return a call for each prompt: the request's fields with that prompt are the item."""
        prompts = required(fields, "prompt", _PROMPTS)
        checked(fields, _CHECKS)
        wanted = self.wanted(name, fields)
        if len(prompts) > 1:
            # Each prompt's call has them.
            size = len(pickle.dumps({**fields, "prompt": None}, pickle.HIGHEST_PROTOCOL))
            if size > MOST_BESIDE:
                raise Refused(
                    f"the fields beside prompt take {size} bytes, and may take {MOST_BESIDE} where there are several "
                    "prompts; send several requests"
                )
        return Ask(route, [{**fields, "prompt": prompt} for prompt in prompts], wanted)

    def whole_choice(self, place: int, written: Written) -> dict[str, Any]:
        """Return a text."""
        return {"index": place, "text": written.text, "logprobs": None, "finish_reason": written.finish_reason}

    def choice(self, place: int, delta: Delta, *, first: bool) -> dict[str, Any]:
        """Return a piece of a text."""
        return {"index": place, "text": str(delta), "logprobs": None, "finish_reason": None}

    def last_choice(self, place: int, finish_reason: str) -> dict[str, Any]:
        """Return the end of a text."""
        return {"index": place, "text": "", "logprobs": None, "finish_reason": finish_reason}

    def describe(self) -> dict[str, Any]:
        """Describe the endpoint."""
        example = {"model": next(iter(self.models)), "prompt": "Three colours are", "max_tokens": 16}
        return described.post(
            "openai.completions",
            "Go on with texts",
            "CompletionRequest",
            "Completion",
            example,
            self.common.keyed,
            chunk="Completion",
        )
