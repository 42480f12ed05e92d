"""What is sent equals what came, apart from what was added."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.core.asked import prepare, read

TEXT = st.text(max_size=8) | st.sampled_from(["}", '"', "\\", "{", "seed", "stream_options", "é😀"])
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUE = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
BLANK = st.text(alphabet=" \t\r\n", max_size=3)
FIXED = st.fixed_dictionaries(
    {"stream": st.just(True)},
    optional={
        "stream_options": st.none()
        | st.fixed_dictionaries({}, optional={"include_usage": st.booleans() | st.none(), "more": LEAF}),
        "return_token_ids": st.booleans() | st.none(),
        "seed": st.none() | st.integers(0, 2**31),
        "echo": st.booleans(),
        "messages": VALUE,
    },
)


def render(body: dict[str, Any], blank: str, ascii_only: bool) -> bytes:
    text = json.dumps(body, ensure_ascii=ascii_only, separators=(f"{blank},", f"{blank}:{blank}"))
    return f"{blank}{{{blank}{text[1:-1]}{blank}}}{blank}".encode()


@given(FIXED, st.dictionaries(TEXT.map("x".__add__), VALUE, max_size=4), BLANK, st.booleans(), st.booleans())
def test_a_prepared_body_equals_the_clients_apart_from_what_was_added(fixed, more, blank, ascii_only, ids):
    came = {**more, **fixed}
    asked = read("/v1/chat/completions", render(came, blank, ascii_only))
    sent = json.loads(prepare(asked, token_ids=ids, seed=99))

    expected = dict(came)
    expected["stream_options"] = {**(came.get("stream_options") or {}), "include_usage": True}
    if ids and not came.get("echo"):
        expected["return_token_ids"] = True
    if came.get("seed") is None:
        expected["seed"] = 99
    assert expected == sent
