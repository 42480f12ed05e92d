"""`python -m router`: one router process, or with `--workers N` the parent of N."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import uvloop

from router.garbage import keep_out_of_the_way
from router.listen import SharedPort
from router.settings import RouterSettings
from router.workers.member import Member, Post
from router.workers.parent import WORKER_FLAG, Parent, own_command
from wire.settings import SettingsError, add_flags, read, render

EXAMPLES = """examples:
  python -m router --port 8000 --registry-endpoints 127.0.0.1:2379
  SWITCHYARD_ROUTER_REGION=eu-west python -m router --config /etc/switchyard.toml
  python -m router --config /etc/switchyard.toml --print-settings
  python -m router --workers 4          SIGHUP replaces the workers one by one, with settings read anew
"""


def run() -> int:
    parser = argparse.ArgumentParser(
        prog="switchyard router",
        description="Serve an OpenAI-compatible endpoint over the replicas of one region.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, RouterSettings, section="router")
    parser.add_argument(WORKER_FLAG, help=argparse.SUPPRESS)
    flags = vars(parser.parse_args())
    try:
        settings, origins = read(RouterSettings, section="router", flags=flags, env=os.environ)
        if flags["print_settings"]:
            sys.stdout.write(render(settings, origins, section="router") + "\n")
            return 0
        post = Post.read(flags["as_worker"]) if flags["as_worker"] else None
        logging.basicConfig(
            level=settings.log_level.upper(),
            format=f"%(asctime)s %(levelname)-7s {post.name + ' ' if post else ''}%(name)s: %(message)s",
            stream=sys.stderr,
        )
        if post is None and settings.workers > 1:
            return uvloop.run(parent(settings))
        serve(settings, post)
    except SettingsError as error:
        sys.stderr.write(f"switchyard router: {error}\n")
        return 2
    return 0


def serve(settings: RouterSettings, post: Post | None) -> None:
    from router.app import main  # the parent of workers does without all this

    keep_out_of_the_way()

    if post is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # meant for the parent
    uvloop.run(main(settings, Member(post) if post else None))


async def parent(settings: RouterSettings) -> int:
    port = SharedPort(settings.host, settings.port)
    logging.getLogger(__name__).info("%d workers on %s:%d", settings.workers, settings.host, port.port)
    return await Parent(settings.workers, port=port, command=own_command()).run()


if __name__ == "__main__":
    sys.exit(run())
