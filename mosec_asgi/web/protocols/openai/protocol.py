"""`OpenAI`: which models there are, and which routes they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mosec_asgi.errors import DefinitionError
from mosec_asgi.web.protocols.openai import described
from mosec_asgi.web.protocols.openai.chat import Chat
from mosec_asgi.web.protocols.openai.completions import Completions
from mosec_asgi.web.protocols.openai.embeddings import Embeddings
from mosec_asgi.web.protocols.openai.models import Models, OneModel
from mosec_asgi.web.protocols.openai.rerank import Rerank
from mosec_asgi.web.protocols.openai.service import Common
from mosec_asgi.web.protocols.seam import Endpoint, Protocol


class OpenAI(Protocol):
    """OpenAI's API: chat, completions, embeddings, and Cohere's and Jina's rerank beside them.

        server.append_worker(Write, route="/chat")
        server.append_worker(Embed, max_batch_size=32, route="/embed")
        server.add_protocol(OpenAI(chat={"smollm2": "/chat"}, embeddings={"minilm": "/embed"}))

    The routes stay what they are, and their workers take the requests of both in common batches. docs/protocols.md says
    what `forward` is given for each kind of model, and what it returns.
    """

    def __init__(
        self,
        *,
        chat: Mapping[str, str] | None = None,
        completions: Mapping[str, str] | None = None,
        embeddings: Mapping[str, str] | None = None,
        rerank: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
        shortens: Iterable[str] = (),
        keys: Iterable[str] | None = None,
        prefix: str = "/v1",
    ) -> None:
        """Name the models.

        Args:
            chat: language models that go on with a conversation: their routes by their names.
            completions: language models that go on with a text, likewise.
            embeddings: models that make a vector of a text, likewise.
            rerank: models that score a pair of texts, likewise.
            aliases: other names, and the models that they stand for.
            shortens: names of embedders that were trained to have their vectors cut short, to what a request says in
                `dimensions`; of others any other number than they have is refused.
            keys: what clients must send one of, as `authorization: Bearer <key>`; for none leave it out.
            prefix: of the paths.

        Raises:
            DefinitionError: an argument does not fit; the text says what to change.
        """
        kinds = {"chat": chat, "completions": completions, "embeddings": embeddings, "rerank": rerank}
        models = {kind: _checked_models(kind, given) for kind, given in kinds.items() if given is not None}
        names = list(dict.fromkeys(name for given in models.values() for name in given))
        if not names:
            raise DefinitionError(
                "OpenAI needs a model: OpenAI(chat={'name': '/route'}), embeddings=, completions=, ..."
            )
        if aliases is not None and not isinstance(aliases, Mapping):
            raise DefinitionError(f"aliases must be a dictionary such as {{'other name': 'name'}}, not {aliases!r}")
        for alias, name in (aliases or {}).items():
            if name not in names or alias in names:
                there = ", ".join(map(repr, names))
                raise DefinitionError(f"aliases: {alias!r} must be a new name for one of {there}, not for {name!r}")
        # What can be read once is read once: keys that nobody finds any more would let everybody in.
        shortens = shortens if isinstance(shortens, str) else list(shortens)
        if isinstance(shortens, str) or not set(shortens) <= set(models.get("embeddings", {})):
            raise DefinitionError(f"shortens must be a list of names of `embeddings`, not {shortens!r}")
        known = None if keys is None or isinstance(keys, (str, bytes)) else list(keys)
        if keys is not None and not (known and all(isinstance(key, str) and key for key in known)):
            raise DefinitionError(
                "keys must be a list of texts, none of them empty, and at least one; leave it out to let everybody in"
            )
        if prefix and (not prefix.startswith("/") or prefix.endswith("/") or "{" in prefix):
            raise DefinitionError(f"prefix must begin with a slash and not end with one, such as '/v1', not {prefix!r}")
        common = Common(prefix, aliases or {}, known or ())
        makers: dict[str, Any] = {"chat": Chat, "completions": Completions, "rerank": Rerank}
        self._keyed = common.keyed
        self._endpoints: list[Endpoint] = [Models(common, names), OneModel(common, names)]
        for kind, given in models.items():
            made = Embeddings(common, given, shortens) if kind == "embeddings" else makers[kind](common, given)
            self._endpoints.append(made)

    def endpoints(self) -> Sequence[Endpoint]:
        """Return the endpoints of the kinds of models that there are."""
        return self._endpoints

    def schemas(self) -> Mapping[str, Any]:
        """Return the schemas of requests and answers."""
        return described.schemas_of(self._endpoints)


def _checked_models(kind: str, given: Any) -> Mapping[str, str]:
    pairs = list(given.items()) if isinstance(given, Mapping) else []
    if not pairs or not all(isinstance(name, str) and name and isinstance(route, str) for name, route in pairs):
        raise DefinitionError(f"{kind} must be a dictionary such as {{'name': '/route'}}, not {given!r}")
    return dict(pairs)
