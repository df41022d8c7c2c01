"""What an ingress writes into a node's mailbox."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from schemas.event_base import Id, Name, RequestId, TimeMs

MESSAGES_MAX = 2048
PROMPTS_MAX = 2048
PROMPT_CHARS_MAX = 2**20
PROMPT_IDS_MAX = 2**20
TOOLS_MAX = 128
CHOICES_MAX = 8
TOP_LOGPROBS_MAX = 20
IMAGES_MAX = 16
#: 4 MiB of image, in base64.
IMAGE_CHARS_MAX = 4 * (4 * 2**20 // 3 + 1)
LOGIT_BIAS_MAX = 1024
DIMENSIONS_MAX = 8192

_FROZEN = ConfigDict(frozen=True, extra="forbid")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
ImageType = Literal["image/png", "image/jpeg", "image/webp", "image/gif"]
#: A prompt as text, or as token ids of the model that is asked for.
Prompt = (
    Annotated[str, Field(max_length=PROMPT_CHARS_MAX)]
    | Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=PROMPT_IDS_MAX)]
)


class Sampling(BaseModel):
    model_config = _FROZEN

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logit_bias: Annotated[
        dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=LOGIT_BIAS_MAX)
    ] = {}


class Tool(BaseModel):
    """A function that the model may call. `parameters` is a JSON schema; None takes any object.

    With `strict` the arguments of a call always validate against it.
    """

    model_config = _FROZEN

    name: ToolName
    description: Annotated[str, Field(max_length=65_536)] = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class NamedTool(BaseModel):
    """The one tool that has to be called."""

    model_config = _FROZEN

    name: ToolName


class JsonObject(BaseModel):
    """The answer is a JSON object, any."""

    model_config = _FROZEN

    type: Literal["json_object"] = "json_object"


class JsonSchema(BaseModel):
    """The answer validates against a JSON schema (in Python `schema_`, in JSON `schema`), strict or not."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_alias=True, validate_by_name=True, serialize_by_alias=True
    )

    type: Literal["json_schema"] = "json_schema"
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool = False


ResponseFormat = Annotated[JsonObject | JsonSchema, Field(discriminator="type")]


class Image(BaseModel):
    """An image that the ingress fetched and vetted; `data` is base64 of the file."""

    model_config = _FROZEN

    media_type: ImageType
    data: Annotated[str, Field(min_length=1, max_length=IMAGE_CHARS_MAX)]


class Job(BaseModel):
    """One attempt at one request.

    The node answers on topic `lane`, which is this request's alone until its last record. It must claim before
    `expires_at_ms`, stop at `max_tokens`, and be done by `deadline_at_ms` (times of the ingress's clock: a node
    compares them with the record's own timestamp plus the time that passed since it read it).

    What it asks for, by `task`:

    chat        `messages` through the model's template. Their content is a string, null, or a list of parts
                {"type": "text", "text": ...} and {"type": "image", "index": i}, which is `images[i]`.
    completion  `prompts[0]` as it is, no template; with `echo` the first text is the prompt's own.
    embedding   a vector for each of `prompts`, of `dimensions` numbers where that is set (cut and scaled to length 1).

    `n` choices are generated from the same prompt, each up to `max_tokens` and with a seed of its own (the i-th has
    `seed` + i). They run at once as far as the node has free places, so a job takes 1 to `n` places. `prefix_ids`, the
    ids that earlier attempts delivered, go with one choice only. `logprobs` is the number of alternatives to tell
    with each token, 0 for the token's own logprob alone, None for nothing.
    """

    model_config = _FROZEN

    kind: Literal["job"] = "job"
    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]
    owner: Id  # boot id of the ingress: a node gives up on the jobs of one that is dead
    lane: Name
    model: Name
    task: Literal["chat", "completion", "embedding"] = "chat"
    messages: Annotated[list[dict[str, Any]], Field(max_length=MESSAGES_MAX)] = []
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=PROMPTS_MAX)] = ()
    images: Annotated[tuple[Image, ...], Field(max_length=IMAGES_MAX)] = ()
    tools: Annotated[tuple[Tool, ...], Field(max_length=TOOLS_MAX)] = ()
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    sampling: Sampling
    stop: Annotated[tuple[str, ...], Field(max_length=4)] = ()
    max_tokens: Annotated[int, Field(ge=0, le=10**7)]
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] = 1
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    echo: bool = False
    dimensions: Annotated[int, Field(ge=1, le=DIMENSIONS_MAX)] | None = None
    prefix_ids: tuple[TokenId, ...] = ()
    expires_at_ms: TimeMs
    deadline_at_ms: TimeMs
    trace: Annotated[str, Field(max_length=200)] = ""  # W3C traceparent

    @model_validator(mode="after")
    def _is_of_one_task(self) -> Job:
        problem = _contradiction(self)
        if problem is not None:
            raise ValueError(problem)
        return self


def _contradiction(job: Job) -> str | None:
    """What in a job contradicts its task; never repeats the content."""
    chat, prompts = job.task == "chat", len(job.prompts)
    if chat != bool(job.messages) or chat == bool(prompts):
        return "a chat has messages and no prompts, another task has prompts and no messages"
    if job.task == "completion" and prompts != 1:
        return "a completion has one prompt"
    if not chat and (job.tools or job.images or job.response_format):
        return "tools, images and a response format belong to a chat"
    if (job.echo and job.task != "completion") or (job.dimensions and job.task != "embedding"):
        return "echo belongs to a completion, dimensions to an embedding"
    if job.task == "embedding" and (job.n > 1 or job.logprobs is not None or job.prefix_ids):
        return "an embedding has no choices, logprobs or prefix"
    if job.n > 1 and job.prefix_ids:
        return "several choices cannot be continued"
    names = [tool.name for tool in job.tools]
    if len(set(names)) < len(names):
        return "two tools have the same name"
    if isinstance(job.tool_choice, NamedTool) and job.tool_choice.name not in names:
        return "the chosen tool is not among the tools"
    if job.tool_choice == "required" and not names:
        return "a tool call is required, and there are no tools"
    return None


class Cancel(BaseModel):
    """Stop this attempt, in prefill too. The node answers with `end` where it had begun."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cancel"] = "cancel"
    request_id: RequestId
    attempt: Annotated[int, Field(ge=1, le=16)]


Letter = Annotated[Job | Cancel, Field(discriminator="kind")]
_LETTER: TypeAdapter[Letter] = TypeAdapter(Letter)


class UnreadableLetter(ValueError):
    """A mailbox record that is neither a job nor a cancel. Its text never repeats the content: it may hold a prompt."""


def parse(value: bytes) -> Letter:
    try:
        return _LETTER.validate_json(value)
    except ValidationError as error:
        raise UnreadableLetter(
            "; ".join(f"{e['loc']}: {e['type']}" for e in error.errors(include_input=False))
        ) from None


def dump(letter: Letter) -> bytes:
    return _LETTER.dump_json(letter)
