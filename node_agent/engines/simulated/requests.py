"""What the simulated engine reads of a request, as vLLM names it, and its refusals in vLLM's words.

Unknown fields are ignored, as vLLM ignores them. Decoding only: no replica state.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from node_agent.engines.simulated.answer import Sampling
from node_agent.engines.simulated.tokens import VOCAB_SIZE, encode


class Refused(Exception):  # noqa: N818 - reads as what it is where it is caught
    """An answer with an error body of vLLM's shape."""

    def __init__(self, status: int, message: str, type_: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = error_body(message, type_, status, param)


def error_body(message: str, type_: str, code: int, param: str | None = None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def bad_request(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, "BadRequestError", param)


def unknown_model(name: str, known: list[str]) -> Refused:
    message = f"The model `{name}` does not exist. Valid aliases: {', '.join(known)}."
    return Refused(404, message, "NotFoundError", "model")


def too_long(tokens: int, limit: int, *, exact: bool) -> Refused:
    """A text is only read as far as the first token too many; ids are counted."""
    count, qualifier = (tokens, "") if exact else (limit + 1, "at least ")
    return bad_request(
        f"This model's maximum context length is {limit} tokens. However, your prompt contains {qualifier}{count} "
        "input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the "
        f"input prompt. (parameter=input_tokens, value={count})",
        "input_tokens",
    )


Prompt = str | int | list[int]
"""An item of a list of prompts; integers are ids of one prompt."""


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Body(msgspec.Struct, kw_only=True):
    """Fields that chat and text completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    n: int | None = None
    temperature: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    echo: bool | None = None
    return_token_ids: bool | None = None
    response_format: dict[str, Any] | None = None
    priority: int = 0
    request_id: str | None = None

    @property
    def usage(self) -> bool:
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)

    @property
    def running_usage(self) -> bool:
        return bool(self.usage and self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def penalised(self) -> bool:
        return bool(self.frequency_penalty or self.presence_penalty)

    @property
    def greedy(self) -> bool:
        """vLLM takes a temperature that is not given as 1."""
        return self.temperature is not None and self.temperature < 1e-5


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """Parts that are not text count as their JSON: there is nothing to look at them with."""
        calls = msgspec.json.encode(self.tool_calls).decode() if self.tool_calls else ""
        if isinstance(self.content, list):
            return (
                "".join(
                    part["text"] if isinstance(part.get("text"), str) else msgspec.json.encode(part).decode()
                    for part in self.content
                )
                + calls
            )
        return (self.content or "") + calls


class Function(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class Tool(msgspec.Struct):
    function: Function


class ChatBody(Body, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int = 0
    tools: list[Tool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    return_prompt_text: bool | None = None

    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionBody(Body, kw_only=True):
    prompt: str | list[Prompt] | None = None
    logprobs: int | None = None

    def limit(self) -> int | None:
        """OpenAI's old default of 16."""
        return 16 if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt."""
        return prompts_of(self.prompt)


class EmbeddingBody(msgspec.Struct, kw_only=True):
    input: str | list[Prompt]
    model: str | None = None
    encoding_format: str = "float"
    dimensions: int | None = None


def prompts_of(prompt: str | list[Prompt] | None) -> list[list[int]]:
    """Raises Refused."""
    if prompt is None or prompt == []:
        raise bad_request("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(prompt, str):
        return [_checked(encode(prompt))]
    ids = [p for p in prompt if isinstance(p, int)]
    if len(ids) == len(prompt):
        return [_checked(ids)]
    if ids:
        raise bad_request("prompt must be a string, a list of token ids, or a list of those", "prompt")
    return [_checked(encode(p) if isinstance(p, str) else p) for p in prompt if not isinstance(p, int)]


B = TypeVar("B", bound=msgspec.Struct)
_decoders: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ChatBody, CompletionBody, EmbeddingBody)
}


def read(kind: type[B], body: bytes) -> B:
    """Raises Refused."""
    try:
        decoded: B = _decoders[kind].decode(body)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        param = "body" + where.rstrip("`")
        raise Refused(400, f"1 validation error:\n  {param}: {what}", "Bad Request", param) from error
    except msgspec.DecodeError as error:
        raise bad_request(f"JSON decode error: {error}") from error
    return decoded


def sampling(body: ChatBody | CompletionBody, prompt_tokens: int, max_model_len: int) -> Sampling:
    """Raises Refused. What does not fit behind the prompt is cut from max_tokens."""
    room = max_model_len - prompt_tokens
    if room < 1:
        exact = isinstance(body, CompletionBody) and not isinstance(body.prompt, str)
        raise too_long(prompt_tokens, max_model_len, exact=exact)
    asked = body.limit()
    if asked is not None and asked < 1:
        raise bad_request(f"max_tokens must be at least 1, got {asked}.", "max_tokens")
    limit = room if asked is None else min(asked, room)
    if body.min_tokens > limit:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={limit}, got {body.min_tokens}.", "min_tokens"
        )
    if body.n is not None and not 1 <= body.n <= 128:
        raise bad_request(f"n must be at least 1, got {body.n}.", "n")
    if (body.n or 1) > 1 and body.greedy:
        raise bad_request(f"n must be 1 when using greedy sampling, got {body.n}.")
    if body.temperature is not None and body.temperature < 0:
        raise bad_request(f"temperature must be non-negative, got {body.temperature}.", "temperature")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Sampling(
        max_tokens=limit,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stop=tuple(s for s in stop if s),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop=body.include_stop_str_in_output,
    )


class OutOfVocabulary(Refused):
    """vLLM finds this out late: a stream has its 200 already, and the error is its first event."""


def _checked(ids: list[int]) -> list[int]:
    if ids and (max(ids) >= VOCAB_SIZE or min(ids) < 0):
        wrong = next(i for i in ids if not 0 <= i < VOCAB_SIZE)
        raise OutOfVocabulary(400, f"Token id {wrong} is out of vocabulary", "BadRequestError")
    if not ids:
        raise bad_request("The decoder prompt cannot be empty", "prompt")
    return ids
