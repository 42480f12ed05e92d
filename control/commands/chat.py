"""`switchyard chat`: a question, the answer as it streams, and how fast it came.

With no question and a terminal it is a conversation. The figures go to standard error, so that the answer alone can
be piped.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Mapping
from typing import NamedTuple

from control.ask import Message, Router
from control.commands.base import Command, lines
from control.commands.reach import add_data_dir, running_in
from control.core.sse import told
from control.errors import Failed, Misused
from control.terminal import Style, style_for


class Target(NamedTuple):
    base_url: str
    key: str


def target(args: argparse.Namespace, env: Mapping[str, str]) -> Target:
    """Flags first; then OPENAI_BASE_URL with OPENAI_API_KEY, as SDKs read them; then the `up` that runs here.

    A key of the environment goes where the person or the environment says, never to the `up` that merely happens to
    run here: it may be for another service.
    """
    run_dir, run = running_in(args, env)
    if args.base_url:
        key = args.api_key or (run_dir.key() if run and args.base_url.startswith(run.router_url) else "")
        return Target(args.base_url, key or env.get("OPENAI_API_KEY", ""))
    if env.get("OPENAI_BASE_URL"):
        return Target(env["OPENAI_BASE_URL"], args.api_key or env.get("OPENAI_API_KEY", ""))
    if run is None:
        raise Failed(
            f"no `switchyard up` runs in {run_dir.path}; start one, or name a router with --base-url http://HOST:PORT/v1."
        )
    return Target(f"{run.router_url}/v1", args.api_key or run_dir.key())


def _run(args: argparse.Namespace, env: Mapping[str, str]) -> int:
    question = args.message or " ".join(args.prompt)
    if not question and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
        if not question:
            raise Misused('nothing to ask; say switchyard chat "your question".')
    where = target(args, env)
    style = style_for(sys.stderr, env)
    asyncio.run(_once(where, args, question, style) if question else _converse(where, args, style))
    return 0


async def _once(where: Target, args: argparse.Namespace, question: str, style: Style) -> None:
    async with Router(*where) as router:
        model = args.model or await _first_model(router)
        await _answer(router, model, [*_system(args), {"role": "user", "content": question}], args.max_tokens, style)


async def _converse(where: Target, args: argparse.Namespace, style: Style) -> None:
    async with Router(*where) as router:
        model = args.model or await _first_model(router)
        print(style("dim", f"talking to {model} at {where.base_url}; an empty line or Ctrl-D ends it"), file=sys.stderr)
        messages = _system(args)
        while question := await asyncio.to_thread(_ask_person):
            messages.append({"role": "user", "content": question})
            answer = await _answer(router, model, messages, args.max_tokens, style)
            messages.append({"role": "assistant", "content": answer})


async def _answer(router: Router, model: str, messages: list[Message], max_tokens: int, style: Style) -> str:
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        figures = await router.chat(model=model, messages=messages, on_text=show, max_tokens=max_tokens)
    finally:
        if pieces:
            print(flush=True)
    print(style("dim", told(model, figures)), file=sys.stderr)
    return "".join(pieces)


async def _first_model(router: Router) -> str:
    names = await router.models()
    if not names:
        raise Failed("this key may use no model; see `switchyard models` and `switchyard tenants list`.")
    return names[0]


def _system(args: argparse.Namespace) -> list[Message]:
    return [{"role": "system", "content": args.system}] if args.system else []


def _ask_person() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="the question; without one and on a terminal: a conversation")
    parser.add_argument("--message", default="", metavar="TEXT", help="the question, for scripts")
    parser.add_argument("--model", default="", help="default: the first that the key may use")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message to begin with")
    parser.add_argument("--max-tokens", type=int, default=0, metavar="N", help="longest answer (default: the engine's)")
    add_target(parser)


def add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base-url", default="", metavar="URL", help="router, with /v1 (env OPENAI_BASE_URL)")
    parser.add_argument("--api-key", default="", metavar="KEY", help="(env OPENAI_API_KEY; default: that of `up`)")
    add_data_dir(parser)


CHAT = Command(
    run=_run,
    configure=_configure,
    examples=lines(
        'chat "Why is the sky blue?"',
        "chat",
        "chat --model tiny --max-tokens 50 --message hello",
        "chat --base-url https://router.example/v1 --api-key sk-sy-... hello",
    ),
)
