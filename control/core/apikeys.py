"""What an API key looks like and how it is kept.

A key is `sk-sy-` and 43 characters that carry 256 random bits, so a plain SHA-256 is enough to keep it by: there is
nothing to guess, and the router can look a key up by its hash in one step. The key itself is never stored.
"""

from __future__ import annotations

import base64
import hashlib
import re

PREFIX = "sk-sy-"
RANDOM_BYTES = 32
_KEY = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")
_HASH_START = re.compile(r"[0-9a-f]{6,64}")


def make(random: bytes) -> str:
    """`random` comes from the system's generator of secrets."""
    if len(random) != RANDOM_BYTES:
        raise ValueError(f"a key is made of {RANDOM_BYTES} random bytes, not {len(random)}")
    return PREFIX + base64.urlsafe_b64encode(random).decode().rstrip("=")


def digest(key: str) -> str:
    """The name under which the key lies in the registry."""
    return hashlib.sha256(key.encode()).hexdigest()


def is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def short(sha256: str) -> str:
    """Enough of the hash to tell keys apart in a list and to name one in `keys revoke`."""
    return sha256[:12]


def named_by(text: str) -> str:
    """The start of the hash that `text` names, which is a key, a hash or the start of one. Raise ValueError."""
    if is_key(text):
        return digest(text)
    if _HASH_START.fullmatch(text.lower()):
        return text.lower()
    raise ValueError(f"{text!r} names no key; give the id that `switchyard keys list` shows, or the key itself")
