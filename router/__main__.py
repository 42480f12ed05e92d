"""`python -m router`: one router process."""

from __future__ import annotations

import argparse
import logging
import os
import sys

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import uvloop

from router.app import main
from router.settings import RouterSettings
from wire.settings import SettingsError, add_flags, read, render

EXAMPLES = """examples:
  python -m router --port 8000 --registry-endpoints 127.0.0.1:2379
  SWITCHYARD_ROUTER_REGION=eu-west python -m router --config /etc/switchyard.toml
  python -m router --config /etc/switchyard.toml --print-settings
"""


def run() -> int:
    parser = argparse.ArgumentParser(
        prog="switchyard router",
        description="Serve an OpenAI-compatible endpoint over the replicas of one region.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, RouterSettings, section="router")
    flags = vars(parser.parse_args())
    try:
        settings, origins = read(RouterSettings, section="router", flags=flags, env=os.environ)
        if flags["print_settings"]:
            sys.stdout.write(render(settings, origins, section="router") + "\n")
            return 0
        logging.basicConfig(
            level=settings.log_level.upper(),
            format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        uvloop.run(main(settings))
    except SettingsError as error:
        sys.stderr.write(f"switchyard router: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
