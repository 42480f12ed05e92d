"""From settings to the list of engines this host promises: one `Plan` per replica, named so that a restart finds it."""

from __future__ import annotations

import re

import msgspec

from node_agent.settings import ModelConfig, NodeAgentSettings
from wire.settings import SettingsError


class Plan(msgspec.Struct, frozen=True):
    replica: str
    """Unique in the region: node, model, number. Slash-free, as it is part of keys and file names."""
    model: ModelConfig


def plans(settings: NodeAgentSettings) -> list[Plan]:
    """Raise SettingsError when two models would share a replica's name."""
    found: dict[str, Plan] = {}
    for model in settings.models:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", model.name).strip("-.")
        for number in range(model.replicas):
            replica = f"{settings.node}.{slug}.{number}"
            if replica in found:
                raise SettingsError(
                    f"models {found[replica].model.name} and {model.name} are too alike: both {replica}"
                )
            found[replica] = Plan(replica, model)
    return list(found.values())
