import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.core import apikeys

RANDOM = st.binary(min_size=32, max_size=32)


@given(RANDOM)
def test_a_key_is_a_prefix_and_43_url_safe_characters(random: bytes) -> None:
    key = apikeys.make(random)
    assert "sk-sy-" == key[:6]
    assert 43 == len(key[6:])
    assert apikeys.is_key(key)


@given(RANDOM, RANDOM)
def test_different_random_bytes_make_different_keys(one: bytes, other: bytes) -> None:
    assert (one == other) == (apikeys.make(one) == apikeys.make(other))


def test_a_key_is_not_made_of_too_little_chance() -> None:
    with pytest.raises(ValueError, match="32 random bytes"):
        apikeys.make(b"short")


def test_a_key_is_kept_by_the_sha256_of_its_text() -> None:
    key = apikeys.make(bytes(32))
    assert hashlib.sha256(key.encode()).hexdigest() == apikeys.digest(key)


def test_a_key_is_named_by_itself_its_hash_or_the_start_of_it() -> None:
    key = apikeys.make(bytes(32))
    digest = apikeys.digest(key)
    assert digest == apikeys.named_by(key)
    assert digest == apikeys.named_by(digest)
    assert apikeys.short(digest) == apikeys.named_by(apikeys.short(digest).upper())


@pytest.mark.parametrize("text", ["", "12345", "not-a-key", "sk-sy-short", "sk-sy-" + "!" * 43])
def test_anything_else_names_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="names no key"):
        apikeys.named_by(text)
