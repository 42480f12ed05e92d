"""python -m loadtest.peers install [GROUP ...] | list"""

from __future__ import annotations

import argparse
import sys

from loadtest.peers import roster
from loadtest.peers.install import GROUPS, install, versions


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.peers", description="The routers we compare with.")
    parser.add_argument("command", choices=("install", "list"))
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"default: {' '.join(GROUPS)}")
    args = parser.parse_args()
    if unknown := set(args.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    if args.command == "install":
        return 0 if install(args.groups or list(GROUPS)) else 1
    for contestant in roster.ALL:
        print(f"{contestant.name:<16} {contestant.about:<42} {contestant.missing() or 'ready'}")
    for group in GROUPS:
        print(f"{group:<16} {versions(group)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
