"""What a control-plane process is told at its start. Policy that changes at run time lies in the registry."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from wire.connect import RegistrySettings
from wire.settings import LogLevel, Settings


class ControlSettings(Settings, frozen=True, kw_only=True):
    host: Annotated[str, Meta(description="address to listen on for operators")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port for operators; 0: any free one")] = 8100
    region: Annotated[str, Meta(description="region this process keeps")] = "local"
    region_title: Annotated[str, Meta(description="name of the region for people")] = ""
    registry: RegistrySettings = RegistrySettings()
    log_level: Annotated[LogLevel, Meta(description="debug, info, warning or error")] = LogLevel.INFO
