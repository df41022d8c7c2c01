"""What the events of the log are made of: kinds of fields, and the two kinds of events, of a wallet and of nobody's.

`schemas.events` is the file to read; `schemas.facts` has the facts that concern no wallet.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import core_schema

AMOUNT_NANO_MAX = 10**18
TOKENS_MAX = 10**9
SEGMENTS_MAX = 16

Asset = Literal["SHIVER", "USDC"]
Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,79}$")]
RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")]
Name = Annotated[str, Field(min_length=1, max_length=200)]
AmountNano = Annotated[int, Field(ge=0, le=AMOUNT_NANO_MAX)]
PositiveNano = Annotated[int, Field(gt=0, le=AMOUNT_NANO_MAX)]
SignedNano = Annotated[int, Field(ge=-AMOUNT_NANO_MAX, le=AMOUNT_NANO_MAX)]
#: As wide as a balance (numeric(38, 0) of migration 0005): a sum over amounts, each of at most AMOUNT_NANO_MAX.
BalanceNano = Annotated[int, Field(gt=-(10**38), lt=10**38)]
Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]
TimeMs = Annotated[int, Field(ge=0, le=2**53)]
Epoch = Annotated[int, Field(ge=1, le=10**6)]


class _Whole:
    """Lets nothing but an integer be a version: where a Literal stands alone, pydantic takes 1.0 and true for 1."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.chain_schema([core_schema.int_schema(strict=True), handler(source)])

    def __get_pydantic_json_schema__(
        self, schema: core_schema.ChainSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(schema["steps"][-1])


#: The version of an event.
First = Annotated[Literal[1], _Whole()]
Second = Annotated[Literal[2], _Whole()]

FROZEN = ConfigDict(frozen=True, extra="forbid", strict=True)


class WalletEvent(BaseModel):
    """An event of a wallet's own."""

    model_config = FROZEN

    version: First = 1
    wallet: Id
    at_ms: TimeMs

    @property
    def key(self) -> str:
        """The record's key, which decides its partition: all that concerns a wallet stands in one order."""
        return self.wallet


class RequestEvent(WalletEvent):
    """The kind of events that are about a request, and have its `request_id`."""


class AnyFact(BaseModel):
    """An event that concerns no wallet, in whichever version its kind has come to."""

    model_config = FROZEN

    @property
    @abstractmethod
    def key(self) -> str:
        """The record's key: what the fact is about. It has a colon, so it is no wallet that an operator can make."""


class Fact(AnyFact):
    """One whose kind still has its first version."""

    version: First = 1
    at_ms: TimeMs


class SecondFact(AnyFact):
    """One whose kind has its second version; `schemas.past` has the first."""

    version: Second = 2
    at_ms: TimeMs


class Unreadable(AnyFact):
    """What stands for a record that is no event and has an erratum (schemas/errata.py). It is never in the log."""

    type: Literal["unreadable"] = "unreadable"
    at_ms: Literal[0] = 0

    @property
    def key(self) -> str:
        """None: nobody knows what it was about."""
        return ""


class ModelPrice(BaseModel):
    """What a model costs, in nano units per token. An image token costs `image_factor` prompt tokens."""

    model_config = FROZEN

    model: Name
    in_nano: AmountNano
    out_nano: AmountNano
    image_factor: Annotated[int, Field(ge=1, le=100)] = 2
