"""How clients speak, beside the plain routes: `OpenAI`, `OpenInference`, and what a protocol of one's own is made of.

    from mosec_asgi.protocols import OpenAI

    server.add_protocol(OpenAI(chat={"name": "/route"}))

docs/protocols.md says all of it. `Delta` is for workers: a piece of text with more than its text. So are `StopTexts`,
which ends a text where a request says so, and `Tensor`: an input or an output, as `OpenInference` tells of it.
"""

from mosec_asgi.events import Delta
from mosec_asgi.stops import StopTexts
from mosec_asgi.web.protocols.open_inference.description import Tensor
from mosec_asgi.web.protocols.open_inference.protocol import OpenInference
from mosec_asgi.web.protocols.openai.protocol import OpenAI
from mosec_asgi.web.protocols.seam import Ask, Endpoint, EventForm, Problem, Protocol, Standing, json_response
from mosec_asgi.web.responses import Response

__all__ = [
    "Ask",
    "Delta",
    "Endpoint",
    "EventForm",
    "OpenAI",
    "OpenInference",
    "Problem",
    "Protocol",
    "Response",
    "Standing",
    "StopTexts",
    "Tensor",
    "json_response",
]
