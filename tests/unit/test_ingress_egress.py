"""Images from strangers' URLs: hostile hosts, hostile names, hostile files. Nothing here leaves this machine."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ingress import egress as egressing
from ingress import pictures
from ingress.chat import Chat
from ingress.egress import Egress, allowed_from, is_global
from schemas.errors import ApiError


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 2, height: int = 2, pixels: bytes | None = None, extra: bytes = b"", colours: int = 2) -> bytes:
    channels = {0: 1, 2: 3, 6: 4}[colours]
    raw = b"".join(b"\0" + bytes(width * channels) for _ in range(height)) if pixels is None else pixels
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


GIF = b"GIF89a" + struct.pack("<HH", 3, 4) + b"\0\0\0;"
_SOF = b"\xff\xff\xc2\x00\x0b\x08" + struct.pack(">HH", 5, 6) + b"\x01\x01\x11\0"
JPEG = b"\xff\xd8\xff\xe0\x00\x04ab" + _SOF + b"\xff\xda\0\x02"
WEBP_X = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (6).to_bytes(3, "little") + (7).to_bytes(3, "little")
WEBP_L = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", 8 | 9 << 14) + b"\0"
WEBP = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0abc\x9d\x01\x2a" + struct.pack("<HH", 11, 12)


@pytest.mark.parametrize(
    ("data", "media_type", "size"),
    [
        (png(2, 3), "image/png", (2, 3)),
        (GIF, "image/gif", (3, 4)),
        (JPEG, "image/jpeg", (6, 5)),
        (WEBP_X, "image/webp", (7, 8)),
        (WEBP_L, "image/webp", (9, 10)),
        (WEBP, "image/webp", (11, 12)),
    ],
)
def test_four_kinds_are_known_by_their_bytes(data: bytes, media_type: str, size: tuple[int, int]) -> None:
    picture = pictures.vet(data)
    assert (picture.media_type, picture.width, picture.height) == (media_type, *size)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<html>",
        b"%PDF-1.7",
        b"BM" + bytes(50),
        b"\x89PNG\r\n\x1a\n",
        png()[:40],
        png()[:-12],
        png(0, 5),
        GIF[:7],
        b"GIF89a\0\0\0\0",
        JPEG[:8],
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\0\0" * 50,
        b"RIFF\0\0\0\0WEBPVP8 " + bytes(20),
        png(pixels=b"no pixels here at all, but far more bytes than two by two pixels would be"),
    ],
    ids=range(16),
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(pictures.NoPicture):
        pictures.vet(data)


@pytest.mark.parametrize("size", [(8193, 1), (1, 8193), (8000, 8000), (2**31, 2**31)])
def test_an_image_of_too_many_pixels_is_refused_by_its_head(size: tuple[int, int]) -> None:
    with pytest.raises(pictures.NoPicture, match="pixels"):
        pictures.vet(png(*size, pixels=b"\0"))


def test_a_small_head_over_many_pixels_is_a_bomb_and_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(4, 4, pixels=bytes(64 * 2**20))
    assert len(bomb) < 100_000
    inflated: list[int] = []
    real = pictures._inflate

    def counting(inflater: object, packed: bytes, size: int, limit: int) -> int:
        inflated.append(limit)
        return real(inflater, packed, size, limit)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "_inflate", counting)
    with pytest.raises(pictures.NoPicture, match="more than its size"):
        pictures.vet(bomb)
    assert inflated[0] < 1000


def test_compressed_text_in_a_png_does_not_travel_on() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10**6)))
    assert pictures.vet(png(extra=bomb)).data == png()


def test_a_jpeg_of_many_scans_is_refused() -> None:
    with pytest.raises(pictures.NoPicture, match="scans"):
        pictures.vet(JPEG + b"\xff\xda\0\x02" * 100)


def test_the_bound_of_an_image_is_no_less_than_its_patches() -> None:
    assert pictures.bound_tokens(pictures.Picture("image/png", 8000, 2000, b"")) >= (8000 // 14) * (2000 // 14)
    assert pictures.bound_tokens(pictures.Picture("image/png", 1, 1, b"")) == pictures.FIXED_TOKENS_MAX


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8",
        "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_global(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_global(address)


async def refused(egress: Egress, url: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await egress.picture(url)
    assert caught.value.row.status == 400
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png", "ftp://example.org/a.png", "file:///etc/passwd", "//example.org/a", "gopher://x/",
        "https:///a.png", "https://user:secret@example.org/a.png", "https://example.org:8443/a.png", "https://",
        "https://example.org:99999/", "https://exa mple.org/", "https://example.org/\r\nX: y", "javascript:alert(1)",
        "https://[::1/", "https://exämple.org/", "https://example.org/" + "a" * 2048, "just words",
        "data:text/plain,hi",
    ],
)  # fmt: skip
async def test_urls_that_are_not_even_looked_up(url: str) -> None:
    async def nobody(host: str, port: int) -> list[str]:
        raise AssertionError(f"{host} was looked up")

    error = await refused(Egress(resolve=nobody), url)
    assert error.code == "invalid_image_url"
    assert "secret" not in json.dumps(error.body())


@pytest.mark.parametrize(
    "addresses", [[], ["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:169.254.169.254"], ["10.0.0.1"]]
)
async def test_a_name_with_any_address_that_is_not_public_is_refused(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*args: object, **kwargs: object) -> object:
        raise AssertionError("a connection was made")

    async def resolve(host: str, port: int) -> list[str]:
        return addresses

    monkeypatch.setattr(asyncio, "open_connection", connect)
    assert (await refused(Egress(resolve=resolve), "https://example.org/a.png")).code == "invalid_image_url"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
async def test_this_machine_by_any_of_its_names(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*args: object, **kwargs: object) -> object:
        raise AssertionError("a connection was made")

    monkeypatch.setattr(asyncio, "open_connection", connect)
    assert (await refused(Egress(), f"https://{host}/a.png")).code == "invalid_image_url"


async def test_a_name_that_changes_is_looked_up_once_and_the_judged_address_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([["8.8.8.8"], ["127.0.0.1"]])
    connected: list[object] = []

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    async def connect(host: str, port: int, **kwargs: object) -> object:
        connected.append((host, port, kwargs["server_hostname"]))
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", connect)
    await refused(Egress(resolve=resolve), "https://rebinding.example/a.png")
    assert connected == [("8.8.8.8", 443, "rebinding.example")]
    assert next(answers) == ["127.0.0.1"]


async def test_a_lookup_that_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    monkeypatch.setattr(egressing, "RESOLVE_S", 0.01)
    await refused(Egress(resolve=resolve), "https://example.org/a.png")


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Egress, str, list[bytes]]]:
    """A host on this machine that the operator has opened; also what it was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Egress(allowed_from(f"127.0.0.1:{port}")), f"http://127.0.0.1:{port}/cat.png?x=1", asked
    finally:
        server.close()


def says(data: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return serve


def http(body: bytes, head: bytes = b"", status: bytes = b"200 OK") -> bytes:
    length = b"" if b"ransfer-" in head else b"Content-Length: %d\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + length + head + b"\r\n" + body


async def test_an_opened_host_is_fetched_from() -> None:
    async with serving(says(http(png(), b"Content-Type: text/html\r\n"))) as (egress, url, asked):
        picture = await egress.picture(url)
    assert picture == pictures.Picture("image/png", 2, 2, png())
    assert asked[0].startswith(b"GET /cat.png?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"uthorization" not in asked[0]


async def test_chunks_and_a_body_until_the_connection_ends() -> None:
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(png()), png())
    for data in (http(body, b"Transfer-Encoding: chunked\r\n"), b"HTTP/1.1 200 OK\r\n\r\n" + png()):
        async with serving(says(data)) as (egress, url, _):
            assert (await egress.picture(url)).width == 2


@pytest.mark.parametrize(
    "data",
    [
        http(b"", b"Location: http://127.0.0.1/\r\n", b"302 Found"),
        http(b"", b"Location: https://example.org/\r\n", b"308 Permanent Redirect"),
        http(b"", status=b"404 Not Found"),
        http(png(), status=b"206 Partial Content"),
        http(png(), b"Content-Encoding: gzip\r\n"),
        http(b"<html>an apology</html>", b"Content-Type: image/png\r\n"),
        b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + png(),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"",
    ],
    ids=range(11),
)
async def test_answers_that_are_not_taken(data: bytes) -> None:
    async with serving(says(data)) as (egress, url, asked):
        await refused(egress, url)
    assert len(asked) == 1


@pytest.mark.parametrize("piece", [b"x" * 65_536, b"x-a: y\r\n" * 4096], ids=["body", "head"])
async def test_what_never_ends_is_cut_off(piece: bytes) -> None:
    sent = 0

    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"" if piece.startswith(b"x-a") else b"\r\n"))
        while True:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with serving(endless) as (egress, url, _):
        await refused(egress, url)
    assert sent < 32 * 2**20


async def test_a_host_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(egressing, "FETCH_S", 0.05)
    async with serving(silent) as (egress, url, _):
        assert (await refused(egress, url)).code == "invalid_image_url"


async def test_the_images_of_a_request() -> None:
    data_uri = "data:image/jpeg;base64," + base64.b64encode(png()).decode()
    async with serving(says(http(png(3, 3)))) as (egress, url, asked):
        chat = await egress.with_images(Chat("m", image_urls=(data_uri, url, data_uri, url)))
    assert [image.media_type for image in chat.images] == ["image/png"] * 4
    assert base64.b64decode(chat.images[1].data) == png(3, 3)
    assert chat.image_bound_tokens == 4 * pictures.FIXED_TOKENS_MAX
    assert len(asked) == 1


async def test_images_have_a_size_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egressing, "REQUEST_BYTES_MAX", 2 * len(png()) - 1)
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    with pytest.raises(ApiError) as caught:
        await Egress().with_images(Chat("m", image_urls=(uri, uri)))
    assert caught.value.code == "invalid_image"


async def test_images_have_pixels_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egressing, "REQUEST_PIXELS_MAX", 799)
    uri = "data:image/png;base64," + base64.b64encode(png(20, 20)).decode()
    assert (await Egress().with_images(Chat("m", image_urls=(uri,)))).images
    with pytest.raises(ApiError, match="799 pixels") as caught:
        await Egress().with_images(Chat("m", image_urls=(uri, uri)))
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("head", ["data:image/png;base64,", "DATA:Image/PNG;charset=utf-8;BASE64,", "data:;base64, "])
@pytest.mark.parametrize(
    "written",
    [
        lambda text: text,
        lambda text: quote(text, safe=""),
        lambda text: text.rstrip("="),
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
        lambda text: text.replace("+", "-").replace("/", "_"),
    ],
)
async def test_data_uris_as_they_are_written(head: str, written: Callable[[str], str]) -> None:
    data = png(20, 20)
    while len(data) % 3 != 1 or not {"+", "/"} <= set(text := base64.b64encode(data).decode()):
        data += b"\xfb\xef\xff"[len(data) % 3 :] + b"\xfb"  # behind its end, where nobody looks
    assert (await Egress().picture(head + written(text))).width == 20


@pytest.mark.parametrize(
    "uri", ["data:image/png,abc", "data:image/png;base64,@@@@", "data:image/png;base64,aGk=", "data:"]
)
async def test_data_uris_that_hold_no_image(uri: str) -> None:
    await refused(Egress(), uri)


@pytest.mark.parametrize("text", ["example.org", ":80", "example.org:http", "example.org:0", "a:1,b"])
def test_a_malformed_list_of_opened_hosts_stops_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="SHRK_EGRESS_ALLOW"):
        allowed_from(text)


def test_opened_hosts() -> None:
    assert allowed_from("") == frozenset()
    assert allowed_from(" A.example:80, [::1]:443 ") == {("a.example", 80), ("::1", 443)}


def test_nothing_else_in_the_ingress_opens_connections_to_strangers() -> None:
    folder = Path(egressing.__file__).parent
    users = {path.name for path in folder.rglob("*.py") if "open_connection" in path.read_text()}
    assert users == {"egress.py"}
