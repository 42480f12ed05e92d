"""Who asks: what a key is answered with."""

from __future__ import annotations

import pytest

from router.core.errors import Code, Refused
from router.downstream.auth import authenticate
from router.fleet.view import View

HEADERS = {b"authorization": b"Bearer sk-sy-somebody"}


@pytest.mark.parametrize(("synced", "code"), [(True, Code.UNAUTHENTICATED), (False, Code.NO_REPLICA)])
def test_an_unknown_key_is_refused_for_good_only_by_a_router_that_has_read_the_keys(synced: bool, code: Code) -> None:
    with pytest.raises(Refused) as refused:
        authenticate(HEADERS, View(synced=synced), now_unix_ns=0)
    assert code is refused.value.code


def test_a_request_without_a_key_is_told_so_before_the_keys_are_read() -> None:
    with pytest.raises(Refused) as refused:
        authenticate({}, View(), now_unix_ns=0)
    assert Code.UNAUTHENTICATED is refused.value.code
