"""`switchyard up`: everything on one machine, from nothing to a first streamed answer, until Ctrl-C.

The story is `Up._story`, in order. Readiness is what the parts themselves say: the registry answers, replicas are
`ready` in it, the router and the control plane answer their probes. What the processes are told is in core/layout.py;
how they are kept and ended is in house.py.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from control import access, ports, prepare, registry_server
from control.ask import Router as RouterClient
from control.ask import wait_until_answers
from control.core import apikeys, durations, layout, toml, welcome
from control.core.fleet import Fleet, by_state, find_node
from control.core.layout import Layout, Process, Vllm, Wish
from control.core.sse import Figures, told
from control.errors import Failed
from control.house import House
from control.rundir import Run, RunDir, taken
from control.screen import Screen
from control.supervise import Child
from control.up_settings import Engine, RegistryKind, UpSettings
from control.watch import FleetWatch
from wire.connect import RegistrySettings, connect
from wire.records import ApiKey, ModelState, Node, Replica, Tenant, prefix
from wire.records import Router as RouterRecord
from wire.registry import Registry

T = TypeVar("T")

TENANT = "development"
FORMER_RUN = "former run"
FORMER_RUN_LIMIT_S = 60.0
AGENT_RESTART_S = 5.0
"""Engines wait so much longer for their agent, so that a killed one is started again and finds them at work."""
FIRST_ANSWER_TOKENS = 64
REGISTRY_LIMIT_S = 5.0
POLL_S = 0.05
LAST_BREATH_S = 10.0
"""Beyond the time for streams: what a process may need to leave the registry and close its files."""


class Up:
    """One run. `interrupt` ends it in good order, a second one at once."""

    def __init__(self, settings: UpSettings, *, env: Mapping[str, str], screen: Screen, command: str) -> None:
        self._settings = settings
        self._env = {**env, "PYTHONUNBUFFERED": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}
        self._screen = screen
        self._command = command
        self._dir = RunDir(Path(settings.data_dir).absolute())
        self._house = House(screen)
        self._began = time.monotonic()
        self._stop = asyncio.Event()
        self._now = asyncio.Event()

    def interrupt(self) -> None:
        (self._now if self._stop.is_set() else self._stop).set()

    async def run(self, *, once: bool) -> bool:
        """True if everything was up. Raise Failed, with every process ended, if it could not be."""
        self._dir.create()
        with self._dir.held(), self._dir.children_lock() as lock, self._signals():
            async with asyncio.TaskGroup() as group:
                animation = group.create_task(self._screen.animate())
                try:
                    return await self._until_stopped(lock, once)
                finally:
                    await self._end()
                    animation.cancel()

    async def _until_stopped(self, lock: int, once: bool) -> bool:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._house.watch_start())
            try:
                plan = await self._interruptible(self._story(lock, once))
            finally:
                watching.cancel()
        if plan is None or once:
            return plan is not None
        await self._interruptible(self._house.keep(lambda child: self._restarted(child, plan)))
        return True

    async def _end(self) -> None:
        self._screen.settle()
        self._screen.say()
        await self._house.stop(limit_s=self._settings.drain_limit_s + LAST_BREATH_S, now=self._now)
        self._house.close()
        self._screen.settle()

    async def _story(self, lock: int, once: bool) -> Layout:
        self._screen.say(
            f"Starting Switchyard with {self._settings.engine.value} engines; data in {self._settings.data_dir}"
        )
        await self._former_run_ended(lock)
        plan = self._plan()
        if plan.vllm is not None:
            await self._prepare_vllm(plan.vllm)
        self._screen.add("registry", *(a.name for a in plan.agents), "router", "control")
        try:
            async with asyncio.timeout(self._settings.start_limit_s):
                await self._start_registry(plan, lock)
                key = await self._development_key(plan)
                await self._start_fleet(plan, lock)
        except TimeoutError as error:
            raise Failed(self._too_slow()) from error
        self._screen.settle()
        ready_s = time.monotonic() - self._began
        figures = await self._first_answer(plan, key)
        self._dir.tell(self._facts(plan))
        facts = self._welcome(plan, key, ready_s, figures)
        self._screen.say("\n" + (welcome.brief(facts) if once else welcome.render(facts)))
        return plan

    # The steps of the story.

    async def _former_run_ended(self, lock: int) -> None:
        """After a kill -9 of a former `up` its processes need a moment to notice and to end."""
        if taken(lock):
            return
        self._screen.add(FORMER_RUN)
        self._screen.show(FORMER_RUN, "stopping", "it was killed; waiting for its processes to end")
        deadline = time.monotonic() + FORMER_RUN_LIMIT_S
        while not taken(lock):
            if time.monotonic() > deadline:
                raise Failed(
                    f"processes of a former `switchyard up` still run in {self._dir.path}; "
                    f"`fuser -v {self._dir.path / 'children.lock'}` shows them: end them and try again."
                )
            await asyncio.sleep(POLL_S)
        self._screen.show(FORMER_RUN, "stopped")

    def _plan(self) -> Layout:
        """Ports are looked for now, all at once, and the settings files are written."""
        settings = self._settings
        port = ports.public(settings.host, settings.port)
        wish = Wish(
            root=self._dir.path,
            host=settings.host,
            port=port,
            region=settings.region,
            nodes=settings.nodes,
            chat_replicas=settings.chat_replicas,
            drain_limit_s=settings.drain_limit_s,
            orphan_grace_s=settings.grace_s + AGENT_RESTART_S,
            otlp_endpoint=settings.otlp_endpoint,
            vllm=prepare.wish(settings, self._dir.path) if settings.engine is Engine.VLLM else None,
        )
        plan = layout.make(wish, ports.inside(layout.LOOPBACK, port + 1))
        for process in (*plan.agents, plan.router, plan.control):
            self._config(process).write_text(layout.HEADER + toml.dumps(process.settings))
        return plan

    async def _prepare_vllm(self, vllm: Vllm) -> None:
        """Made once; the second time both take a moment."""
        for step in prepare.steps(vllm, logs=self._dir.logs, env=self._env):
            self._screen.show(step.name, "working")
            await step.run(partial(self._screen.show, step.name, "working"))
            self._screen.show(step.name, "done", self._screen.detail(step.name))

    async def _start_registry(self, plan: Layout, lock: int) -> None:
        kind, argv = self._registry_command(plan)
        self._screen.show("registry", "starting", kind)
        self._house.start([self._child("registry", argv, lock)])
        await registry_server.wait_ready(plan.registry, self._settings.start_limit_s)
        self._screen.show("registry", "ready", f"{kind} at {plan.registry}")

    def _registry_command(self, plan: Layout) -> tuple[str, list[str]]:
        wanted, data = self._settings.registry, self._dir.path / "etcd"
        etcd = None if wanted is RegistryKind.EMBEDDED else registry_server.find_etcd(self._settings.etcd_binary)
        if etcd is not None:
            client, peer = plan.registry_port, plan.registry_peer_port
            return "etcd", registry_server.etcd_command(etcd, data_dir=data, client_port=client, peer_port=peer)
        if wanted is RegistryKind.ETCD:
            raise Failed("no etcd was found; name it with --etcd-binary PATH, or use --registry embedded.")
        return "embedded registry", registry_server.embedded_command(
            port=plan.registry_port, data_file=self._dir.path / "registry.json"
        )

    async def _development_key(self, plan: Layout) -> str:
        """The key stays the same from run to run, so that what a person has pasted elsewhere goes on working."""
        key = self._dir.key()
        if not apikeys.is_key(key):
            key = apikeys.make(secrets.token_bytes(apikeys.RANDOM_BYTES))
            self._dir.keep_key(key)
        async with self._registry(plan) as registry:
            await _forget_former_fleet(registry)
            await self._put_key(registry, key)
        return key

    async def _put_key(self, registry: Registry, key: str) -> None:
        now_unix_ns = time.time_ns()
        await access.ensure_tenant(registry, Tenant(tenant=TENANT), changes={})
        record = ApiKey(sha256=apikeys.digest(key), tenant=TENANT, label="switchyard up", created_unix_ns=now_unix_ns)
        await access.add_key(registry, record)

    async def _start_fleet(self, plan: Layout, lock: int) -> None:
        """All at once; each row says how far its process is."""
        for stage in (plan.agents, (plan.control,), (plan.router,)):
            self._house.start([self._child(p.name, self._argv(p), lock) for p in stage])
        for process in (*plan.agents, plan.router, plan.control):
            self._screen.show(process.name, "starting")
        async with self._registry(plan) as registry, asyncio.TaskGroup() as group:
            group.create_task(self._router_ready(plan))
            group.create_task(self._control_ready(plan))
            await self._replicas_ready(plan, registry, group)

    async def _replicas_ready(self, plan: Layout, registry: Registry, group: asyncio.TaskGroup) -> None:
        done = asyncio.Event()
        watch = FleetWatch(registry, on_change=lambda _: done.set() if self._show_nodes(plan, watch.fleet) else None)
        following = group.create_task(watch.run())
        await done.wait()
        following.cancel()

    def _show_nodes(self, plan: Layout, fleet: Fleet) -> bool:
        """True when every promised replica of every node is ready."""
        ready = 0
        for agent in plan.agents:
            replicas = [r for r in fleet.of(Replica) if r.node == agent.name]
            all_ready = sum(r.state is ModelState.READY for r in replicas) >= plan.replicas[agent.name]
            if not find_node(fleet, agent.name):
                continue
            ready += all_ready
            self._screen.show(agent.name, "ready" if all_ready else "loading", _serving(replicas))
        return ready == len(plan.agents)

    async def _router_ready(self, plan: Layout) -> None:
        await wait_until_answers(f"{plan.router.url}/ready")
        self._screen.show("router", "ready", plan.base_url)

    async def _control_ready(self, plan: Layout) -> None:
        await wait_until_answers(f"{plan.control.url}/ready")
        self._screen.show("control", "ready", plan.control.url)

    async def _first_answer(self, plan: Layout, key: str) -> Figures:
        style = self._screen.style
        question = self._settings.question
        self._screen.say(f"\n{style('bold', question)}")
        async with RouterClient(plan.base_url, key) as router:
            figures = await router.chat(
                model=plan.model,
                messages=[{"role": "user", "content": question}],
                on_text=self._screen.write,
                max_tokens=FIRST_ANSWER_TOKENS,
            )
        made_up = "" if plan.vllm else " (simulated engines answer with made-up words)"
        self._screen.say("\n" + style("dim", told(plan.model, figures) + made_up))
        return figures

    async def _restarted(self, child: Child, plan: Layout) -> None:
        """An embedded registry that was killed may have lost what it did not keep."""
        if child.name == "registry":
            await registry_server.wait_ready(plan.registry, self._settings.start_limit_s)
            async with self._registry(plan) as registry:
                await self._put_key(registry, self._dir.key())

    # What the steps stand on.

    def _too_slow(self) -> str:
        limit, names = durations.show(self._settings.start_limit_s), ", ".join(self._screen.unready())
        return f"not ready after {limit}: {names}; see {self._dir.logs}, or wait longer with --start-limit-s."

    def _child(self, name: str, argv: Sequence[str], lock: int) -> Child:
        log = self._dir.logs / f"{name}.log"
        return Child(name, argv, log=log, env=self._env, grace_s=self._settings.grace_s, lock=lock)

    def _argv(self, process: Process) -> list[str]:
        return layout.argv(process, python=sys.executable, config=str(self._config(process)))

    def _config(self, process: Process) -> Path:
        return self._dir.config / f"{process.name}.toml"

    @asynccontextmanager
    async def _registry(self, plan: Layout) -> AsyncIterator[Registry]:
        registry = connect(RegistrySettings(endpoints=(plan.registry,), timeout_s=REGISTRY_LIMIT_S))
        try:
            yield registry
        finally:
            await registry.close()

    def _facts(self, plan: Layout) -> Run:
        return Run(
            pid=os.getpid(),
            region=self._settings.region,
            router_url=plan.router.url,
            control_url=plan.control.url,
            registry_endpoints=(plan.registry,),
            models=(plan.model,),
            journal_dir=plan.journal_dir,
        )

    def _welcome(self, plan: Layout, key: str, ready_s: float, figures: Figures) -> welcome.Welcome:
        default = UpSettings().data_dir
        return welcome.Welcome(
            command=self._command,
            base_url=plan.base_url,
            key=key,
            model=plan.model,
            node=plan.agents[0].name,
            logs=f"{self._settings.data_dir}/logs",
            engine_logs=f"{self._settings.data_dir}/node-*/engines",
            ready_s=ready_s,
            first_token_s=ready_s + figures.ttft_s,
            data_dir="" if self._settings.data_dir == default else str(self._dir.path),
        )

    async def _interruptible(self, work: Coroutine[object, object, T]) -> T | None:
        """The result of the work, or None if an interrupt came first."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            interrupt = group.create_task(self._stop.wait())
            await asyncio.wait((task, interrupt), return_when=asyncio.FIRST_COMPLETED)
            task.cancel()
            interrupt.cancel()
        return None if task.cancelled() else task.result()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, `kill`, and a terminal that closes all mean the same."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for number in numbers:
            loop.add_signal_handler(number, self.interrupt)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


async def _forget_former_fleet(registry: Registry) -> None:
    """Records of a former run live on until their leases end; none of those processes is there any more."""
    for kind in (Node, Replica, RouterRecord):
        for entry in (await registry.list(prefix(kind))).entries:
            await registry.delete(entry.key)


def _serving(replicas: Sequence[Replica]) -> str:
    models = sorted({r.model for r in replicas})
    return "; ".join(f"{model}: {by_state([r for r in replicas if r.model == model])}" for model in models)
