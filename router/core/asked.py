"""What a request asks for, read once from its body, and the body that is sent for it.

Reads only what a later decision needs; every other field passes to the engine as the bytes it came in. What is added
(usage, token ids, a seed) is spliced in before the final brace, so a prompt of any length is never encoded again.

Does not judge a request: the engine knows best what it accepts. Only a body that is no JSON object, or a field of a
type that cannot be meant, is refused here.

Sources: the OpenAI API reference for chat completions and completions; vLLM's request schema (RESUME.md).
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from router.core.chunks import NULL
from router.core.events import Cut
from router.core.params import Params, StreamOptions, Usual, decode_params, decode_usual

GREEDY_BELOW = 1e-5
"""vLLM samples greedily below this temperature."""
COMPLETIONS_LIMIT = 16
"""max_tokens of /v1/completions when the body names none."""

_NO_TOOLS = msgspec.Raw(b"[]")
_NO_CALL = msgspec.Raw(b'"none"')
_BLANK = frozenset(b" \t\r\n")


class Endpoint(enum.StrEnum):
    """By path. Of the others streams are passed on, and end with an error when they break."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    OTHER = ""

    @classmethod
    def of(cls, path: str) -> Endpoint:
        return _BY_PATH.get(path, _OTHER)


_OTHER, _COMPLETIONS = Endpoint.OTHER, Endpoint.COMPLETIONS
_BY_PATH = {str(endpoint): endpoint for endpoint in (Endpoint.CHAT, Endpoint.COMPLETIONS)}


class Unreadable(ValueError):  # noqa: N818 - reads as what it is where it is caught
    """The body is no JSON object, or a field has a type that cannot be meant: the client's own error (400)."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Asked:
    """One request as it came."""

    __slots__ = ("body", "endpoint", "params")

    def __init__(self, endpoint: Endpoint, body: bytes, params: Params) -> None:
        self.endpoint = endpoint
        self.body = body
        self.params = params

    def sent(self) -> bytes:
        """What an engine gets where the answer is to come whole."""
        return self.body

    @property
    def streams(self) -> bool:
        return bool(self.params.stream)

    @property
    def resumable(self) -> bool:
        """Whether its stream may be continued at all; features may still forbid it (continuation.py)."""
        return self.streams and self.endpoint is not Endpoint.OTHER

    @property
    def choices(self) -> int:
        """Answers the client expects: n for each prompt."""
        return max(1, self.params.n or 1) * _prompts(self.params.prompt)

    @property
    def limit(self) -> int | None:
        """Tokens each choice may have; None leaves it to the engine, which then fills the context."""
        if self.endpoint is _COMPLETIONS:
            return COMPLETIONS_LIMIT if self.params.max_tokens is None else self.params.max_tokens
        limit = self.params.max_completion_tokens
        return self.params.max_tokens if limit is None else limit

    @property
    def greedy(self) -> bool:
        return self.params.temperature is not None and self.params.temperature < GREEDY_BELOW

    @property
    def seed(self) -> int | None:
        return None if self.params.seed is msgspec.UNSET else self.params.seed

    @property
    def wants_usage(self) -> bool:
        options = self.params.stream_options
        return isinstance(options, StreamOptions) and bool(options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        options = self.params.stream_options
        return isinstance(options, StreamOptions) and bool(options.continuous_usage_stats)

    @property
    def wants_ids(self) -> bool:
        return self.params.return_token_ids is True

    @property
    def wants_logprobs(self) -> bool:
        """`logprobs: 0` of a completion asks for the chosen tokens' own; `false` of a chat for none."""
        return self.params.logprobs is not None and self.params.logprobs is not False

    @property
    def forced_shape(self) -> bool:
        """Whether a grammar or schema steers the sampling, as far as the body says."""
        if self.params.structured_outputs != NULL:
            return True
        shape = self.params.response_format
        kind = None if shape == NULL else _decode_any(shape)
        return kind is not None and not (isinstance(kind, dict) and kind.get("type") == "text")

    @property
    def unknown(self) -> bool:
        """Whether it may have members that were not read."""
        return not isinstance(self.params, Usual)

    @property
    def calls_tools(self) -> bool:
        tools, functions = self.params.tools, self.params.functions
        offered = (tools != NULL and tools != _NO_TOOLS) or (functions != NULL and functions != _NO_TOOLS)
        return offered and self.params.tool_choice != _NO_CALL

    def may_add_ids(self) -> bool:
        """With `echo`, asking for token ids changes what the client sees (vLLM then leaves out the prompt's text)."""
        return self.resumable and not self.params.echo


def read(path: str, body: bytes) -> Asked:
    """Raise Unreadable for what no engine could understand."""
    try:
        params = _params(body)
    except msgspec.ValidationError as error:
        said, _, at = str(error).partition(" - at `$")
        param = at.rstrip("`").removeprefix(".")
        raise Unreadable(f"{param or 'body'}: {said}", param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"the body is not valid JSON: {error}", "") from error
    return Asked(Endpoint.of(path), body, params)


def _params(body: bytes) -> Params:
    try:
        return decode_usual(body)
    except msgspec.ValidationError:
        return decode_params(body)


def prepare(asked: Asked, *, token_ids: bool, seed: int | None = None) -> bytes:
    """The body of the first attempt: what the client sent, and usage, token ids and a seed where it named none.

    Only for streams; any other body is returned as it is. `token_ids` is for engines that know `return_token_ids`."""
    if not asked.resumable:
        return asked.body
    wanted: list[tuple[str, bytes, object]] = []
    if not asked.wants_usage:
        wanted.append(("stream_options", _with_usage(asked), asked.params.stream_options))
    if token_ids and not asked.wants_ids and asked.may_add_ids():
        wanted.append(("return_token_ids", b"true", asked.params.return_token_ids))
    if seed is not None and asked.seed is None:
        wanted.append(("seed", b"%d" % seed, asked.params.seed))
    present = {name: value for name, value, given in wanted if given is not msgspec.UNSET}
    absent = {name: value for name, value, given in wanted if given is msgspec.UNSET}
    return append(replace(asked.body, present), absent)


def cut_for(asked: Asked, *, token_ids: bool) -> Cut:
    """What the client must not see of that which `prepare` asked for with the same `token_ids`."""
    ids = token_ids and not asked.wants_ids and asked.may_add_ids()
    return Cut(ids=ids, usage=asked.resumable and not asked.wants_usage)


def append(body: bytes, members: dict[str, bytes]) -> bytes:
    """Add members that the JSON object `body` does not have, without reading it."""
    if not members:
        return body
    brace = _last_ink(body, len(body))
    empty = body[_last_ink(body, brace)] == ord("{")
    added = b",".join([b'"%b":%b' % (name.encode(), value) for name, value in members.items()])
    return b"".join((memoryview(body)[:brace], b"" if empty else b",", added, b"}"))


def replace(body: bytes, members: dict[str, bytes]) -> bytes:
    """Give members of the JSON object `body` other values; all else stays the bytes it was."""
    if not members:
        return body
    return _encode(members_of(body) | {name: msgspec.Raw(value) for name, value in members.items()})


def renamed(asked: Asked, model: str) -> Asked:
    """The same request, of another model."""
    params = msgspec.structs.replace(asked.params, model=model)
    return Asked(asked.endpoint, replace(asked.body, {"model": _encode(model)}), params)


def members_of(body: bytes) -> dict[str, msgspec.Raw]:
    return _decode_members(body)


def _with_usage(asked: Asked) -> bytes:
    options: dict[str, Any] = {}
    if isinstance(asked.params.stream_options, StreamOptions):
        options = _decode_object(members_of(asked.body)["stream_options"])
    return _encode({**options, "include_usage": True})


def _last_ink(body: bytes, end: int) -> int:
    """Index of the last byte before `end` that is not white space."""
    end -= 1
    while body[end] in _BLANK:
        end -= 1
    return end


def _prompts(prompt: msgspec.Raw) -> int:
    """Prompts in a completion's `prompt`: a text or a list of ids is one, a list of such is as many."""
    if prompt == NULL:  # a chat
        return 1
    start = bytes(memoryview(prompt)[:32]).translate(None, b" \t\r\n")
    return len(_decode_parts(prompt)) if start.startswith((b'["', b"[[")) else 1


_decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_parts = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_any = msgspec.json.Decoder(Any).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
