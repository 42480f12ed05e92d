"""`python -m control`: read the settings, set up logging, serve until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys

from control.app import serve
from control.errors import Failed
from control.settings import ControlSettings
from wire.settings import SettingsError, add_flags, read, render

SECTION = "control"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="switchyard control",
        description="Run the control plane: it watches the fleet and keeps the region's record.",
        epilog="examples:\n  switchyard control --registry-endpoints etcd-1:2379,etcd-2:2379 --region eu-west\n"
        "  switchyard control --config /etc/switchyard.toml --print-settings",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(parser, ControlSettings, section=SECTION)
    args = parser.parse_args()
    try:
        settings, origins = read(ControlSettings, section=SECTION, flags=vars(args), env=os.environ)
    except SettingsError as error:
        print(f"switchyard control: {error}", file=sys.stderr)
        return 2
    if args.print_settings:
        print(render(settings, origins, section=SECTION))
        return 0
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    try:
        asyncio.run(serve(settings))
    except Failed as error:
        print(f"switchyard control: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
