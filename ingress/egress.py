"""Fetches the images that requests point to, and nothing else. The only door from the ingress to the outside.

A URL comes from a stranger, so: https on port 443 alone; the name is looked up once, every address of it must be
global, and the connection goes to the address that was judged, so that a name that changes its mind gains nothing; no
redirect is followed; answers are cut at a size and a time; what arrives is judged by `ingress.pictures`, whatever it
says it is. `SHRK_EGRESS_ALLOW` ("host:port,host:port", empty by default) opens single targets, over http too, for
tests and for an operator's own image store.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from ingress import pictures
from ingress.chat import Chat
from schemas.errors import ApiError
from schemas.jobs import Image

#: Of one image, and of all of a request: a job has to fit into a record of 8 MiB, in base64.
IMAGE_BYTES_MAX = 4 * 2**20
REQUEST_BYTES_MAX = 4 * 2**20
#: A node holds them all at once, at up to 16 bytes a pixel.
REQUEST_PIXELS_MAX = 4 * pictures.PIXELS_MAX
URL_CHARS_MAX = 2048
HEAD_BYTES_MAX = 32_768
RESOLVE_S = 5.0
CONNECT_S = 5.0
FETCH_S = 15.0
#: Fetches at once in this process, and of one request.
FETCHES_MAX = 32
FETCHES_OF_REQUEST_MAX = 4
_READ_BYTES = 65_536

Resolve = Callable[[str, int], Awaitable[list[str]]]


class Target(NamedTuple):
    """Where a URL points to. `open` targets are the operator's own choice and need not be global."""

    tls: bool
    host: str
    port: int
    path: str
    open: bool


def allowed_from(text: str) -> frozenset[tuple[str, int]]:
    """SHRK_EGRESS_ALLOW as (host, port). Raises ValueError for what is not host:port."""
    targets: set[tuple[str, int]] = set()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        host, _, port = entry.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"SHRK_EGRESS_ALLOW is host:port,host:port, not {entry!r}")
        targets.add((host.strip("[]").lower(), int(port)))
    return frozenset(targets)


def is_global(text: str) -> bool:
    """Whether an address is on the public Internet, and hides none inside that is not."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is not None or any(address in net for net in _TUNNELS):
            return False  # nobody serves images through a transition mechanism
        if address not in _UNICAST:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


_UNICAST = ipaddress.ip_network("2000::/3")
_TUNNELS = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "2001::/23")]


async def _getaddrinfo(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Egress:
    """One for the process. `resolve` gives the addresses of a name; tests bring their own."""

    def __init__(self, allow: frozenset[tuple[str, int]] = frozenset(), resolve: Resolve = _getaddrinfo) -> None:
        self._allow = allow
        self._resolve = resolve
        self._tls = ssl.create_default_context()
        self._places = asyncio.Semaphore(FETCHES_MAX)

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Egress:
        """Raises ValueError for a malformed SHRK_EGRESS_ALLOW."""
        return cls(allowed_from(env.get("SHRK_EGRESS_ALLOW", "")))

    async def with_images(self, chat: Chat) -> Chat:
        """The chat with its images fetched and vetted. Raises ApiError invalid_image_url or invalid_image."""
        turns = asyncio.Semaphore(FETCHES_OF_REQUEST_MAX)
        unique = list(dict.fromkeys(chat.image_urls))

        async def one(url: str) -> pictures.Picture:
            async with turns:
                return await self.picture(url)

        tasks = [asyncio.create_task(one(url)) for url in unique]
        try:
            by_url = dict(zip(unique, await asyncio.gather(*tasks), strict=True))
        finally:
            for task in tasks:
                task.cancel()
        found = [by_url[url] for url in chat.image_urls]
        if sum(len(picture.data) for picture in found) > REQUEST_BYTES_MAX:
            raise _bad_image(f"the images of a request have at most {REQUEST_BYTES_MAX // 2**20} MiB together.")
        if sum(picture.width * picture.height for picture in found) > REQUEST_PIXELS_MAX:
            raise _bad_image(f"the images of a request have at most {REQUEST_PIXELS_MAX} pixels together.")
        images = [Image(media_type=one.media_type, data=base64.b64encode(one.data).decode()) for one in found]
        return replace(chat, images=tuple(images), image_bound_tokens=sum(pictures.bound_tokens(one) for one in found))

    async def picture(self, url: str) -> pictures.Picture:
        """What a data URI holds or an https URL points to. Raises ApiError."""
        data = _of_data_uri(url) if url[:5].lower() == "data:" else await self._fetch(url)
        try:
            return await asyncio.to_thread(pictures.vet, data)
        except pictures.NoPicture as error:
            raise _bad_image(f"{error}.") from None

    async def _fetch(self, url: str) -> bytes:
        target = self._target(url)
        try:
            async with self._places, asyncio.timeout(FETCH_S):
                return await self._get(target, await self._address(target))
        except TimeoutError:
            raise _bad_url(f"the image did not come within {FETCH_S:.0f} s.") from None
        except (OSError, ssl.SSLError, UnicodeError, httptools.HttpParserError) as error:
            raise _bad_url(f"its host cannot be reached ({type(error).__name__}).") from None

    def _target(self, url: str) -> Target:
        if len(url) > URL_CHARS_MAX or not url.isascii() or any(char <= " " or char == "\x7f" for char in url):
            raise _bad_url(f"a URL is at most {URL_CHARS_MAX} ASCII characters without blanks.")
        try:
            parts: SplitResult = urlsplit(url)
            host, port, scheme = (parts.hostname or "").rstrip("."), parts.port, parts.scheme.lower()
        except ValueError:
            raise _bad_url("it is malformed.") from None
        port = port if port is not None else 80 if scheme == "http" else 443
        opened = (host, port) in self._allow
        if scheme != "https" and not (scheme == "http" and opened):
            raise _bad_url("only https URLs and data URIs are taken.")
        if not host or "@" in parts.netloc or (port != 443 and not opened):
            raise _bad_url("it needs a host, no user, and port 443.")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(scheme == "https", host, port, path, opened)

    async def _address(self, target: Target) -> str:
        """The address to connect to: looked up once, and judged. Raises ApiError, OSError, TimeoutError."""
        async with asyncio.timeout(RESOLVE_S):
            addresses = await self._resolve(target.host, target.port)
        if not addresses or not (target.open or all(map(is_global, addresses))):
            raise _bad_url("its host has no public address.")
        return addresses[0]

    async def _get(self, target: Target, address: str) -> bytes:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(
                address,
                target.port,
                ssl=self._tls if target.tls else None,
                server_hostname=target.host if target.tls else None,
                limit=_READ_BYTES,
            )
        try:
            host = f"[{target.host}]" if ":" in target.host else target.host
            writer.write(
                f"GET {target.path} HTTP/1.1\r\nHost: {host}:{target.port}\r\nAccept: image/*\r\n"
                "Accept-Encoding: identity\r\nUser-Agent: shiver\r\nConnection: close\r\n\r\n".encode()
            )
            answer = _Answer()
            parser = httptools.HttpResponseParser(answer)
            while not answer.complete:
                chunk = await reader.read(_READ_BYTES)
                if not chunk:
                    break
                answer.take_head(len(chunk))
                parser.feed_data(chunk)
                answer.check(parser.get_status_code() if answer.begun else None)
            return answer.body()
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError, ssl.SSLError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()


class _Answer:
    """An HTTP answer as httptools reports it; raises ApiError as soon as it is not an image that we would take."""

    def __init__(self) -> None:
        self.begun = False
        self.complete = False
        self._head_bytes = 0
        self._size = 0
        self._declared: int | None = None
        self._chunked = False
        self._encoding = b"identity"
        self._chunks: list[bytes] = []

    def take_head(self, size: int) -> None:
        if not self.begun:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES_MAX + _READ_BYTES:
                raise _bad_url("its host sent a head without an end.")

    def check(self, status: int | None) -> None:
        if status is None:
            return
        if 300 <= status < 400:
            raise _bad_url(f"its host answered {status}: redirects are not followed.")
        if status != 200:
            raise _bad_url(f"its host answered {status}.")
        if self._encoding != b"identity":
            raise _bad_url("its host sent a compressed answer.")
        if self._size > IMAGE_BYTES_MAX or (self._declared or 0) > IMAGE_BYTES_MAX:
            raise _bad_image(f"an image has at most {IMAGE_BYTES_MAX // 2**20} MiB.")

    def body(self) -> bytes:
        if not self.complete and (self._declared is not None or self._chunked or not self.begun):
            raise _bad_url("its host broke off.")
        return b"".join(self._chunks)

    # httptools calls these:

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == b"content-encoding":
            self._encoding = value.strip().lower()
        elif lower == b"content-length" and value.isdigit():
            self._declared = int(value)
        elif lower == b"transfer-encoding":
            self._chunked = True

    def on_headers_complete(self) -> None:
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= IMAGE_BYTES_MAX:
            self._chunks.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


def _of_data_uri(uri: str) -> bytes:
    """The bytes of data:<type>;base64,<data>. Raises ApiError.

    As browsers have it: percent-encoded, broken into lines, without padding, or in the alphabet for URLs.
    """
    head, comma, data = uri[5:].partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise _bad_url("a data URI is data:image/png;base64,...")
    data = "".join(unquote(data).split()).rstrip("=").translate(_PLAIN_ALPHABET)
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise _bad_image("the data URI is not valid base64.") from None


_PLAIN_ALPHABET = str.maketrans("-_", "+/")


def _bad_url(why: str) -> ApiError:
    return ApiError("invalid_image_url", f"image_url: {why}", param="messages")


def _bad_image(why: str) -> ApiError:
    return ApiError("invalid_image", f"image_url: {why}", param="messages")
