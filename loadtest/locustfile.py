"""Locust users of an OpenAI-compatible endpoint: streamed chat, completions, embeddings.

Beside whole requests it reports, as Locust metrics of their own: `TTFT` (ms until the first event with text), `ITL`
(ms between events) and `tokens` (tokens a second of one stream; its content size is the number of tokens). They are
kept apart from the requests in the table of locust_run.py, and show up in Locust's web page too:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --api-key KEY --model NAME

Locust runs on gevent, which patches the standard library: nothing else may share its process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from geventhttpclient import HTTPClient, url
from locust import User, between, events, task

from loadtest import traffic


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta | None = None


class Usage(msgspec.Struct):
    completion_tokens: int = 0


class Event(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


_EVENT = msgspec.json.Decoder(Event)


class Failed(Exception):  # noqa: N818 - the word of Locust's table
    """Why an answer does not count as one."""


def _options(parser: Any) -> None:
    parser.add_argument("--api-key", default="", help="sent as a bearer token")
    parser.add_argument("--model", default="", help="chat model; empty: the first that /v1/models names")
    parser.add_argument("--embedding-model", default="", help="empty: no embeddings are asked for")
    parser.add_argument("--trace", default="azure-conv", help="where lengths are drawn from")
    parser.add_argument("--max-prompt", type=int, default=2048)
    parser.add_argument("--max-output", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)


def _seed(environment: Any, **_: Any) -> None:
    environment.user_seeds = random.Random(environment.parsed_options.seed)


_hooks: Any = events
_hooks.init_command_line_parser.add_listener(_options)
_hooks.test_start.add_listener(_seed)


class OpenAIUser(User):  # type: ignore[misc,unused-ignore]
    """A person with a connection of their own."""

    abstract = True
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self.http = HTTPClient.from_url(url.URL(self.host or ""), concurrency=1, network_timeout=120.0)
        self.headers = {"content-type": "application/json", "authorization": f"Bearer {options.api_key}"}
        self.rng = random.Random(self.environment.user_seeds.random())
        limits = {"max_prompt": options.max_prompt, "max_output": options.max_output}
        self.lengths = traffic.Lengths(options.trace, self.rng, **limits)
        self.model = options.model or self._first_model()

    def on_stop(self) -> None:
        self.http.close()

    def tell(self, kind: str, name: str, value_ms: float, size: int = 0, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=kind, name=name, response_time=value_ms, response_length=size, exception=error, context={}
        )

    def ask(self, name: str, path: str, body: dict[str, Any]) -> None:
        """A request whose answer comes whole."""
        began = time.perf_counter()
        size, error = 0, None
        try:
            response = self.http.request("POST", path, body=msgspec.json.encode(body), headers=self.headers)
            content = response.read()
            size = len(content)
            if response.status_code != 200:
                error = Failed(f"status {response.status_code}: {bytes(content[:200])!r}")
        except (OSError, ValueError) as problem:
            error = Failed(f"{type(problem).__name__}: {problem}")
        self.tell("request", name, 1e3 * (time.perf_counter() - began), size, error)

    def _first_model(self) -> str:
        response = self.http.request("GET", "/v1/models", headers=self.headers)
        found = msgspec.json.decode(bytes(response.read()))
        if response.status_code != 200 or not found.get("data"):
            raise Failed(f"{self.host}/v1/models names no model: {found}")
        return str(found["data"][0]["id"])


class ChatUser(OpenAIUser):
    """Talks in turns and reads the answers as they come."""

    weight = 6

    def on_start(self) -> None:
        super().on_start()
        self.talk = traffic.Conversation(self.model, self.lengths, self.rng)

    @task
    def chat(self) -> None:
        began = time.perf_counter()
        error: Exception | None = None
        answer = ""
        try:
            answer = self._stream(self.talk.next_chat(), began)
        except (OSError, ValueError, Failed) as problem:
            error = problem if isinstance(problem, Failed) else Failed(f"{type(problem).__name__}: {problem}")
        self.tell("request", "chat stream", 1e3 * (time.perf_counter() - began), len(answer), error)
        if error is None:
            self.talk.answered(answer)
        else:
            self.talk.broken()

    def _stream(self, body: dict[str, Any], began: float) -> str:
        """The whole text; raises Failed unless it came to its end."""
        request = msgspec.json.encode(body)
        response = self.http.request("POST", "/v1/chat/completions", body=request, headers=self.headers)
        if response.status_code != 200:
            raise Failed(f"status {response.status_code}: {bytes(response.read()[:200])!r}")
        texts: list[str] = []
        tokens, first, last = 0, 0.0, 0.0
        for event in _events(response):
            if event.error is not None:
                raise Failed(f"error event: {event.error}")
            tokens = event.usage.completion_tokens if event.usage is not None else tokens
            text = "".join(c.delta.content or "" for c in event.choices if c.delta is not None)
            if not text:
                continue
            now = time.perf_counter()
            if not texts:
                first = now
                self.tell("TTFT", "chat stream", 1e3 * (now - began))
            else:
                self.tell("ITL", "chat stream", 1e3 * (now - last))
            texts.append(text)
            last = now
        if tokens > 1 and last > first:
            self.tell("tokens", "chat stream", (tokens - 1) / (last - first), tokens)
        return "".join(texts)


class CompletionUser(OpenAIUser):
    """A program that wants whole answers."""

    weight = 2

    @task
    def complete(self) -> None:
        self.ask("completion", "/v1/completions", traffic.completion(self.model, self.lengths, self.rng))


class EmbeddingUser(OpenAIUser):
    """A retrieval pipeline; idle where no embedding model was named."""

    weight = 1

    @task
    def embed(self) -> None:
        model = self.environment.parsed_options.embedding_model
        if model:
            self.ask("embeddings", "/v1/embeddings", traffic.embeddings(model, self.lengths, self.rng))


def _events(response: Any) -> Iterator[Event]:
    """Decoded events until [DONE]; raises Failed when the stream ends without it."""
    while raw := response.readline(b"\n\n"):
        data = bytes(raw).strip()
        if data == b"data: [DONE]":
            response.read()
            return
        if data.startswith(b"data: "):
            yield _EVENT.decode(data[6:])
    raise Failed("the stream ended without [DONE]")
