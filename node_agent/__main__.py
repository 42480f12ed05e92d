"""`python -m node_agent --config agent.toml`: read the settings, run the agent, say what went wrong in one sentence."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

# grpc's fork handlers stop the world at each engine start; keepers are exec'ed, they need none. Read at import.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from node_agent.app import run
from node_agent.settings import SECTION, NodeAgentSettings
from wire.settings import SettingsError, add_flags, read, render


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="switchyard node-agent",
        description="Keep the promised engines of this host alive and report their load.",
        epilog="example: switchyard node-agent --config node_agent/sample.toml --print-settings",
        allow_abbrev=False,
    )
    add_flags(parser, NodeAgentSettings, section=SECTION)
    flags = vars(parser.parse_args())
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings, origins = read(NodeAgentSettings, section=SECTION, flags=flags, env=os.environ)
        if flags["print_settings"]:
            sys.stdout.write(render(settings, origins, section=SECTION) + "\n")
            return 0
        asyncio.run(run(settings))
    except SettingsError as error:
        sys.stderr.write(f"switchyard node-agent: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
