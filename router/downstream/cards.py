"""Models as OpenAI lists them."""

from __future__ import annotations

import msgspec


class ModelCard(msgspec.Struct):
    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "switchyard"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"
