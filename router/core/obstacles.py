"""What in a request stands against continuing it by token ids, and whether a seed of ours would help.

Only fields known to mean the same for a continuation ride along; one that we do not know may change what the next token
is, so it stands against going on by ids. Judges the request alone; what was delivered is judged in continuation.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.core.asked import Asked, Endpoint, members_of
from router.core.chunks import NULL
from router.core.params import decode_messages, decode_parts


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


CARRIED = _names(
    "model temperature top_p top_k min_p repetition_penalty logit_bias allowed_token_ids stop_token_ids ignore_eos "
    "skip_special_tokens spaces_between_special_tokens user priority cache_salt"
)
"""Mean the same for a continuation, and go with it as they are."""
JUDGED = _names(
    "messages prompt stream stream_options return_token_ids seed n best_of presence_penalty frequency_penalty "
    "max_tokens max_completion_tokens min_tokens stop bad_words logprobs top_logprobs echo tools tool_choice functions "
    "response_format structured_outputs"
)
"""Read by us: their effect is in the plan, or they stand against it."""
SPENT = _names(
    "add_generation_prompt continue_final_message add_special_tokens chat_template chat_template_kwargs documents "
    "reasoning_effort function_call include_stop_str_in_output parallel_tool_calls metadata store service_tier "
    "safety_identifier prompt_cache_key prompt_cache_retention request_id"
)
"""Did their work when the prompt was made, or matter only beside a field that we judge, or to no token at all."""
KNOWN = CARRIED | JUDGED | SPENT


def needs_seed(asked: Asked, *, thinks: bool = False) -> bool:
    """Whether a seed of ours is what would make a broken stream of this request resumable: it is sampled without one,
    and cannot go on by ids, or not from everywhere: a client that sees ids or logprobs sees half characters, which
    nobody could draw again; and thoughts (of a model that `thinks`, in a chat) are told from the answer by the engine's
    own parser. Others go on without, and spare the engine a generator per request."""
    sampled = asked.resumable and not asked.greedy and asked.seed is None
    if not sampled:
        return False
    thoughtful = thinks and asked.endpoint is Endpoint.CHAT
    return thoughtful or bool(obstacle(asked) or asked.wants_ids or asked.wants_logprobs)


def obstacle(asked: Asked) -> str:
    """What in the request forbids going on by ids, "" if nothing does."""
    for reason, holds in _REASONS:
        if holds(asked):
            return reason
    return _unknown_field(asked) if asked.unknown else ""


def _unknown_field(asked: Asked) -> str:
    for name, value in members_of(asked.body).items():
        if name not in KNOWN and value != NULL:
            return f"{name[:64]!r} is not known to mean the same for a continuation"
    return ""


def _is_text(asked: Asked) -> bool:
    """Whether all of a chat is text, so that the ids of its prompt are the whole prompt."""
    try:
        contents = [message.content for message in decode_messages(asked.params.messages) or ()]
        parts = [part for content in contents if _is_list(content) for part in decode_parts(content)]
    except msgspec.DecodeError:
        return False
    return all(isinstance(part, str) or part.type == "text" for part in parts)


def _is_list(raw: msgspec.Raw) -> bool:
    return bytes(memoryview(raw)[:1]) == b"["


_REASONS: tuple[tuple[str, Callable[[Asked], object]], ...] = (
    ("a seed starts its dice again", lambda asked: asked.seed is not None and not asked.greedy),
    (
        "penalties would take the delivered text for prompt",
        lambda asked: asked.params.presence_penalty or asked.params.frequency_penalty,
    ),
    ("a grammar would start from its beginning", lambda asked: asked.forced_shape),
    ("a tool call needs the engine's own parser", lambda asked: asked.calls_tools),
    ("text is held back for stop strings, which may span the seam", lambda asked: asked.params.stop),
    ("bad words may span the seam", lambda asked: asked.params.bad_words),
    ("with echo the engine names no ids", lambda asked: asked.params.echo),
    ("the best of several is chosen at the end", lambda asked: (asked.params.best_of or 1) > 1),
    (
        "alternatives of a chat's logprobs come in another shape",
        lambda asked: asked.wants_logprobs and asked.params.top_logprobs,
    ),
    ("usage in every event cannot be counted on", lambda asked: asked.wants_running_usage),
    ("images and sounds have no ids", lambda asked: not _is_text(asked)),
)
"""What stands against it, the first that holds."""
