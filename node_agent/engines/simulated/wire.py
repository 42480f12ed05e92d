"""Bytes of answers, field by field in vLLM 0.32's order: events of streams and whole bodies.

An event is joined from parts made once per stream; only the text of a token is JSON-encoded. Which fields are `null`
and which are absent follows vLLM, where a chunk leaves out what was never set and a whole answer leaves out nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node_agent.engines.simulated.answer import Delta
from node_agent.engines.simulated.script import ToolView
from node_agent.engines.simulated.tokens import PIECES, piece

json = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"
FINGERPRINT = "vllm-0.32.0-simulated"
_FINGERPRINT_FIELD = b',"system_fingerprint":"%b"' % FINGERPRINT.encode()


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What all parts of one answer share."""

    id: str
    created: int
    model: str
    ids: bool = False
    """return_token_ids"""
    logprobs: int | None = None
    """Alternatives per token; None is no logprobs."""
    usage: bool = False
    running_usage: bool = False
    cached_details: bool = True
    block: int = 16
    """Tokens of a KV block: only whole ones are kept for others."""

    def opening(self, object_: str) -> bytes:
        return b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"choices":[' % (
            json(self.id),
            object_.encode(),
            self.created,
            json(self.model),
        )


class Usage(msgspec.Struct, kw_only=True):
    """Counts of one answer, over its choices; they grow while it lasts."""

    prompt: int = 0
    completion: int = 0
    cached: int = 0

    def tail(self, *, chat: bool, completion: int) -> bytes:
        """The usage that rides in every event when it was asked for."""
        more = b',"completion_tokens_details":null' if chat else b""
        return b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}' % (
            self.prompt,
            self.prompt + completion,
            completion,
            more,
        )


def token_text(token: int) -> str:
    return piece(token).decode(errors="replace")


def logprob(token: int) -> float:
    """Made up, but always the same for a token."""
    return -((token * 2654435761 >> 7) % 3000) / 1000


def alternatives(token: int, count: int) -> list[int]:
    """Tokens that were not chosen: always less likely than the one that was."""
    return [3 + (token * 7 + 13 * i) % (len(PIECES) - 3) for i in range(1, count)]


def chat_logprobs(ids: list[int], top: int) -> dict[str, Any]:
    def entry(token: int, value: float) -> dict[str, Any]:
        return {"token": token_text(token), "logprob": value, "bytes": list(piece(token))}

    return {
        "content": [
            entry(token, logprob(token))
            | {
                "top_logprobs": [
                    entry(t, logprob(token) - i) for i, t in enumerate([token, *alternatives(token, top)][:top])
                ]
            }
            for token in ids
        ]
    }


def completion_logprobs(ids: list[int], top: int, offset: int) -> dict[str, Any]:
    texts = [token_text(t) for t in ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    best = [
        {token_text(t): logprob(token) - i for i, t in enumerate([token, *alternatives(token, max(1, top))])}
        for token in ids
    ]
    return {
        "text_offset": offsets,
        "token_logprobs": [logprob(t) for t in ids],
        "tokens": texts,
        "top_logprobs": best,
    }


class ChatEvents:
    """Events of a streamed chat answer."""

    def __init__(self, head: Head, usage: Usage) -> None:
        self.head = head
        self.usage = usage
        self._opening = head.opening("chat.completion.chunk")
        self._starts = [self._opening + b'{"index":0,"delta":{"content":']
        self._plain = not head.ids and head.logprobs is None and not head.running_usage
        self._counts: dict[int, int] = {}

    def first(self, index: int, prompt_ids: list[int], prompt_text: str | None) -> bytes:
        ids = json(prompt_ids) if self.head.ids else b"null"
        usage = self.usage.tail(chat=True, completion=0) if self.head.running_usage else b""
        return (
            b'%b{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]%b'
            b',"prompt_token_ids":%b,"prompt_text":%b}\n\n' % (self._opening, index, usage, ids, json(prompt_text))
        )

    def echo(self, index: int, text: str) -> bytes:
        return b'%b{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":null}]}\n\n' % (
            self._opening,
            index,
            json(text),
        )

    def event(self, index: int, delta: Delta) -> bytes:
        """Empty for a token whose text is held back, when nobody asked for more than text: so does vLLM's parser."""
        if self._plain and delta.finish is None:
            if not delta.text:
                return b""
            start = self._starts[index] if index < len(self._starts) else self._start(index)
            return b'%b%b},"logprobs":null,"finish_reason":null,"token_ids":null}]}\n\n' % (start, json(delta.text))
        return self._rich(index, b'{"content":%b}' % json(delta.text) if delta.text else b"{}", delta)

    def tool_event(self, index: int, delta: Delta, view: ToolView) -> bytes:
        """Empty when the parser holds everything back and nobody asked for ids."""
        names, arguments = view.see(delta.text, last=delta.finish is not None)
        if names:
            call: dict[str, Any] = {"id": view.id, "type": "function", "index": 0, "function": {"name": view.name}}
            if arguments:
                call["function"]["arguments"] = arguments
        elif arguments:
            call = {"index": 0, "function": {"arguments": arguments}}
        elif delta.finish is None and not self.head.ids and self.head.logprobs is None:
            self._counts[index] = self._counts.get(index, 0) + len(delta.ids)
            return b""
        else:
            return self._rich(index, b"{}", delta)
        return self._rich(index, json({"content": None, "tool_calls": [call]}), delta)

    def _start(self, index: int) -> bytes:
        for i in range(len(self._starts), index + 1):
            self._starts.append(self._opening + b'{"index":%d,"delta":{"content":' % i)
        return self._starts[index]

    def _rich(self, index: int, body: bytes, delta: Delta) -> bytes:
        head = self.head
        self._counts[index] = self._counts.get(index, 0) + len(delta.ids)
        logprobs = b"null" if head.logprobs is None else json(chat_logprobs(delta.ids, head.logprobs))
        finish = b"null"
        last = b""
        if delta.finish is not None:
            finish = b'"%b","stop_reason":%b' % (delta.finish.encode(), json(delta.stop_reason))
            last = b"" if head.usage else _FINGERPRINT_FIELD
        usage = self.usage.tail(chat=True, completion=self._counts[index]) if head.running_usage else b""
        return b'%b{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b,"token_ids":%b}]%b%b}\n\n' % (
            self._opening,
            index,
            body,
            logprobs,
            finish,
            json(delta.ids) if head.ids else b"null",
            usage,
            last,
        )

    def final_usage(self) -> bytes:
        u = self.usage
        details = ""
        if self.head.cached_details:
            made = max(0, u.prompt // self.head.block * self.head.block - u.cached)
            details = f',"prompt_tokens_details":{{"cached_tokens":{u.cached},"created_cache_tokens":{made}}}'
        return b'%b],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}%b}\n\n' % (
            self._opening,
            u.prompt,
            u.prompt + u.completion,
            u.completion,
            details.encode(),
            _FINGERPRINT_FIELD,
        )


class CompletionEvents:
    """Events of a streamed text completion."""

    def __init__(self, head: Head, usage: Usage) -> None:
        self.head = head
        self.usage = usage
        self._opening = head.opening("text_completion")
        self._starts = [self._opening + b'{"index":0,"text":']
        self._plain = not head.ids and head.logprobs is None and not head.running_usage
        self._counts: dict[int, int] = {}
        self._offsets: dict[int, int] = {}

    def event(self, index: int, delta: Delta, prompt_ids: list[int] | None = None, echo: str | None = None) -> bytes:
        """`prompt_ids` with the first event when ids are wanted, `echo` with the first when the prompt is."""
        if self._plain and delta.finish is None and echo is None:
            start = self._starts[index] if index < len(self._starts) else self._start(index)
            return (
                b'%b%b,"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null'
                b',"token_ids":null}]}\n\n' % (start, json(delta.text))
            )
        head = self.head
        self._counts[index] = self._counts.get(index, 0) + len(delta.ids)
        finish = b"null" if delta.finish is None else b'"%b"' % delta.finish.encode()
        last = _FINGERPRINT_FIELD if delta.finish is not None and not head.usage else b""
        usage = self.usage.tail(chat=False, completion=self._counts[index]) if head.running_usage else b""
        return (
            b'%b{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b,"stop_reason":%b,"prompt_token_ids":%b'
            b',"token_ids":%b}]%b%b}\n\n'
            % (
                self._opening,
                index,
                json((echo or "") + delta.text),
                self._logprobs(index, delta.ids),
                finish,
                json(delta.stop_reason),
                json(prompt_ids) if prompt_ids is not None else b"null",
                json(delta.ids) if head.ids else b"null",
                usage,
                last,
            )
        )

    def _start(self, index: int) -> bytes:
        for i in range(len(self._starts), index + 1):
            self._starts.append(self._opening + b'{"index":%d,"text":' % i)
        return self._starts[index]

    def _logprobs(self, index: int, ids: list[int]) -> bytes:
        if self.head.logprobs is None:
            return b"null"
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(token_text(t)) for t in ids)
        return json(completion_logprobs(ids, self.head.logprobs, offset))

    def final_usage(self) -> bytes:
        u = self.usage
        details = b',"prompt_tokens_details":{"cached_tokens":%d}' % u.cached if self.head.cached_details else b""
        return b'%b],"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d%b}%b}\n\n' % (
            self._opening,
            u.prompt,
            u.prompt + u.completion,
            u.completion,
            details,
            _FINGERPRINT_FIELD,
        )


def chat_body(
    head: Head, usage: Usage, choices: list[dict[str, Any]], prompt_ids: list[int], text: str | None
) -> bytes:
    created = max(0, usage.prompt // head.block * head.block - usage.cached)
    return json(
        {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _usage(head, usage, created),
            "prompt_logprobs": None,
            "prompt_token_ids": prompt_ids if head.ids else None,
            "prompt_text": text,
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def chat_choice(head: Head, index: int, delta: Delta, view: ToolView | None, echo: str = "") -> dict[str, Any]:
    content: str | None = echo + delta.text
    message: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
    }
    if view is not None:
        arguments = view.see(delta.text, last=True)[1]
        message["content"] = "" if view.forced else None
        message["tool_calls"] = [
            {"id": view.id, "type": "function", "function": {"name": view.name, "arguments": arguments}}
        ]
    message["reasoning"] = None
    return {
        "index": index,
        "message": message,
        "logprobs": None if head.logprobs is None else chat_logprobs(delta.ids, head.logprobs),
        "finish_reason": delta.finish,
        "stop_reason": delta.stop_reason,
        "token_ids": delta.ids if head.ids else None,
        "routed_experts": None,
    }


def completion_body(head: Head, usage: Usage, choices: list[dict[str, Any]]) -> bytes:
    return json(
        {
            "id": head.id,
            "object": "text_completion",
            "created": head.created,
            "model": head.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": _usage(head, usage, None),
            "kv_transfer_params": None,
            "ec_transfer_params": None,
            "metrics": None,
        }
    )


def completion_choice(head: Head, index: int, delta: Delta, prompt_ids: list[int], echo: str = "") -> dict[str, Any]:
    return {
        "index": index,
        "text": echo + delta.text,
        "logprobs": None if head.logprobs is None else completion_logprobs(delta.ids, head.logprobs, 0),
        "finish_reason": delta.finish,
        "stop_reason": delta.stop_reason,
        "token_ids": delta.ids if head.ids else None,
        "prompt_logprobs": None,
        "prompt_token_ids": prompt_ids if head.ids else None,
        "routed_experts": None,
    }


def _usage(head: Head, usage: Usage, created: int | None) -> dict[str, Any]:
    details = {"cached_tokens": usage.cached, "created_cache_tokens": created, "multimodal_tokens": None}
    return {
        "prompt_tokens": usage.prompt,
        "total_tokens": usage.prompt + usage.completion,
        "completion_tokens": usage.completion,
        "prompt_tokens_details": details if head.cached_details else None,
        "completion_tokens_details": None,
    }
