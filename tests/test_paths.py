from __future__ import annotations

import pytest

from mosec_asgi.errors import DefinitionError
from mosec_asgi.paths import check_distinct, parameters, without_kinds


def test_parameters_have_names_and_kinds() -> None:
    assert parameters("/a/{b}/{c:int}/{d:path}") == {"b": "str", "c": "int", "d": "path"}
    assert parameters("/a") == {}
    assert without_kinds("/a/{b}/{c:int}") == "/a/{b}/{c}"


@pytest.mark.parametrize("path", ["/a/{", "/a/{}", "/a/{1}", "/a/{b:}", "/{a}}", "/{a}/{a}", "/{a:regex}"])
def test_what_is_no_parameter_is_refused(path: str) -> None:
    with pytest.raises(DefinitionError, match="the route"):
        parameters(path)


def test_two_routes_for_the_same_requests_are_refused() -> None:
    check_distinct(["/a/{b}", "/a/{b:int}", "/a/b", "/c/{b}"])
    with pytest.raises(DefinitionError, match=r"/a/\{b\} and /a/\{c\} take the same requests"):
        check_distinct(["/a/{b}", "/a/{c}"])
