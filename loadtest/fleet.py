"""A simulated fleet in one process: nodes of different speed, models that sleep, an agent's voice for each node.

    python -m loadtest.fleet --plan mixed --registry 127.0.0.1:2379 --key K

Hosts the node agent's simulated engines (node_agent/engines/simulated) on ports of their own, registers each node under
a lease, reports its load ten times a second and wakes a model when a router asks. Dozens of real agents and engines
would need dozens of processes and more cores than a laptop has; what agents do beyond that is not measured here.

`--auto-wake` lets a sleeping engine wake by itself when a request waits for it: for routers that know nothing of model
states, so that a cold model costs them its wake time and not for ever. Prints `fleet {json}` when all is up.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import uvloop

from control.registry_server import wait_ready
from loadtest.register import REGISTRY_LIMIT_S
from loadtest.voice import Voice, access, speaking
from node_agent.engines.simulated.faults import Fault, Kind
from node_agent.engines.simulated.host import Host
from node_agent.engines.simulated.profiles import PROFILES
from node_agent.engines.simulated.replica import Config
from wire.connect import RegistrySettings, connect
from wire.records import ModelState, Node, Replica, encode, key
from wire.registry import Registry
from wire.v1 import node_pb2

LEASE_TTL_S = 10
REPORT_S = 0.1
REGION = "local"
DEVICES = {"llama-3.1-8b-h100": "h100-80g", "llama-3.1-70b-tp4-h100": "h100-80g-tp4"}
"""What an agent would say of the device that a profile describes."""


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    warm: tuple[str, ...]
    """Models that are ready at the start, one replica each."""
    cold: tuple[str, ...] = ()
    """Models that sleep at the start."""
    slowness: float = 1.0
    degrades_to: float = 1.0
    """Factor on top of its slowness from the moment of `--degrade-after`."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[NodeSpec, ...]
    shares: dict[str, float]
    """Of the sessions, by model."""
    wake_s: float = 3.0
    profile: str = "llama-3.1-8b-h100"


def _uniform(count: int) -> Plan:
    return Plan(nodes=tuple(NodeSpec(name=f"n{i}", warm=("sim-a",)) for i in range(count)), shares={"sim-a": 1.0})


def _mixed() -> Plan:
    """Two slow nodes, one that degrades midway, two models that sleep."""
    odd: dict[str, dict[str, object]] = {
        "n1": {"slowness": 2.0},
        "n6": {"slowness": 2.0},
        "n3": {"degrades_to": 4.0},
        "n2": {"cold": ("sim-c",)},
        "n5": {"cold": ("sim-c", "sim-d")},
        "n7": {"cold": ("sim-d",)},
    }
    base: list[dict[str, object]] = [{"name": f"n{i}", "warm": ("sim-a",) if i < 5 else ("sim-b",)} for i in range(8)]
    nodes = tuple(msgspec.convert({**one, **odd.get(str(one["name"]), {})}, NodeSpec) for one in base)
    return Plan(nodes=nodes, shares={"sim-a": 0.6, "sim-b": 0.3, "sim-c": 0.07, "sim-d": 0.03})


PLANS = {"mixed": _mixed(), "uniform": _uniform(8)}


class Described(msgspec.Struct, frozen=True):
    """What the fleet says when it is up."""

    model: str
    address: str
    node: str


class Member:
    """One replica: an engine and what its agent would tell of it."""

    def __init__(self, node: NodeSpec, slot: int, model: str, plan: Plan, *, asleep: bool) -> None:
        self.id = f"{node.name}.{slot}"
        self.node = node.name
        self.model = model
        self.wake_s = plan.wake_s
        self.state = ModelState.READY
        self.wakes = 0
        self.waking_until = 0.0
        config = Config(model=model, profile=PROFILES[plan.profile], time_scale=node.slowness, seed=slot)
        self.host = Host(config, lambda *_: None)
        self.engine = self.host.replica
        if asleep:
            self.state = ModelState.SLEEPING
            self.engine.sleep(1, "abort")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.host.port}"

    def record(self) -> Replica:
        profile = self.host.config.profile
        return Replica(
            replica=self.id,
            node=self.node,
            region=REGION,
            model=self.model,
            address=self.address,
            state=self.state,
            generation=1,
            device_class=DEVICES.get(profile.name, profile.name),
            max_num_seqs=profile.max_num_seqs,
            max_batch_tokens=profile.max_batch_tokens,
            max_model_len=profile.max_model_len,
            kv_capacity_tokens=profile.kv_capacity_tokens,
            prefix_block_tokens=profile.block_tokens,
        )

    def load(self, seen: int) -> node_pb2.ReplicaLoad:
        counters = self.engine.counters()
        return node_pb2.ReplicaLoad(
            replica=self.id,
            generation=1,
            state=getattr(node_pb2, self.state.name),
            load_remaining_s=max(0.0, self.waking_until - self.engine.now()) if self.waking_until else 0.0,
            running=counters.running,
            waiting=counters.waiting,
            waiting_uncached_tokens=-1.0,
            kv_use=counters.kv_use,
            kv_capacity_tokens=self.host.config.profile.kv_capacity_tokens,
            prefix_queries_tokens=counters.prefix_queries_tokens,
            prefix_hits_tokens=counters.prefix_hits_tokens,
            prompt_tokens=counters.prompt_tokens,
            generation_tokens=counters.generation_tokens,
            seen=seen,
        )


class Agent(Voice):
    """The agent of one node, as far as routers speak with it."""

    def __init__(self, spec: NodeSpec, members: Sequence[Member], registry: Registry) -> None:
        super().__init__(spec.name, self.loads, every_s=REPORT_S)
        self.spec = spec
        self.members = {member.id: member for member in members}
        self._registry = registry
        self._lease = 0
        self._waking: dict[str, asyncio.Event] = {}

    async def register(self, address: str) -> int:
        """Put all records under a lease; returns it."""
        self._lease = await self._registry.grant(LEASE_TTL_S)
        node = Node(node=self.spec.name, region=REGION, address=address, device_class="sim", started_unix_ns=self.epoch)
        await self._registry.put(key(node), encode(node), lease=self._lease)
        for member in self.members.values():
            await self.tell(member)
        return self._lease

    async def tell(self, member: Member) -> None:
        await self._registry.put(key(member.record()), encode(member.record()), lease=self._lease)

    async def wake(self, member: Member) -> None:
        """Awake after its wake time; whoever comes meanwhile waits for the same."""
        if member.state is ModelState.READY:
            return
        if member.id in self._waking:
            await self._waking[member.id].wait()
            return
        awake = self._waking[member.id] = asyncio.Event()
        member.state, member.wakes = ModelState.LOADING, member.wakes + 1
        member.waking_until = member.engine.now() + member.wake_s
        await self.tell(member)
        await asyncio.sleep(member.wake_s)
        member.engine.wake()
        member.state = ModelState.READY
        await self.tell(member)
        del self._waking[member.id]
        awake.set()

    async def Wake(self, request: node_pb2.ReplicaCommand, context: Any) -> AsyncIterator[node_pb2.Progress]:  # noqa: N802
        member = self.members.get(request.replica)
        if member is None:
            yield node_pb2.Progress(replica=request.replica, done=True, error="no such replica on this node")
            return
        await self.wake(member)
        yield node_pb2.Progress(replica=member.id, phase="ready", fraction=1.0, done=True)

    async def loads(self, sent: Mapping[str, int]) -> list[node_pb2.ReplicaLoad]:
        return [member.load(sent.get(member.id, 0)) for member in self.members.values()]


async def run(plan: Plan, *, registry_endpoint: str, api_key: str, auto_wake: bool, degrade_after_s: float) -> None:
    """Until cancelled."""
    registry = None
    if registry_endpoint:
        await wait_ready(registry_endpoint, REGISTRY_LIMIT_S)
        registry = connect(RegistrySettings(endpoints=(registry_endpoint,), timeout_s=10.0))
    members = [
        Member(node, slot, model, plan, asleep=slot >= len(node.warm))
        for node in plan.nodes
        for slot, model in enumerate((*node.warm, *node.cold))
    ]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for member in members:
            group.create_task(member.host.run())
        if registry is not None:
            stack.push_async_callback(registry.close)
            await _register_all(stack, group, plan, members, registry, api_key)
        if auto_wake:
            group.create_task(_wake_by_themselves(members))
        group.create_task(_degrade(plan, members, degrade_after_s))
        await asyncio.sleep(0.1)
        described = [Described(member.model, member.address, member.node) for member in members]
        sys.stdout.write(f"fleet {msgspec.json.encode(described).decode()}\n")
        sys.stdout.flush()


async def _register_all(
    stack: AsyncExitStack,
    group: asyncio.TaskGroup,
    plan: Plan,
    members: Sequence[Member],
    registry: Registry,
    api_key: str,
) -> None:
    for record in access(api_key):
        await registry.put(key(record), encode(record))
    for spec in plan.nodes:
        agent = Agent(spec, [member for member in members if member.node == spec.name], registry)
        lease = await agent.register(await stack.enter_async_context(speaking(agent)))
        group.create_task(registry.keep_alive(lease, LEASE_TTL_S))


async def _wake_by_themselves(members: Sequence[Member]) -> None:
    """A sleeping engine that somebody waits for is awake `wake_s` later."""

    async def wake(member: Member) -> None:
        member.state, member.wakes = ModelState.LOADING, member.wakes + 1
        await asyncio.sleep(member.wake_s)
        member.engine.wake()
        member.state = ModelState.READY

    async with asyncio.TaskGroup() as group:
        while True:
            for member in members:
                if member.state is ModelState.SLEEPING and member.engine.stats.active:
                    group.create_task(wake(member))
            await asyncio.sleep(0.02)


async def _degrade(plan: Plan, members: Sequence[Member], after_s: float) -> None:
    """From this moment some nodes are slower than they were."""
    await asyncio.sleep(after_s)
    factors = {node.name: node.degrades_to for node in plan.nodes}
    for member in members:
        if factors[member.node] != 1.0:
            member.engine.faults.add(Fault(kind=Kind.SLOW, factor=factors[member.node]), member.engine.now())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.fleet", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--plan", default="mixed", choices=sorted(PLANS))
    parser.add_argument("--profile", default="", choices=["", *PROFILES], help="of the engines, instead of the plan's")
    parser.add_argument("--registry", default="", help="host:port; empty: nobody is told")
    parser.add_argument("--key", default="sk-fleet", help="API key to create")
    parser.add_argument("--auto-wake", action="store_true", help="sleeping engines wake when a request waits")
    parser.add_argument("--degrade-after", type=float, default=60.0, metavar="SECONDS")
    args = parser.parse_args(argv)
    plan = PLANS[args.plan]
    if args.profile:
        plan = msgspec.structs.replace(plan, profile=args.profile)
    run_ = run(
        plan,
        registry_endpoint=args.registry,
        api_key=args.key,
        auto_wake=args.auto_wake,
        degrade_after_s=args.degrade_after,
    )
    uvloop.run(run_)


if __name__ == "__main__":
    main()
