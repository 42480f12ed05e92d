"""What `switchyard up` says when all is ready: what runs where, and what to try next."""

from __future__ import annotations

import msgspec

DATA_DIR_VARIABLE = "SWITCHYARD_CLI_DATA_DIR"


class Welcome(msgspec.Struct, frozen=True, kw_only=True):
    command: str
    """How this person calls switchyard: the plain word when it is on the PATH."""
    base_url: str
    key: str
    model: str
    node: str
    logs: str
    engine_logs: str
    ready_s: float
    first_token_s: float
    data_dir: str = ""
    """Empty when it is the one that commands look in by default."""


def render(welcome: Welcome) -> str:
    w = welcome
    body = f'{{"model": "{w.model}", "stream": true, "messages": [{{"role": "user", "content": "hello"}}]}}'
    commands = {
        "chat": "a conversation in the terminal",
        "nodes": "the hosts and what they serve",
        f"drain {w.node}": "empty a host while streams run; undrain brings it back",
        "keys create --tenant acme": "a key for somebody else",
        "usage": "requests and tokens so far",
    }
    width = max(len(command) for command in commands) + len(w.command) + 1
    elsewhere = [f"  export {DATA_DIR_VARIABLE}={w.data_dir}"] if w.data_dir else []
    return "\n".join(
        [
            f"Switchyard is up at {w.base_url}",
            brief(w),
            "",
            f"  curl -N {w.base_url}/chat/completions -H 'Authorization: Bearer {w.key}' \\",
            f"    -H 'Content-Type: application/json' -d '{body}'",
            "",
            "  from openai import OpenAI",
            f'  client = OpenAI(base_url="{w.base_url}", api_key="{w.key}")',
            '  messages = [{"role": "user", "content": "hello"}]',
            f'  print(client.chat.completions.create(model="{w.model}", messages=messages).choices[0].message.content)',
            "",
            *elsewhere,
            *(f"  {f'{w.command} {command}':<{width}}   {what}" for command, what in commands.items()),
            "",
            f"Logs are in {w.logs}, those of engines in {w.engine_logs}.",
            "Ctrl-C stops everything, twice stops it at once.",
        ]
    )


def brief(welcome: Welcome) -> str:
    return f"Ready after {welcome.ready_s:.1f} s, first token after {welcome.first_token_s:.1f} s."
