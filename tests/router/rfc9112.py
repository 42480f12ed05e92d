"""A strict reader of HTTP/1.1 requests, written from RFC 9112 alone: which messages there are, and where each ends.

It is the measure for what the router sees in the same bytes. Where the RFC lets a server choose between repair and
refusal it refuses; the router may do either only where both come to the same boundary.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
# Several blanks between the parts: section 3 lets a server split the line at blanks.
REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") +([!-~]+) +HTTP/1\.([01])")
FIELD = re.compile(rb"(" + TOKEN + rb"):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*")
QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# The parser passes over an empty extension (`2;;a`), which the grammar does not have. No boundary hangs on it.
EXTENSION = rb"[ \t]*;[ \t]*(?:" + TOKEN + rb")?(?:[ \t]*=[ \t]*(?:" + TOKEN + rb"|" + QUOTED + rb"))?"
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)(?:" + EXTENSION + rb")*")


class InvalidError(Exception):
    pass


class IncompleteError(Exception):
    pass


@dataclass
class Seen:
    targets: list[bytes] = field(default_factory=list)
    """Of the valid messages, in order."""
    end: str = "clean"
    """clean, closed (a message said so), invalid, incomplete: what follows the last valid message."""
    begun: list[bytes] = field(default_factory=list)
    """The target of a message whose head was valid and whose body is not, or has not ended: it may be answered."""


def read(data: bytes) -> Seen:
    seen, at = Seen(), 0
    while at < len(data):
        try:
            at, target, keep = _message(data, at, seen.begun)
            seen.begun.clear()
        except InvalidError:
            seen.end = "invalid"
            return seen
        except IncompleteError:
            seen.end = "incomplete"
            return seen
        seen.targets.append(target)
        if not keep:
            seen.end = "closed"
            return seen
    return seen


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise IncompleteError
    if not data[at:end].endswith(b"\r"):
        raise InvalidError("a line that ends in a bare LF")
    return data[at : end - 1], end + 1


def _message(data: bytes, at: int, begun: list[bytes]) -> tuple[int, bytes, bool]:
    # Empty lines before a request are passed over, and a server may take LF for the end of a line (section 2.2).
    while data[at : at + 1] in (b"\r", b"\n"):
        at += 1
    line, at = _line(data, at)
    if not (match := REQUEST_LINE.fullmatch(line)) or b"#" in match[2] or match[1] == b"CONNECT":
        raise InvalidError(line)
    fields, at = _fields(data, at)
    minor = int(match[3])
    hosts = [v for n, v in fields if n == b"host"]
    if len(hosts) > 1 or (minor and not hosts):
        raise InvalidError("Host")
    at = _body(data, at, fields, minor, lambda: begun.append(match[2]))
    options = {o.strip().lower() for n, v in fields if n == b"connection" for o in v.split(b",")}
    return at, match[2], bool(minor) and b"close" not in options


def _fields(data: bytes, at: int) -> tuple[list[tuple[bytes, bytes]], int]:
    found = []
    while True:
        line, at = _line(data, at)
        if not line:
            return found, at
        if not (match := FIELD.fullmatch(line)):
            raise InvalidError(line)
        found.append((match[1].lower(), match[2]))


def _body(data: bytes, at: int, fields: list[tuple[bytes, bytes]], minor: int, on_framed: Callable[[], None]) -> int:
    lengths = [v for n, v in fields if n == b"content-length"]
    codings = [v for n, v in fields if n == b"transfer-encoding"]
    if codings:
        if lengths or not minor or [c.lower() for c in codings] != [b"chunked"]:
            raise InvalidError("framing")
        on_framed()
        return _chunks(data, at)
    if not lengths:
        return at
    if len(lengths) > 1 or not re.fullmatch(rb"[0-9]{1,18}", lengths[0]):
        raise InvalidError("Content-Length")
    on_framed()
    if at + int(lengths[0]) > len(data):
        raise IncompleteError
    return at + int(lengths[0])


def _chunks(data: bytes, at: int) -> int:
    while True:
        line, at = _line(data, at)
        if not (match := CHUNK_LINE.fullmatch(line)) or len(match[1].lstrip(b"0")) > 15:
            raise InvalidError(line)
        size = int(match[1], 16)
        if not size:
            trailers, at = _fields(data, at)
            if {n for n, _ in trailers} & {b"content-length", b"transfer-encoding"}:
                raise InvalidError("framing in a trailer")
            return at
        if at + size + 2 > len(data):
            wrong = data[at + size : at + size + 2]
            if not b"\r\n".startswith(wrong):
                raise InvalidError("chunk end")
            raise IncompleteError
        if data[at + size : at + size + 2] != b"\r\n":
            raise InvalidError("chunk end")
        at += size + 2
