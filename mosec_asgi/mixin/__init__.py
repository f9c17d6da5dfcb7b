"""Formats to mix into a worker: `class Inference(MsgpackMixin, Worker)`.

    MsgpackMixin            msgpack in and out
    TypedMsgPackMixin       msgpack in and out, checked against `forward`'s annotation    mosec-asgi[msgspec]
    PydanticMixin           JSON in and out, checked against `forward`'s annotations
    NumBinIPCMixin          numpy arrays between stages                                   mosec-asgi[numbin]
    MultipartMixin          forms: fields and files                                       mosec-asgi[multipart]
    RedisShmIPCMixin        what passes between stages waits in redis                     mosec-asgi[redis]

On the right is the extra that a mixin needs. Each loads its library when a worker that has it is made, and not before.
`PlasmaShmIPCMixin` is there for mosec's sake: it does nothing, and says that shared memory replaces it.
"""

from mosec_asgi.mixin.msgpack_worker import MsgpackMixin
from mosec_asgi.mixin.multipart_worker import File, Form, MultipartMixin
from mosec_asgi.mixin.numbin_worker import NumBinIPCMixin
from mosec_asgi.mixin.plasma_worker import PlasmaShmIPCMixin
from mosec_asgi.mixin.pydantic_worker import PydanticMixin
from mosec_asgi.mixin.redis_worker import RedisShmIPCMixin
from mosec_asgi.mixin.typed_worker import TypedMsgPackMixin

__all__ = [
    "File",
    "Form",
    "MsgpackMixin",
    "MultipartMixin",
    "NumBinIPCMixin",
    "PlasmaShmIPCMixin",
    "PydanticMixin",
    "RedisShmIPCMixin",
    "TypedMsgPackMixin",
]
