"""How a slot looks from outside: its load for routers, its record for the registry. Reads, changes nothing."""

from __future__ import annotations

from node_agent.core.lifecycle import Phase
from node_agent.core.report import Load
from node_agent.settings import NodeAgentSettings
from node_agent.slot import Slot, Way
from wire.records import ModelState, Replica


def load(slot: Slot, now: float) -> Load:
    figures = slot.figures
    return Load(
        replica=slot.plan.replica,
        generation=slot.life.generation,
        state=slot.life.state,
        load_remaining_s=load_remaining_s(slot, now),
        running=figures.running if figures else 0,
        waiting=figures.waiting if figures else 0,
        kv_use=figures.kv_use if figures else 0.0,
        kv_capacity_tokens=figures.kv_capacity_tokens if figures else 0,
        prefix_queries_tokens=figures.prefix_queries_tokens if figures else 0,
        prefix_hits_tokens=figures.prefix_hits_tokens if figures else 0,
        prompt_tokens=figures.prompt_tokens if figures else 0,
        generation_tokens=figures.generation_tokens if figures else 0,
        idle_s=slot.vitals.idle_s(now) if figures else 0.0,
        scraped_at=slot.scraped_at if figures else now,
        adapters=slot.adapters,
    )


def load_remaining_s(slot: Slot, now: float) -> float:
    """Until it can serve: of a load under way, or of one that would begin now. 0 when it serves or never will."""
    phase = slot.life.phase
    match slot.life.state:
        case ModelState.READY | ModelState.DRAINING | ModelState.FAILED:
            return 0.0
        case ModelState.SLEEPING:
            return slot.remaining_s(Way.WAKE, now, under_way=False)
        case ModelState.LOADING if phase is Phase.WAKING:
            return slot.remaining_s(Way.WAKE, now, under_way=True)
        case ModelState.LOADING if phase is Phase.STARTING:
            return slot.remaining_s(Way.LOAD, now, under_way=True)
    back_off_s = max(0.0, (slot.life.due or now) - now) if phase is Phase.BACKOFF else 0.0
    return back_off_s + slot.remaining_s(Way.LOAD, now, under_way=False)


def record(slot: Slot, settings: NodeAgentSettings) -> Replica:
    model, figures = slot.plan.model, slot.figures
    return Replica(
        replica=slot.plan.replica,
        node=settings.node,
        region=settings.region,
        model=model.name,
        address=slot.address,
        state=slot.life.state,
        generation=slot.life.generation,
        moving=slot.life.moving,
        task=model.task,
        adapters=tuple(sorted({*model.adapters, *slot.facts.adapters})),
        device_class=settings.device_class,
        max_num_seqs=model.max_num_seqs,
        max_batch_tokens=model.max_batch_tokens,
        max_model_len=slot.facts.max_model_len or model.max_model_len,
        kv_capacity_tokens=figures.kv_capacity_tokens if figures else 0,
        prefix_block_tokens=figures.block_tokens if figures else 0,
        token_ids=slot.engine.token_ids,
    )
