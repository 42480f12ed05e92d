"""`switchyard keys create | list | revoke` and `switchyard tenants list | set`.

A key is printed once, alone on standard output, so that `KEY=$(switchyard keys create)` works; all else that is said
goes to standard error. What is stored is its hash.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

import msgspec

from control import access
from control.commands.base import Command, lines
from control.commands.fleet import print_rows
from control.commands.reach import add_reach, read_reach, registry_of
from control.core import apikeys, durations, tables
from control.errors import Misused
from control.terminal import style_for
from wire.records import ApiKey, Tenant

Action = Callable[[argparse.Namespace, Mapping[str, str]], int]


def _create(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_create_key(args, env))


async def _create_key(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    changes = _changes(args)
    now_unix_ns = time.time_ns()
    expires = now_unix_ns + int(_seconds(args.expires, "--expires") * 1e9) if args.expires else 0
    key = apikeys.make(secrets.token_bytes(apikeys.RANDOM_BYTES))
    record = ApiKey(
        sha256=apikeys.digest(key),
        tenant=_slash_free(args.tenant),
        label=args.label,
        created_unix_ns=now_unix_ns,
        expires_unix_ns=expires,
    )
    async with registry_of(read_reach(args, env)) as registry:
        tenant = msgspec.structs.replace(Tenant(tenant=args.tenant), **changes)
        told = await access.ensure_tenant(registry, tenant, changes=changes)
        await access.add_key(registry, record)
    if told:
        print(told, file=sys.stderr)
    note = f"key {apikeys.short(record.sha256)} of tenant {args.tenant}; it is shown this once, keep it safe:"
    print(note, file=sys.stderr)
    print(key)
    return 0


def _list(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_list_keys(args, env))


async def _list_keys(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    async with registry_of(read_reach(args, env)) as registry:
        records = await access.list_keys(registry)
        tenants = {t.tenant for t in await access.list_tenants(registry)}
    if args.json:
        print_rows(records)
        return 0
    now = time.time_ns()
    headings = ("id", "tenant", "label", "state", "created", "expires")
    cells = [
        (
            apikeys.short(r.sha256),
            r.tenant,
            r.label,
            access.state_of(r, now_unix_ns=now, known_tenants=tenants.__contains__),
            _day(r.created_unix_ns),
            _day(r.expires_unix_ns) or "never",
        )
        for r in records
    ]
    style = style_for(sys.stdout, env)
    paint = lambda heading, text: style.state(text.strip(), text) if heading == "state" else text  # noqa: E731
    print(tables.render(headings, cells, paint=paint) if cells else "no keys; make one with `switchyard keys create`")
    return 0


def _revoke(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_revoke_key(args, env))


async def _revoke_key(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    try:
        apikeys.named_by(args.key)
    except ValueError as error:
        raise Misused(str(error)) from error
    async with registry_of(read_reach(args, env)) as registry:
        record, was_active = await access.revoke_key(registry, args.key)
    what = "is revoked; routers refuse it from now on" if was_active else "was revoked before"
    print(f"key {apikeys.short(record.sha256)} of tenant {record.tenant} {what}")
    return 0


def _tenants(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_list_tenants(args, env))


async def _list_tenants(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    async with registry_of(read_reach(args, env)) as registry:
        tenants = await access.list_tenants(registry)
        keys = await access.list_keys(registry)
    if args.json:
        print_rows(tenants)
        return 0
    headings = ("tenant", "models", "priority", "weight", "keys", "resume", "disabled")
    cells = [
        (
            t.tenant,
            ", ".join(t.models),
            t.priority,
            t.weight,
            sum(k.tenant == t.tenant and not k.revoked for k in keys),
            durations.show(t.resume_buffer_s) if t.resume_buffer_s else "no",
            "yes" if t.disabled else "no",
        )
        for t in tenants
    ]
    print(tables.render(headings, cells) if cells else "no tenants; `switchyard keys create` makes the first")
    return 0


def _set(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    return asyncio.run(_set_tenant(args, env))


async def _set_tenant(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    changes = _changes(args)
    if not changes:
        raise Misused("say what to change: --models, --priority, --weight, --resume, --resume-bytes or --disabled.")
    tenant = msgspec.structs.replace(Tenant(tenant=_slash_free(args.tenant)), **changes)
    async with registry_of(read_reach(args, env)) as registry:
        told = await access.ensure_tenant(registry, tenant, changes=changes)
    print(told or f"tenant {args.tenant} was so before")
    return 0


def _changes(args: argparse.Namespace) -> dict[str, object]:
    """What the flags say of the tenant."""
    if args.resume_bytes is not None and args.resume_bytes < 1024:
        raise Misused("--resume-bytes: an event alone takes some hundred bytes; give 1024 or more.")
    if args.weight is not None and not 0.0 < args.weight < float("inf"):
        raise Misused("--weight: give a number above 0; a tenant of weight 2 has twice the turns of one of weight 1.")
    wanted = {
        "models": tuple(m.strip() for m in args.models.split(",") if m.strip()) if args.models else None,
        "priority": args.priority,
        "weight": args.weight,
        "disabled": {"yes": True, "no": False, None: None}[args.disabled],
        "resume_buffer_s": _seconds(args.resume, "--resume") if args.resume else None,
        "resume_buffer_bytes": args.resume_bytes,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def _seconds(text: str, flag: str) -> float:
    try:
        return durations.parse(text)
    except ValueError as error:
        raise Misused(f"{flag}: {error}") from error


def _slash_free(tenant: str) -> str:
    if not tenant or "/" in tenant:
        raise Misused(f"--tenant {tenant!r} cannot be a name; use letters, digits, dots and dashes.")
    return tenant


def _day(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M") if unix_ns else ""


def _configure_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="create | list | revoke")
    create = _action(actions, "create", _create, "make a key and show it once", "keys create --tenant acme --label ci")
    create.add_argument("--tenant", default="default", help="who the key belongs to (default: default)")
    create.add_argument("--label", default="", help="a word to know the key by")
    _add_tenant_flags(create)
    create.set_defaults(disabled=None)
    create.add_argument("--expires", metavar="DURATION", help="such as 30d (default: never)")
    listing = _action(actions, "list", _list, "list keys by the start of their hash", "keys list --json")
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    revoke = _action(actions, "revoke", _revoke, "refuse a key from now on", "keys revoke 3f9a1c0b77de")
    revoke.add_argument("key", help="the id that `keys list` shows, or the key itself")


def _configure_tenants(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | set")
    listing = _action(actions, "list", _tenants, "list tenants and what they may use", "tenants list")
    listing.add_argument("--json", action="store_true", help="print JSON for programs")
    setting = _action(actions, "set", _set, "make a tenant, or change what is named", "tenants set acme --resume 30s")
    setting.add_argument("tenant", help="its name")
    _add_tenant_flags(setting)
    setting.add_argument("--disabled", choices=("yes", "no"), help="refuse all its keys, or take them again")


def _add_tenant_flags(parser: argparse.ArgumentParser) -> None:
    bound = Tenant(tenant="").resume_buffer_bytes
    parser.add_argument("--models", metavar="A,B", help="models the tenant may use (default for a new tenant: all)")
    parser.add_argument("--priority", type=int, help="of the tenant's requests; more goes first (default: 0)")
    parser.add_argument("--weight", type=float, help="its share of turns where tenants queue (default: 1)")
    parser.add_argument(
        "--resume",
        metavar="DURATION",
        help="a stream whose client's connection breaks goes on this long for it to come back (default: 0, not at all)",
    )
    parser.add_argument(
        "--resume-bytes", metavar="N", type=int, help=f"what of such a stream is kept at most (default: {bound:,})"
    )


def _action(
    actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, action: Action, help_: str, example: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name,
        help=help_,
        description=help_[0].upper() + help_[1:] + ".",
        epilog=f"examples:\n{lines(example)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(do=action)
    add_reach(parser)
    return parser


def _do(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    action: Action = args.do
    return action(args, env)


KEYS = Command(
    run=_do,
    configure=_configure_keys,
    examples=lines(
        "keys create --tenant acme --models llama-70b,embed --priority 5",
        "keys create --expires 30d --label laptop",
        "keys list",
        "keys revoke 3f9a1c0b77de",
    ),
)
TENANTS = Command(
    run=_do,
    configure=_configure_tenants,
    examples=lines("tenants list", "tenants set acme --resume 30s", "tenants set acme --weight 2 --models sim-chat"),
)
