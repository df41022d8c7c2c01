"""Our names as other tools' legal names, each way back again; and free text that no tool can misread.

hledger     the account's own name; in what follows the first colon, `:` becomes `%3A` (and `%` `%25`), because there
            a colon would begin a sub-account: `wallet:a:b` is `wallet:a%3Ab`.
beancount   `Root:Head:Rest`. Root is `Equity` for EQUITY_HEADS, else `Assets`. Head and Rest are what stands before and
            after the first colon, Rest `Own` where there is no colon: beancount's assertions include sub-accounts, so
            no account may have any. In both, ASCII letters and digits stand for themselves, `-` is `--`, any other
            byte `-` and two hexadecimal digits; then an initial small letter becomes a capital one, and anything else
            (and `own` itself) gets `0-` before it. `wallet:acme_1` is `Assets:Wallet:Acme-5f1`, `platform` is
            `Assets:Platform:Own`, `wallet:Acme` is `Assets:Wallet:0-Acme`.
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

#: Accounts for the other side of what comes from outside the network, or is corrected; all others are somebody's.
EQUITY_HEADS = ("world", "adjustments")
_OWN = "Own"
_PIECE = re.compile(r"-(-|[0-9a-f]{2})|([A-Za-z0-9])")
_SAFE = " :/+=@#&"


def commodity(asset: str) -> str:
    """The name of an asset's nano unit."""
    return f"{asset}NANO"


def to_hledger(account: str) -> str:
    """The name of an account in hledger."""
    head, colon, rest = account.partition(":")
    return head + colon + rest.replace("%", "%25").replace(":", "%3A")


def from_hledger(name: str) -> str:
    """The account that `to_hledger` gave this name."""
    head, colon, rest = name.partition(":")
    return head + colon + rest.replace("%3A", ":").replace("%25", "%")


def to_beancount(account: str) -> str:
    """The name of an account in beancount."""
    head, colon, rest = account.partition(":")
    root = "Equity" if head in EQUITY_HEADS else "Assets"
    return f"{root}:{_component(head)}:{_component(rest) if colon else _OWN}"


def from_beancount(name: str) -> str:
    """The account that `to_beancount` gave this name. Raises ValueError where it gives none such."""
    root, _, components = name.partition(":")
    head, colon, rest = components.partition(":")
    if root not in ("Assets", "Equity") or not colon:
        raise ValueError(f"{name!r} is no account of ours")
    return _text(head) if rest == _OWN else f"{_text(head)}:{_text(rest)}"


def plain(text: str) -> str:
    """Free text as ASCII on one line, percent-encoded where a tool, a terminal or a spreadsheet might act on it.

    `from_plain` gives it back.
    """
    quoted = quote(text, safe=_SAFE)
    if quoted[:1] in tuple(" -+=@"):  # what makes a spreadsheet see a formula, and what hledger would trim
        quoted = f"%{ord(quoted[0]):02X}{quoted[1:]}"
    return f"{quoted[:-1]}%20" if quoted.endswith(" ") else quoted


def from_plain(text: str) -> str:
    """What `plain` was given."""
    return unquote(text)


def _component(text: str) -> str:
    escaped = "".join(_escaped(byte) for byte in text.encode())
    if "a" <= escaped[:1] <= "z" and text != _OWN.lower():
        return escaped[0].upper() + escaped[1:]
    return f"0-{escaped}"


def _escaped(byte: int) -> str:
    char = chr(byte)
    if char.isascii() and char.isalnum():
        return char
    return "--" if char == "-" else f"-{byte:02x}"


def _text(component: str) -> str:
    escaped = component[2:] if component.startswith("0-") else component[:1].lower() + component[1:]
    found = bytearray()
    at = 0
    while at < len(escaped):
        match = _PIECE.match(escaped, at)
        if match is None:
            raise ValueError(f"{component!r} is no part of an account's name")
        code, char = match[1], match[2]
        found += char.encode() if char else b"-" if code == "-" else bytes.fromhex(code)
        at = match.end()
    return found.decode()
