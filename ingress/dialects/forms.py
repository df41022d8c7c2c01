"""What the forms of all dialects share: reading a body, naming what is wrong with it, and what has no effect here.

Nothing is ignored in silence. A parameter that has no effect is taken and named in `x-shiver-ignored`; a caller that
wants to be refused instead sends `x-shiver-strict: 1`. So a parameter that we do not know is taken too, as the clients
of this field expect, and named like the rest. What would falsify the answer is refused in any case, by its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError

from schemas.errors import ApiError

#: Names in x-shiver-ignored; more than these are cut off with "...".
IGNORED_MAX = 32
STOPS_MAX = 4
STOP_CHARS_MAX = 256
MAX_TOKENS_MAX = 10**7
#: What 0 asks for, and engines do not take: the likeliest token alone.
TOP_P_MIN = 1e-6
LOGIT_BIAS_MAX = 300


def _integral(value: Any) -> Any:
    """JSON has one kind of number: 5.0 is as whole as 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integrals(values: Any) -> Any:
    if isinstance(values, list) and any(type(value) is float for value in values):
        return [_integral(value) for value in values]
    return values


INTEGRAL = BeforeValidator(_integral)
INTEGRALS = BeforeValidator(_integrals)
Stop = Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)]
Stops = Stop | Annotated[list[Stop], Field(max_length=STOPS_MAX)]
MaxTokens = Annotated[int, Field(ge=0, le=MAX_TOKENS_MAX), INTEGRAL]
TopP = Annotated[float, Field(ge=0, le=1)]
#: Of what has no effect here: values come and go with OpenAI's models.
Word = Annotated[str, Field(max_length=64)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63), INTEGRAL]
#: A bias of 0 is none, whatever its key.
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100)]],
    Field(
        max_length=LOGIT_BIAS_MAX,
        json_schema_extra={
            "patternProperties": {"^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}},
            "additionalProperties": {"const": 0},
        },
    ),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]

#: Some write it before a text; RFC 8259 lets a reader pass over it.
_UTF8_MARK = b"\xef\xbb\xbf"
_NO_NAME = re.compile(r"[^A-Za-z0-9_.-]")


class _First(FailFast):
    __hash__ = object.__hash__  # type: ignore[assignment]  # unions ask for it


#: Of a list: what is wrong with its first bad member is told, and the others are not looked at. Without it a body of
#: a mebibyte has three hundred thousand errors, and makes everybody wait a second for one of them.
FIRST = _First()


class Form(BaseModel):
    """Part of a body. What is not a field of it is kept, to be named.

    `IDLE` are fields without an effect here, each with the values that ask for what happens anyway.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    IDLE: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    def idle(self) -> Iterator[str]:
        """Names of what was given and has no effect, in this part alone."""
        if self.model_extra:
            yield from (name for name, value in self.model_extra.items() if value is not None)
        for name in self.model_fields_set & self.IDLE.keys():
            value = getattr(self, name)
            if value is not None and value not in self.IDLE[name]:
                yield name


_F = TypeVar("_F", bound=BaseModel)


def read_form(form: type[_F], body: bytes) -> _F:
    """Raises ApiError invalid_json or invalid_request; it names the field and never repeats what was in it."""
    try:
        return form.model_validate_json(body.removeprefix(_UTF8_MARK))
    except ValidationError as error:
        # Of a union each member reports its own errors: the one that read deepest says what was meant.
        first, *rest = error.errors(include_input=False, include_url=False)
        same = [one for one in rest if one["loc"][:1] == first["loc"][:1]]
        worst = max(
            [first, *same], key=lambda one: (one["loc"][-1:] == ("type",), one["type"] not in _SHAPES, len(one["loc"]))
        )
        if worst["type"] == "json_invalid":
            why = worst["msg"].removeprefix("Invalid JSON: ")  # words and a place, nothing of the body
            raise ApiError("invalid_json", f"The body is not valid JSON: {why}.") from None
        path = _path(worst["loc"], worst["type"] == "missing", body)
        message = worst["msg"].removeprefix("Value error, ")
        if worst["type"] == "union_tag_invalid":  # pydantic's own words repeat the input
            message = f"type must be one of {worst.get('ctx', {}).get('expected_tags')}."
        if worst["type"] == "unknown_role":
            path += ".role"
        raise ApiError("invalid_request", f"{path or 'body'}: {message}", param=path or None) from None


def remade(form: type[_F], value: dict[str, Any], param: str) -> _F:
    """Another form's value as this one. Raises ApiError invalid_request for what this one does not take."""
    try:
        return form.model_validate(value)
    except ValidationError:
        message = f"{param}: a message of this role does not take what is in it."
        raise ApiError("invalid_request", message, param=param) from None


#: Errors that say of a union's member that it was not meant at all.
_SHAPES = frozenset(
    {"string_type", "list_type", "literal_error", "model_type", "dict_type", "int_type", "none_required"}
)


def _path(loc: tuple[int | str, ...], missing: bool, body: bytes) -> str:
    """The way to a field as the caller sees it: pydantic's has steps of its own for a union's members."""
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:  # pydantic reads a little more than JSON
        return ".".join(map(str, loc))[:100]
    steps: list[str] = []
    for at, step in enumerate(loc):
        if (isinstance(value, dict) and step in value) or (isinstance(value, list) and isinstance(step, int)):
            value = value[step]  # type: ignore[index]
        elif not (missing and at == len(loc) - 1):
            continue
        steps.append(str(step))
    return ".".join(steps)[:100]


def sampling_of(form: Any) -> dict[str, Any]:
    """The sampling parameters that were given, as `schemas.jobs.Sampling` takes them.

    Only fields of the form count: what else stands in a body under such a name was never looked at.
    """
    names = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "seed", "logit_bias")
    given: dict[str, Any] = {name: getattr(form, name) for name in names if name in type(form).model_fields}
    seed = given.get("seed")
    if given.get("top_p") == 0:
        given["top_p"] = TOP_P_MIN
    given["seed"] = None if seed is None else seed % 2**32
    given["logit_bias"] = token_biases(given.get("logit_bias")) or None
    return {name: value for name, value in given.items() if value is not None}


def token_biases(bias: Mapping[str, float] | None) -> dict[int, float]:
    """By token id. A bias of 0 is none. Raises ApiError for a key that is no token id."""
    given = {text: value for text, value in (bias or {}).items() if value}
    for text in given:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ApiError("invalid_request", "logit_bias: the keys are token ids.", param="logit_bias")
    return {int(text): value for text, value in given.items()}


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def ignored_names(names: Iterator[str], headers: Mapping[str, str]) -> tuple[str, ...]:
    """The names for x-shiver-ignored, each once. Raises ApiError unsupported_parameter under x-shiver-strict: 1."""
    unique = list(dict.fromkeys(_NO_NAME.sub("_", name)[:64] for name in names))
    if not unique:
        return ()
    if headers.get("x-shiver-strict", "").strip().lower() in ("1", "true"):
        raise ApiError("unsupported_parameter", f"The parameter {unique[0]} has no effect here.", param=unique[0])
    return (*unique[:IGNORED_MAX], "...") if len(unique) > IGNORED_MAX else tuple(unique)
