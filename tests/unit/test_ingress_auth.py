"""Which key a request's headers hold."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from ingress.auth import given
from schemas.errors import ApiError


def headers(*lines: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode()) for name, value in lines])


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        ([], None),
        ([("authorization", "Bearer a")], "a"),
        ([("authorization", "bearer  a ")], "a"),
        ([("x-api-key", " a")], "a"),
        ([("authorization", "Bearer a"), ("x-api-key", "a")], "a"),
        ([("authorization", "Bearer a"), ("authorization", "Bearer a")], "a"),
        ([("authorization", "Basic b"), ("x-api-key", "a")], "a"),
        ([("authorization", "Bearer "), ("x-api-key", "")], None),
    ],
)
def test_the_key_that_is_given(lines: list[tuple[str, str]], key: str | None) -> None:
    assert given(headers(*lines)) == key


@pytest.mark.parametrize("names", [("authorization", "x-api-key"), ("authorization",) * 2, ("x-api-key",) * 2])
def test_two_different_keys_are_refused_wherever_they_stand(names: tuple[str, str]) -> None:
    values = {"authorization": "Bearer ", "x-api-key": ""}
    with pytest.raises(ApiError) as refused:
        given(headers((names[0], values[names[0]] + "a"), (names[1], values[names[1]] + "b")))
    assert refused.value.code == "conflicting_api_keys"
