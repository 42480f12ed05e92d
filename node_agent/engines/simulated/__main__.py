"""Start simulated engines: `python -m node_agent.engines.simulated --port 8101 --model sim-8b`.

Prints one line `ready on host:port` per replica when it begins to listen, and exits 0 after SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from node_agent.engines.simulated.faults import Fault
from node_agent.engines.simulated.host import Host
from node_agent.engines.simulated.profiles import PROFILES, resized
from node_agent.engines.simulated.replica import Config


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m node_agent.engines.simulated", description=(__doc__ or "").split("\n\n")[0]
    )
    p.add_argument("--host", default="127.0.0.1")
    p.add_argument("--port", type=int, default=8000, help="0 lets the kernel choose; the ready line says which")
    p.add_argument("--ports", help="several independent replicas in this process, such as 8101-8124 or 0x24")
    p.add_argument("--model", "--served-model-name", dest="model", default="sim-8b")
    p.add_argument("--profile", default="llama-3.1-8b-h100", choices=sorted(PROFILES))
    p.add_argument("--task", default="generate", choices=["generate", "embed"])
    p.add_argument("--seed", type=int, default=0, help="of unseeded sampling and of faults; replica i adds i")
    p.add_argument("--time-scale", type=float, default=1.0, help="2 makes everything half as fast")
    p.add_argument("--load-time-s", type=float, default=0.0, help="connections are refused for so long")
    p.add_argument("--wake-time-s", type=float, default=0.0)
    p.add_argument("--lora-load-time-s", type=float, default=0.0)
    p.add_argument("--shutdown-timeout", type=float, default=0.0, help="seconds to drain after SIGTERM; 0 aborts")
    p.add_argument("--stream-interval", type=int, default=1, help="tokens in an event, behind the first")
    p.add_argument("--max-num-queued-reqs", type=int)
    p.add_argument("--enable-request-id-headers", action="store_true")
    p.add_argument("--max-num-seqs", type=int)
    p.add_argument("--max-num-batched-tokens", type=int)
    p.add_argument("--max-model-len", type=int)
    p.add_argument("--kv-cache-tokens", type=int)
    p.add_argument("--block-size", type=int)
    p.add_argument(
        "--fault", action="append", default=[], metavar="JSON", help='such as {"kind":"cut","after_tokens":5}'
    )
    return p


def configs(args: argparse.Namespace) -> list[Config]:
    changes = {
        "max_num_seqs": args.max_num_seqs,
        "max_batch_tokens": args.max_num_batched_tokens,
        "max_model_len": args.max_model_len,
        "kv_capacity_tokens": args.kv_cache_tokens,
        "block_tokens": args.block_size,
    }
    profile = resized(PROFILES[args.profile], **{name: value for name, value in changes.items() if value is not None})
    return [
        Config(
            model=args.model,
            profile=profile,
            host=args.host,
            port=port,
            task=args.task,
            seed=args.seed + i,
            time_scale=args.time_scale,
            load_time_s=args.load_time_s,
            wake_time_s=args.wake_time_s,
            lora_load_time_s=args.lora_load_time_s,
            shutdown_timeout_s=args.shutdown_timeout,
            stream_interval=args.stream_interval,
            max_num_queued_reqs=args.max_num_queued_reqs,
            request_id_headers=args.enable_request_id_headers,
        )
        for i, port in enumerate(_ports(args.ports) if args.ports else [args.port])
    ]


def _ports(text: str) -> list[int]:
    if text.startswith("0x"):
        return [0] * int(text[2:])
    first, _, last = text.partition("-")
    return list(range(int(first), int(last or first) + 1))


async def serve(hosts_of: Sequence[Config], faults: Sequence[str]) -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_, ending.set)
    hosts = [Host(config, _say_ready) for config in hosts_of]
    for host in hosts:
        for text in faults:
            host.replica.faults.add(msgspec.json.decode(text, type=Fault), host.replica.now())
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(host.run()) for host in hosts]
        await ending.wait()
        await asyncio.gather(*(host.stop() for host in hosts))
        for task in running:
            task.cancel()


def _say_ready(host: str, port: int) -> None:
    sys.stdout.write(f"ready on {host}:{port}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        uvloop.run(serve(configs(args), args.fault))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"simulated engine: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
