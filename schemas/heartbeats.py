"""What nodes and ingresses say of themselves, once a second.

Readers judge freshness by arrival, never by a sender's clock."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.event_base import Id, Name, TimeMs

INTERVAL_S = 1.0
#: A node or ingress unheard of for this long gets no new work.
STALE_S = 3.5


Modality = Literal["text", "image", "embedding"]


class ServedModel(BaseModel):
    """A model that a node serves.

    `modalities`: "text" answers chats and completions, "image" takes images in chats, "embedding" makes vectors.
    `tools`: its template takes tools. `configured` is False for an upstream that has no key: it gets no job.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    context_tokens: Annotated[int, Field(gt=0, le=10**8)]
    modalities: Annotated[tuple[Modality, ...], Field(min_length=1, max_length=3)] = ("text",)
    tools: bool = False
    configured: bool = True


class NodeHeartbeat(BaseModel):
    """`slots` generations may run at once, whatever their models; a draining node takes no new job.

    A model whose engine is being loaded again is left out of `models` until it is back.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_id: Id
    provider_id: Id
    at_ms: TimeMs
    version: Name
    engine: Name
    models: Annotated[tuple[ServedModel, ...], Field(max_length=64)]
    slots: Annotated[int, Field(ge=0, le=4096)]
    #: Generations that run or wait here now, by the ingress (boot id) that sent them. An ingress counts its own exactly
    #: and needs only those of the others, so that a heartbeat a second old costs it no slot.
    busy_by_owner: Annotated[dict[Id, Annotated[int, Field(ge=0, le=4096)]], Field(max_length=4096)]
    draining: bool = False
    #: What the node measured from a job's arrival to its first token, lately; None where it has not had any.
    first_token_ms: Annotated[int, Field(ge=0, le=10**7)] | None = None


class IngressHeartbeat(BaseModel):
    """`lanes` reply topics, numbered from 0, exist and may be written to: nodes look them up ahead of the first job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    boot_id: Id
    at_ms: TimeMs
    lanes: Annotated[int, Field(ge=0, le=100_000)]
    leaving: bool = False
