"""Who asks, and for what they may: API keys against the hashes in the view. No key is kept or logged."""

from __future__ import annotations

import hashlib

from router.core.errors import Code, Refused
from router.downstream.stream import Named
from router.fleet.view import View
from wire.records import ApiKey, Tenant

KEY_LIMIT_BYTES = 512


def authenticate(headers: Named, view: View, *, now_unix_ns: int) -> tuple[Tenant, ApiKey]:
    """Raises Refused with 401 and a sentence that helps the owner of the key and nobody else; with 503 for a key that
    is unknown because no key was read yet."""
    presented = bearer(headers)
    if not presented:
        raise Refused(Code.UNAUTHENTICATED, "No API key: send it as `Authorization: Bearer YOUR_KEY`.")
    if len(presented) > KEY_LIMIT_BYTES:
        raise Refused(Code.UNAUTHENTICATED, "This is not an API key: it is too long.")
    # A dictionary look-up by hash takes a time that tells nothing of how much of a key was right.
    record = view.keys.get(hashlib.sha256(presented).hexdigest())
    if record is None and not view.synced:
        message = "This router has not read the registry yet and knows no keys; try again in a moment."
        raise Refused(Code.NO_REPLICA, message, retry_after_s=2.0)
    if record is None or record.revoked:
        raise Refused(Code.UNAUTHENTICATED, "This API key is not known here, or it was revoked.")
    if record.expires_unix_ns and record.expires_unix_ns <= now_unix_ns:
        raise Refused(Code.UNAUTHENTICATED, "This API key has expired.")
    tenant = view.fleet.tenants.get(record.tenant)
    if tenant is None or tenant.disabled:
        raise Refused(Code.UNAUTHENTICATED, "This API key belongs to no active tenant.")
    return tenant, record


def may_use(tenant: Tenant, model: str) -> bool:
    return "*" in tenant.models or model in tenant.models


def unknown_model(name: str) -> str:
    """One sentence for models that do not exist and models of others."""
    return f"The model `{name[:200]}` does not exist or you do not have access to it."


def bearer(headers: Named) -> bytes:
    """The key as it was presented, b"" without one."""
    scheme, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    return credentials.strip() if scheme.lower() == b"bearer" else b""
