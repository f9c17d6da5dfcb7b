from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

import pytest

from mosec_asgi import Worker
from mosec_asgi.errors import ClientError, DefinitionError, MosecError, ServerError
from mosec_asgi.labels import MOST_KEY, Label, Labels, check_hooks, checked_key


class Text(Worker):
    """Costs its words, and is batched by its first letter."""

    def forward(self, data: Any) -> Any:
        return data

    @staticmethod
    def cost(item: Any) -> Any:
        return item if isinstance(item, (int, float)) else len(item.split())

    @classmethod
    def batch_key(cls, item: Any) -> Any:
        if item == "secret":
            raise ValueError("a secret")
        if item == "refused":
            raise ClientError("no adapter")
        return item[0] if isinstance(item, str) else item


class Bodies(Text):
    @staticmethod
    def cost_of_body(body: bytes) -> int:
        return body.count(b" ") + 1

    @staticmethod
    def batch_key_of_body(body: bytes) -> str:
        return body[:1].decode()


def test_an_item_has_a_cost_and_a_key() -> None:
    assert Labels(Text, counts=True, groups=True).of("a b c") == Label(3, "a")
    assert Labels(Text, counts=True).of("a b c") == Label(3, "")
    assert Labels(Text, groups=True).of("a b c") == Label(1, "a")


def test_a_body_costs_its_length_and_has_the_key_of_its_header() -> None:
    assert Labels(Text, counts=True, groups=True).of_body(b"a b c", "french") == Label(5, "french")


def test_a_class_may_read_both_from_the_body() -> None:
    assert Labels(Bodies, counts=True, groups=True).of_body(b"a b c", "french") == Label(3, "a")


@pytest.mark.parametrize("cost", [-1, 2.5, 1 << 63])
def test_what_is_no_cost_is_an_error_of_the_server(cost: Any) -> None:
    with pytest.raises(ServerError, match=r"Text.cost must return a whole number, 0 or more, not "):
        Labels(Text, counts=True).of(cost)


class Unwilling(float):
    def __index__(self) -> int:
        raise ValueError("no whole number")


def test_a_cost_that_raises_is_an_error_of_the_server() -> None:
    with pytest.raises(ServerError, match=r"Text.cost must return a whole number, 0 or more, not 1.5"):
        Labels(Text, counts=True).of(Unwilling(1.5))


def test_what_is_no_text_is_no_key() -> None:
    with pytest.raises(ServerError, match=r"Text.batch_key must return text, not 5"):
        Labels(Text, groups=True).of(5)


def test_a_key_has_a_bound() -> None:
    class Long(Text):
        @staticmethod
        def batch_key(item: str) -> str:
            return item

    assert Labels(Long, groups=True).of("k" * MOST_KEY).key == "k" * MOST_KEY
    with pytest.raises(ClientError, match=f"a key of {MOST_KEY + 1} bytes, and a key has at most {MOST_KEY}"):
        Labels(Long, groups=True).of("k" * (MOST_KEY + 1))
    with pytest.raises(ClientError, match="no Unicode"):
        Labels(Long, groups=True).of("\ud800")


def test_an_exception_of_a_hook_is_named_without_its_text() -> None:
    with pytest.raises(ServerError, match=r"^Text.batch_key raised ValueError$"):
        Labels(Text, groups=True).of("secret")
    with pytest.raises(ClientError, match="no adapter"):
        Labels(Text, groups=True).of("refused")


def test_an_item_above_the_budget_is_refused_where_that_was_asked() -> None:
    assert Labels(Text, counts=True, most=3).of("a b c").cost == 3
    with pytest.raises(MosecError, match="a cost of 4, and Text takes at most 3") as caught:
        Labels(Text, counts=True, most=3).of("a b c d")
    assert caught.value.code == 413


def test_labels_cross_to_another_process() -> None:
    labels = Labels(Text, counts=True, groups=True, most=7)
    assert pickle.loads(pickle.dumps(labels)) == labels


def test_a_hook_needs_no_instance() -> None:
    class Bound(Worker):
        def forward(self, data: Any) -> Any:
            return data

        def cost(self, item: Any) -> int:
            return 1

    check_hooks(Text)
    with pytest.raises(DefinitionError, match=r"write it as a static method: `@staticmethod def cost\(item\):`"):
        check_hooks(Bound)


def test_what_is_no_exception_is_an_error_of_the_hook_too() -> None:
    class Exits(Text):
        @staticmethod
        def cost(item: Any) -> int:
            raise SystemExit("secret")

    with pytest.raises(ServerError, match=r"^Exits.cost raised SystemExit$"):
        Labels(Exits, counts=True, groups=False).of("x")


def test_a_key_is_plain_text_whatever_it_is_a_member_of() -> None:
    class Adapter(str, Enum):
        FIRST = "first"

    key = checked_key(Adapter.FIRST, "the key")
    assert key == "first"
    assert type(key) is str
