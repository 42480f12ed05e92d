"""A toy tokenizer and a toy language model: deterministic, cheap, and with the habits that make real ones hard.

Tokenizer. Ids 0..2 are special, then comes a vocabulary of words and punctuation that the model speaks. Any other
text is cut into pieces of one to four bytes, and the id of a piece is its bytes as a number, so every text has ids and
every id has bytes. A few words are split inside a UTF-8 character: the first half has no text of its own.

Model. The next token is drawn by a hash of all ids so far, prompt and answer alike. So a greedy answer continued from
prompt ids + generated ids goes on exactly as it would have, and so does its end. A sampled answer also depends on the
seed and on the number of tokens since the request began, and one with penalties on the tokens generated since then:
both can be replayed, but not continued from ids. vLLM behaves the same way in all three cases.

Pure. It does not apply logit_bias, top_p, top_k or the size of a temperature: only whether it is zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MASK = (1 << 64) - 1
_HASH = 6364136223846793005
_MIX = 0x9E3779B97F4A7C15

PAD, IM_START, EOS = 0, 1, 2
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")

_SPOKEN = (
    "the a one every this that some many few all river stone light morning evening road house garden window door "
    "table letter story song voice hand eye name word line page book city street market bridge harbour ship engine "
    "signal track yard switch train wheel bell clock hour minute day night week year spring summer autumn winter rain "
    "snow wind cloud sky star moon sun field forest tree leaf branch root seed flower fruit bread water milk salt "
    "small large long short old new young quiet loud bright dark warm cold slow quick early late open closed round "
    "deep high low clear strange simple careful patient honest gentle runs walks waits turns opens closes carries "
    "brings sends finds keeps holds leaves reaches follows answers asks tells shows learns writes reads counts moves "
    "grows falls rises shines listens remembers forgets begins ends and or but while because when where so then "
    "again always often never sometimes almost perhaps together alone near far over under between behind before after "
    "with without through across along toward from into of in on at by for to is was are were has had can could will "
    "would may might must there here they we she he it you who what which each other another same different first "
    "second third last next only also even still just very more most less least much enough"
)
_WORDS = list(dict.fromkeys(_SPOKEN.split()))
# Each is cut inside a character: an event for the first half has an id and no text.
_SPLIT = (
    (" caf\xe9", 5),
    (" na\xefve", 4),
    (" voil\xe0", 6),
    (" d\xe9j\xe0", 3),
    (" \N{WHITE SMILING FACE}", 2),
    (" \N{SLIGHTLY SMILING FACE}", 3),
)
_MARKS = (".", ",", "!", "?", ";", "\n")


def _vocabulary() -> tuple[list[bytes], dict[int, int]]:
    pieces = [b"", b"", b""]
    pieces += [mark.encode() for mark in _MARKS]
    pieces += [f" {w}".encode() for w in _WORDS]
    pieces += [f" {w.capitalize()}".encode() for w in _WORDS]
    pieces += [w.capitalize().encode() for w in _WORDS]
    tails = {}
    for text, cut in _SPLIT:
        whole = text.encode()
        tails[len(pieces)] = len(pieces) + 1
        pieces += [whole[:cut], whole[cut:]]
    return pieces, tails


PIECES, _TAILS = _vocabulary()
_IDS = {piece: i for i, piece in enumerate(PIECES) if piece}
_N = len(_WORDS)
_LOWER = range(3 + len(_MARKS), 3 + len(_MARKS) + _N)
_CAPITAL = range(_LOWER.stop, _LOWER.stop + _N)
_OPENING = range(_CAPITAL.stop, _CAPITAL.stop + _N)
_DOT, _COMMA, _BANG, _WHAT, _SEMI, NEWLINE = range(3, 3 + len(_MARKS))

# Ids of pieces outside the vocabulary: their bytes as a number, above a base for each length.
_BASE = (0, 4096, 4096 + (1 << 8), 4096 + (1 << 8) + (1 << 16), 4096 + (1 << 8) + (1 << 16) + (1 << 24))
VOCAB_SIZE = _BASE[4] + (1 << 28)
# Halves of words come first, so that what the model said is read as the tokens it was said in.
_HALVES = sorted((PIECES[i] for head, tail in _TAILS.items() for i in (head, tail)), key=len, reverse=True)
_SPLITTER = re.compile(b"|".join((*map(re.escape, _HALVES), rb" ?[A-Za-z]+|[0-9]{1,4}|[^A-Za-z0-9]")))


def piece_id(piece: bytes) -> int:
    """Four bytes only when they are ASCII, at seven bits each, so that ids stay below 2^29."""
    if len(piece) == 4:
        a, b, c, d = piece
        return _BASE[4] + (a << 21 | b << 14 | c << 7 | d)
    return _BASE[len(piece)] + int.from_bytes(piece, "big")


def piece(token: int) -> bytes:
    """Bytes of an id below VOCAB_SIZE; special ones have none."""
    if token < len(PIECES):
        return PIECES[token]
    if token < _BASE[1]:
        return b""
    if token >= _BASE[4]:
        n = token - _BASE[4]
        return bytes((n >> 21, n >> 14 & 127, n >> 7 & 127, n & 127))
    length = 1 if token < _BASE[2] else 2 if token < _BASE[3] else 3
    return (token - _BASE[length]).to_bytes(length, "big")


def encode(text: str) -> list[int]:
    """Ids of a text; special tokens in it are plain text."""
    known, ids = _IDS, []
    for part in _SPLITTER.findall(text.encode()):
        token = known.get(part)
        if token is not None:
            ids.append(token)
        elif len(part) <= 4:
            ids.append(piece_id(part))
        else:
            ids += [piece_id(part[i : i + 4]) for i in range(0, len(part), 4)]
    return ids


def decode(ids: Iterable[int]) -> str:
    """Text of ids, special ones left out; halves of characters become replacement characters."""
    return b"".join(map(piece, ids)).decode(errors="replace")


def chat_ids(messages: Iterable[tuple[str, str]], *, generation_prompt: bool, open_last: bool) -> list[int]:
    """ChatML over (role, text); `open_last` leaves the last message unfinished, to be continued."""
    ids: list[int] = []
    for role, text in messages:
        ids += [IM_START, *encode(role), NEWLINE, *encode(text), EOS, NEWLINE]
    if open_last:
        del ids[-2:]
    if generation_prompt:
        ids += [IM_START, *encode("assistant"), NEWLINE]
    return ids


def _tables() -> tuple[list[list[int]], list[list[int]], bytearray]:
    """Per context a table of 4096 next tokens (and one without EOS), and the context that a token makes."""

    def fill(*shares: tuple[int, Sequence[int]]) -> list[int]:
        table = [ids[i % len(ids)] for share, ids in shares for i in range(share)]
        assert len(table) == 4096
        return table

    heads = sorted(_TAILS)
    words = ((3440, _LOWER), (130, heads), (240, [_COMMA]), (250, [_DOT]), (12, [_BANG]), (12, [_WHAT]), (12, [_SEMI]))
    contexts = [
        (fill(*words), None),
        (fill((280, [EOS]), (3816, _CAPITAL)), fill((4096, _CAPITAL))),
        (fill((4096, _OPENING)), None),
    ]
    context = bytearray(len(PIECES))
    context[_COMMA] = context[_SEMI] = len(contexts)
    contexts.append((fill((4096, _LOWER)), None))
    for mark in (_DOT, _BANG, _WHAT):
        context[mark] = 1
    for special in (PAD, IM_START, EOS, NEWLINE):
        context[special] = 2
    for head, tail in _TAILS.items():
        context[head] = len(contexts)
        contexts.append((fill((4096, [tail])), None))
    return [t for t, _ in contexts], [e or t for t, e in contexts], context


_NEXT, _NEXT_OPEN, _CONTEXT = _tables()
_KNOWN = len(PIECES)


def prefix_hashes(ids: Sequence[int], start: int, block: int) -> tuple[int, list[int]]:
    """The hash of all ids, and of each prefix that ends a full block; `start` names the model."""
    state, blocks = start, []
    full = len(ids) - len(ids) % block
    for at in range(0, full, block):
        for token in ids[at : at + block]:
            state = (state * _HASH + token + 1) & MASK
        blocks.append(state)
    for token in ids[full:]:
        state = (state * _HASH + token + 1) & MASK
    return state, blocks


class Model:
    """One answer being drawn. `seed` None is greedy."""

    __slots__ = (
        "_block",
        "_left",
        "_mine",
        "_salted",
        "_script",
        "blocks",
        "count",
        "last",
        "penalised",
        "seed",
        "state",
    )

    def __init__(
        self,
        state: int,
        ids: Sequence[int],
        *,
        blocks: list[int] | None = None,
        block: int = 16,
        seed: int | None = None,
        penalised: bool = False,
        script: Sequence[int] = (),
    ) -> None:
        """`state` and `blocks` as prefix_hashes gave them for the prompt; hashes of blocks that the answer fills are
        added to `blocks`. A script is said token by token, then EOS."""
        self.state = state
        self.last = ids[-1]
        self.blocks = blocks if blocks is not None else []
        self.seed = seed
        self.penalised = penalised
        self.count = 0
        self._block = block
        self._left = block - len(ids) % block
        self._mine = 0
        self._script = script
        self._salted = seed is not None or penalised

    def draw(self, may_end: bool) -> int:
        """The next token; EOS only when it may."""
        if self._script:
            token = self._scripted(may_end)
        else:
            drawn = self.state
            if self._salted:
                drawn ^= self._salt()
            last = self.last
            table = (_NEXT if may_end else _NEXT_OPEN)[_CONTEXT[last] if last < _KNOWN else 0]
            token = table[((drawn * _MIX & MASK) ^ (drawn >> 29)) * _MIX >> 52 & 4095]
        self.state = state = (self.state * _HASH + token + 1) & MASK
        self.last = token
        self.count += 1
        self._left -= 1
        if not self._left:
            self.blocks.append(state)
            self._left = self._block
        if self.penalised:
            self._mine = (self._mine * _HASH + token + 1) & MASK
        return token

    def _salt(self) -> int:
        salt = (self._mine * _MIX) & MASK
        if self.seed is not None:
            salt ^= ((self.seed + 1) * _HASH + self.count * _MIX) & MASK
        return salt

    def _scripted(self, may_end: bool) -> int:
        if self.count < len(self._script):
            return self._script[self.count]
        return EOS if may_end else NEWLINE


def chance(state: int, seed: int | None) -> int:
    """A number to vary scripts by: of the prompt, and of the seed where one is drawn with."""
    return ((state ^ (0 if seed is None else (seed + 1) * _HASH)) * _MIX & MASK) >> 20
