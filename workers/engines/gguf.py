"""The part of a GGUF file's head that a node needs: names, sizes and the vocabulary. Weights are not read."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from workers.engines.base import EngineUnavailable
from workers.engines.vocabulary import Style, token_bytes

_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_UNKNOWN_TOKEN, _CONTROL_TOKEN = 2, 3
_NO_POOLING = 0
# A head larger than this is a broken or hostile file, not a model: the largest vocabularies take some 20 MB.
_ITEMS_LIMIT, _STRING_LIMIT_BYTES = 4_000_000, 16 << 20

Value = int | float | str | list["Value"]


@dataclass(frozen=True, slots=True)
class GgufHead:
    """What the head of a GGUF file says.

    Attributes:
        name: the model's own name, or the file's.
        context_tokens: the context it was trained for.
        table: bytes by id; empty for control tokens.
        special_tokens: texts of the control tokens.
        controls: texts of the control tokens, by id.
        adds_bos: whether the model wants its first token before every text.
        pools: whether it makes one vector of a text, and so no text.
        embedding_size: numbers of a vector.
        bos_text, eos_text: texts of these tokens, "" where the file names none.
        weights_bytes: size of the file.
    """

    name: str
    context_tokens: int
    table: tuple[bytes, ...]
    special_tokens: tuple[str, ...]
    controls: dict[int, str]
    adds_bos: bool
    pools: bool
    embedding_size: int
    bos_text: str
    eos_text: str
    weights_bytes: int


def read_gguf(path: Path) -> GgufHead:
    """Read the head of a GGUF file.

    Raises: EngineUnavailable where the file is missing, broken or of a kind whose tokens cannot be spelt in bytes.
    """
    try:
        with path.open("rb") as file:
            values = _read_values(file)
        return _head(path, values)
    except FileNotFoundError as error:
        raise EngineUnavailable(f"no model at {path}") from error
    except (OSError, struct.error, ValueError, KeyError, TypeError) as error:
        raise EngineUnavailable(f"{path.name} is not a GGUF model this node can read: {error}") from error


def _head(path: Path, values: dict[str, Value]) -> GgufHead:
    architecture = values["general.architecture"]
    kind = values["tokenizer.ggml.model"]
    style: Style = "sentencepiece" if kind == "llama" else "byte-level"
    if kind not in ("llama", "gpt2"):
        raise ValueError(f"its tokenizer is of the kind {kind!r}; 'gpt2' (byte-level) and 'llama' are supported")
    tokens = [str(token) for token in _list(values["tokenizer.ggml.tokens"])]
    no_types: list[Value] = [1] * len(tokens)
    types = _list(values.get("tokenizer.ggml.token_type", no_types))
    control = [kind in (_UNKNOWN_TOKEN, _CONTROL_TOKEN) for kind in types]

    def text_of(key: str) -> str:
        at = values.get(f"tokenizer.ggml.{key}")
        return tokens[at] if isinstance(at, int) and 0 <= at < len(tokens) else ""

    context_tokens = values[f"{architecture}.context_length"]
    if not isinstance(context_tokens, int) or context_tokens < 2:
        raise ValueError("it names no usable context length")
    return GgufHead(
        name=path.stem,
        context_tokens=context_tokens,
        table=tuple(
            b"" if is_control else token_bytes(token, style) for token, is_control in zip(tokens, control, strict=True)
        ),
        special_tokens=tuple(token for token, is_control in zip(tokens, control, strict=True) if is_control and token),
        controls={at: token for at, (token, is_control) in enumerate(zip(tokens, control, strict=True)) if is_control},
        adds_bos=bool(values.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        pools=values.get(f"{architecture}.pooling_type") not in (None, _NO_POOLING),
        embedding_size=_natural(values.get(f"{architecture}.embedding_length", 0)),
        bos_text=text_of("bos_token_id"),
        eos_text=text_of("eos_token_id"),
        weights_bytes=path.stat().st_size,
    )


def _natural(value: Value) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a size in its head is no natural number")
    return value


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise ValueError("a list was expected in its head")
    return value


def _read_values(file: BinaryIO) -> dict[str, Value]:
    if file.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, _tensors, count = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is not known here")
    if count > _ITEMS_LIMIT:
        raise ValueError("its head is too large")
    values: dict[str, Value] = {}
    for _ in range(count):
        key = _read_string(file)
        (kind,) = struct.unpack("<I", file.read(4))
        values[key] = _read_value(file, kind)
    return values


def _read_string(file: BinaryIO) -> str:
    (size_bytes,) = struct.unpack("<Q", file.read(8))
    if size_bytes > _STRING_LIMIT_BYTES:
        raise ValueError("a string in its head is too large")
    data = file.read(size_bytes)
    if len(data) != size_bytes:
        raise ValueError("its head is cut short")
    return data.decode("utf-8", errors="replace")


def _read_value(file: BinaryIO, kind: int, depth: int = 0) -> Value:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        item_kind, count = struct.unpack("<IQ", file.read(12))
        if count > _ITEMS_LIMIT or depth > 2:
            raise ValueError("a list in its head is too large")
        if item_kind in _NUMBERS:
            form = _NUMBERS[item_kind]
            return list(struct.unpack(f"<{count}{form[1:]}", file.read(count * struct.calcsize(form))))
        return [_read_value(file, item_kind, depth + 1) for _ in range(count)]
    form = _NUMBERS[kind]
    (number,) = struct.unpack(form, file.read(struct.calcsize(form)))
    return number
