"""llama.cpp's own HTTP server, on a socket file: for what the in-process object does not offer.

That is tokenising, and prompts with images: `handle_completions` takes no such prompt, /completion does.
"""

import http.client
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from workers.engines.base import EngineCrashed


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(socket_path: Path, path: str, request: dict[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    """The answer to a POST, or to a GET without a request. Blocks. Raises EngineCrashed."""
    connection = _Connection(socket_path, timeout_s)
    try:
        if request is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, orjson.dumps(request), {"content-type": "application/json"})
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise EngineCrashed(f"llama.cpp answered {response.status} to {path}")
        answer: dict[str, Any] = orjson.loads(data)
        return answer
    except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
        raise EngineCrashed(f"llama.cpp did not answer {path}: {error}") from error
    finally:
        connection.close()


class SocketServer:
    """/completion with the manners of xllamacpp.Server, so that one `Call` serves both.

    Args:
        socket_path: where the server listens.
        silence_s: how long it may be silent.
    """

    def __init__(self, socket_path: Path, silence_s: float) -> None:
        self._socket_path = socket_path
        self._silence_s = silence_s

    def handle_completions(self, prompt: bytes, callback: Callable[[bytes], bool]) -> None:
        """Blocks until the generation ends or the callback returns True: then it hangs up, and the server stops."""
        connection = _Connection(self._socket_path, self._silence_s)
        try:
            connection.request("POST", "/completion", prompt, {"content-type": "application/json"})
            response = connection.getresponse()
            if "event-stream" not in response.headers.get("content-type", ""):
                data = response.read()
                callback(_verbose(data) if response.status == 200 else data)
                return
            for line in response:
                if line.startswith(b"data: ") and callback(_verbose(line[6:].strip())):
                    return
        except (OSError, http.client.HTTPException) as error:
            raise EngineCrashed(f"llama.cpp did not answer /completion: {error}") from error
        finally:
            connection.close()


def _verbose(data: bytes) -> bytes:
    """As the in-process object wraps it. Errors stay as they are."""
    return data if data.startswith(b'{"error"') else b'{"__verbose":' + data + b"}"
