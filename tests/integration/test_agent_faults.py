"""Show 4 for the agent: kill -9 of an engine, its keeper, the agent, the registry, in the combinations that matter.

What never happens: a process left behind, a stranger killed, an engine touched because of the registry.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tests.integration.agent_house import agent_house, alive, eventually


async def test_a_killed_engine_is_started_again_with_a_new_generation_and_its_record_says_so(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        first = await house.ready()
        pid = house.engine()["pid"]
        os.kill(pid, signal.SIGKILL)
        second = await house.ready(generation=first.generation + 1)
        assert not alive(pid)
        assert second.address == first.address, "a restart keeps its port"
        assert "killed by signal 9" in house.log()


async def test_a_killed_agents_engine_goes_on_and_the_next_agent_adopts_it(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        before, pid = await house.ready(), house.engine()["pid"]
        house.kill()
        assert alive(pid)
        started = (await house.node()).started_unix_ns  # type: ignore[union-attr]
        house.start()

        async def news() -> bool:
            node = await house.node()
            return node is not None and node.started_unix_ns != started

        await eventually(news, but=house.log)
        assert before == await house.ready()
        assert pid == house.engine()["pid"]
        assert alive(pid)


async def test_a_killed_agent_that_does_not_come_back_leaves_nothing_behind(tmp_path: Path) -> None:
    async with agent_house(tmp_path, orphan_grace_s=1.0) as house:
        house.start()
        await house.ready()
        everything = set(house.pids)
        house.kill()
        assert all(map(alive, everything))
        await eventually(lambda: not any(map(alive, everything)))
        await eventually(house.left_the_registry, but=house.log)


async def test_a_killed_keeper_takes_its_engine_along_and_both_are_replaced(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        first = await house.ready()
        engine = house.engine()
        os.kill(engine["keeper_pid"], signal.SIGKILL)
        await house.ready(generation=first.generation + 1)
        assert not alive(engine["pid"])


async def test_agent_and_keeper_killed_at_once_leave_nothing_behind(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        first = await house.ready()
        engine = house.engine()
        house.kill()
        os.kill(engine["keeper_pid"], signal.SIGKILL)
        await eventually(lambda: not alive(engine["pid"]))
        house.start()
        await house.ready(generation=first.generation + 1)


async def test_agent_keeper_and_warden_killed_at_once_are_cleaned_up_by_the_next_agent(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        first = await house.ready()
        engine = house.engine()
        house.kill()
        os.kill(engine["warden_pid"], signal.SIGSTOP)
        os.kill(engine["keeper_pid"], signal.SIGKILL)
        os.kill(engine["warden_pid"], signal.SIGKILL)
        await eventually(lambda: not alive(engine["warden_pid"]))
        assert alive(engine["pid"])
        house.start()
        await house.ready(generation=first.generation + 1)
        assert not alive(engine["pid"])


async def test_a_registry_that_comes_back_empty_is_filled_again_and_engines_are_not_touched(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        before, pid = await house.ready(), house.engine()["pid"]
        await house.registry.stop()
        await eventually(lambda: "trying again" in house.log() or "lost our lease" in house.log(), but=house.log)
        await house.registry.start()
        assert before == await house.ready()
        assert pid == house.engine()["pid"]


async def test_engines_start_while_the_registry_is_away_and_are_registered_when_it_comes(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        await house.registry.stop()
        house.start()
        await eventually(lambda: "ready after" in house.log(), but=house.log)
        await eventually(lambda: "trying again, engines are not touched" in house.log(), but=house.log)
        await house.registry.start()
        assert 1 == (await house.ready()).generation


async def test_a_frozen_engine_is_killed_and_started_anew(tmp_path: Path) -> None:
    async with agent_house(tmp_path, frozen_limit_s=1.0, scrape_timeout_s=0.5) as house:
        house.start()
        first = await house.ready()
        pid = house.engine()["pid"]
        os.kill(pid, signal.SIGSTOP)
        await house.ready(generation=first.generation + 1)
        assert not alive(pid)
        assert "answered no scrape" in house.log()


async def test_an_engine_that_never_starts_is_given_up_with_a_reason(tmp_path: Path) -> None:
    broken = {"name": "sim", "engine": "simulated", "args": ["--no-such-flag"]}
    async with agent_house(tmp_path, models=[broken], crash_limit=2) as house:
        house.start()
        await house.ready(state="failed")
        assert "gave up after 2 crashes" in house.log()


async def test_an_engine_of_changed_settings_is_replaced_by_the_next_agent(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        house.start()
        first = await house.ready()
        pid = house.engine()["pid"]
        house.kill()
        house.settings["models"][0]["max_num_seqs"] = 7
        house.start()
        second = await house.ready(generation=first.generation + 1)
        assert 7 == second.max_num_seqs
        assert not alive(pid)


async def test_a_second_agent_with_the_same_state_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async with agent_house(tmp_path) as house:
        first = house.start()
        await house.ready()
        house.start()
        try:
            assert 2 == await house.exited()
            assert "another node agent runs with state_dir" in house.log()
        finally:
            house.process = first
