"""The laws of the batching model, one test each, and what must hold for any load."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.engines.simulated.batching import Batch, Sequence, Step, Unservable
from node_agent.engines.simulated.profiles import PROFILES, SOURCES, Profile, resized

H100 = PROFILES["llama-3.1-8b-h100"]
SMALL = Profile(
    name="small",
    base_step_ms=10.0,
    sequence_ms=1.0,
    kv_token_us=10.0,
    prefill_token_ms=0.5,
    kv_capacity_tokens=160,
    block_tokens=4,
    max_batch_tokens=16,
    max_num_seqs=4,
    max_model_len=160,
)


def seq(id_: str = "a", prompt: int = 8, out: int = 4, blocks: list[int] | None = None, adapter: str = "") -> Sequence:
    return Sequence(id=id_, prompt_tokens=prompt, max_tokens=out, blocks=blocks or [], adapter=adapter)


def run(batch: Batch, now: float = 0.0, limit: int = 1) -> list[Step]:
    """Until nothing is left to do."""
    steps = []
    while (step := batch.step(now, limit=limit)) is not None:
        steps.append(step)
        now = step.ends_at
    return steps


def ttft(batch: Batch, sequence: Sequence) -> float:
    now = 0.0
    batch.add(sequence, now)
    while (step := batch.step(now)) is not None:
        now = step.ends_at
        if sequence in step.first:
            return now
    raise AssertionError("no first token")


def test_a_sequence_gets_its_first_token_at_the_end_of_the_step_that_finishes_the_prompt():
    batch = Batch(SMALL)
    batch.add(seq(prompt=20, out=2), 0.0)
    one, two, three = run(batch)
    assert ([], 16) == (one.first, one.prefilled_tokens)
    assert (["a"], 4) == ([s.id for s in two.first], two.prefilled_tokens)
    assert ["a"] == [s.id for s in three.decoded]
    assert ["a"] == [s.id for s in three.finished]


def test_time_to_first_token_grows_with_the_prompt_that_is_not_cached():
    times = [ttft(Batch(H100), seq(prompt=n, out=1)) for n in (100, 1_000, 10_000)]
    assert times == sorted(times)
    assert times[2] == pytest.approx(0.036 * 10 + 5 * 0.0069 + 1.2e-9 * 10_000**2 / 2, rel=0.01)


def test_a_step_costs_what_the_profile_says():
    batch = Batch(SMALL)
    batch.add(seq("a", prompt=8, out=9), 0.0)
    first = batch.step(0.0)
    assert first is not None
    assert first.duration_s == pytest.approx((10 + 0.5 * 8) / 1000)
    batch.add(seq("b", prompt=6, out=9), 0.0)
    mixed = batch.step(1.0)
    assert mixed is not None
    assert mixed.duration_s == pytest.approx((10 + 1 + 8 * 0.01 + 0.5 * 6) / 1000)


def test_the_time_between_tokens_grows_with_the_batch():
    def decode_step(n: int) -> float:
        batch = Batch(H100)
        for i in range(n):
            batch.add(seq(str(i), prompt=10, out=50), 0.0)
        now = 0.0
        while (step := batch.step(now)) is not None:
            now = step.ends_at
            if len(step.decoded) == n:
                return step.duration_s
        raise AssertionError("never all decoding")

    assert decode_step(1) < decode_step(32) < decode_step(128)


def test_the_published_decode_step_at_batch_64_and_context_1000_is_met():
    batch = Batch(H100)
    for i in range(64):
        batch.add(seq(str(i), prompt=1000, out=200), 0.0)
    full = next(s for s in run(batch) if len(s.decoded) == 64)
    assert full.duration_s * 1000 == pytest.approx(12.0, rel=0.05)


def test_decoding_sequences_come_before_prefill_in_the_token_budget():
    batch = Batch(SMALL)
    for i in range(3):
        batch.add(seq(f"d{i}", prompt=4, out=30), 0.0)
    batch.step(0.0)
    batch.add(seq("p", prompt=40, out=2), 0.0)
    step = batch.step(1.0)
    assert step is not None
    assert (3, 13) == (len(step.decoded), step.prefilled_tokens)


def test_prompts_are_prefilled_first_come_first_served():
    batch = Batch(SMALL)
    for name in "abc":
        batch.add(seq(name, prompt=12, out=2), 0.0)
    assert ["a", "b", "c"] == [s.id for step in run(batch) for s in step.first]


def test_no_more_sequences_run_than_max_num_seqs():
    batch = Batch(SMALL)
    for i in range(6):
        batch.add(seq(str(i), prompt=4, out=20), 0.0)
    batch.step(0.0)
    counters = batch.counters()
    assert (4, 2) == (counters.running, counters.waiting)


def test_a_prefix_that_another_request_left_is_not_computed_again():
    batch = Batch(SMALL)
    first, second = seq("a", prompt=16, blocks=[1, 2, 3, 4]), seq("b", prompt=20, blocks=[1, 2, 3, 9, 10])
    batch.add(first, 0.0)
    run(batch)
    batch.add(second, 1.0)
    step = batch.step(1.0)
    assert step is not None
    assert (12, 8) == (second.cached_tokens, step.prefilled_tokens)
    assert (36, 12) == (batch.counters().prefix_queries_tokens, batch.counters().prefix_hits_tokens)


def test_the_last_prompt_token_is_always_computed():
    batch = Batch(SMALL)
    for name in "ab":
        batch.add(seq(name, prompt=16, blocks=[1, 2, 3, 4]), 0.0)
        run(batch)
    batch.add(last := seq("c", prompt=16, blocks=[1, 2, 3, 4]), 0.0)
    batch.step(0.0)
    assert 12 == last.cached_tokens


def test_generated_blocks_can_be_found_once_their_owner_has_named_them():
    batch = Batch(SMALL)
    batch.add(one := seq("a", prompt=4, out=6, blocks=[1]), 0.0)
    batch.step(0.0)
    one.blocks.append(2)
    run(batch)
    batch.add(two := seq("b", prompt=12, blocks=[1, 2, 3]), 0.0)
    batch.step(0.0)
    assert 8 == two.cached_tokens


def test_idle_prefixes_are_evicted_oldest_first_and_never_stand_in_the_way():
    batch = Batch(SMALL)
    for i in range(30):
        batch.add(seq(str(i), prompt=16, out=1, blocks=[i * 10 + j for j in range(4)]), 0.0)
        run(batch)
    batch.add(old := seq("old", prompt=16, blocks=[0, 1, 2, 3]), 0.0)
    run(batch)
    batch.add(new := seq("new", prompt=16, blocks=[290, 291, 292, 293]), 0.0)
    run(batch)
    assert (0, 12) == (old.cached_tokens, new.cached_tokens)


def test_without_memory_for_the_next_token_the_newest_is_preempted_and_still_finishes():
    profile = resized(SMALL, kv_capacity_tokens=48)
    batch = Batch(profile)
    a, b = seq("a", prompt=16, out=24), seq("b", prompt=16, out=24)
    batch.add(a, 0.0)
    batch.add(b, 0.0)
    steps = run(batch)
    assert ["b"] == [s.id for step in steps for s in step.preempted]
    assert (24, 24) == (a.generated, b.generated)
    assert (0, 1) == (a.preemptions, b.preemptions)
    assert 1 == batch.counters().preemptions


def test_a_prompt_waits_until_memory_has_room_for_all_of_it():
    batch = Batch(resized(SMALL, kv_capacity_tokens=48))
    batch.add(seq("a", prompt=32, out=8), 0.0)
    batch.step(0.0)
    batch.step(1.0)
    batch.add(seq("b", prompt=24, out=8), 1.0)
    batch.step(2.0)
    assert (1, 1) == (batch.counters().running, batch.counters().waiting)


def test_a_slow_factor_stretches_every_step():
    slow, fast = Batch(SMALL, slow=lambda now: 4.0 if now >= 1 else 1.0), Batch(SMALL)
    for batch in (slow, fast):
        batch.add(seq(prompt=8, out=9), 0.0)
    early = [b.step(0.0) for b in (slow, fast)]
    late = [b.step(1.0) for b in (slow, fast)]
    assert early[0] is not None and early[1] is not None and late[0] is not None and late[1] is not None  # noqa: PT018
    assert early[0].duration_s == early[1].duration_s
    assert late[0].duration_s == pytest.approx(4 * late[1].duration_s)


def test_another_model_on_the_gpu_adds_its_base_step():
    alone, shared = Batch(SMALL), Batch(SMALL)
    shared.models_on_gpu = 2
    assert 0.010 == pytest.approx(ttft(shared, seq()) - ttft(alone, seq()))


def test_each_adapter_in_the_batch_slows_its_steps():
    plain, mixed = Batch(SMALL), Batch(SMALL)
    for i, adapter in enumerate(("x", "y")):
        plain.add(seq(str(i), out=9), 0.0)
        mixed.add(seq(str(i), out=9, adapter=adapter), 0.0)
    assert run(mixed)[-1].duration_s == pytest.approx(run(plain)[-1].duration_s * 1.07)
    assert {} == mixed.adapters


def test_a_cancelled_sequence_frees_its_memory_at_once():
    batch = Batch(SMALL)
    batch.add(running := seq("a", prompt=16, out=9), 0.0)
    batch.step(0.0)
    batch.add(waiting := seq("b"), 0.0)
    assert batch.cancel(running, 0.0)
    assert batch.cancel(waiting, 0.0)
    assert not batch.cancel(running, 0.0)
    assert 0 == batch.pool.used
    assert batch.step(1.0) is None


def test_what_could_never_run_is_refused():
    batch = Batch(SMALL)
    for sequence in (seq(prompt=0), seq(out=0), seq(prompt=150, out=20)):
        with pytest.raises(Unservable):
            batch.add(sequence, 0.0)


def test_waiting_uncached_tokens_leave_out_what_the_cache_holds():
    batch = Batch(SMALL)
    batch.add(seq("a", prompt=16, blocks=[1, 2, 3, 4]), 0.0)
    run(batch)
    batch.add(seq("b", prompt=20, blocks=[1, 2, 3, 4, 5]), 0.0)
    batch.add(seq("c", prompt=10), 0.0)
    assert 4 + 10 == batch.waiting_uncached_tokens()


def test_a_stretch_of_quiet_steps_takes_as_long_as_its_steps():
    one_by_one, merged = Batch(H100), Batch(H100)
    for batch in (one_by_one, merged):
        for i in range(5):
            batch.add(seq(str(i), prompt=100 * (i + 1), out=50 + 13 * i), 0.0)
    steps, stretches = run(one_by_one), run(merged, limit=1000)
    assert steps[-1].ends_at == pytest.approx(stretches[-1].ends_at)
    assert len(stretches) < len(steps) / 5
    assert one_by_one.counters() == merged.counters()


def test_an_arrival_in_a_stretch_takes_back_the_steps_that_had_not_begun():
    batch = Batch(SMALL)
    batch.add(a := seq("a", prompt=8, out=60), 0.0)
    first = batch.step(0.0)
    assert first is not None
    stretch = batch.step(first.ends_at, limit=1000)
    assert stretch is not None
    assert 58 == stretch.steps
    arrival = first.ends_at + 0.050
    batch.add(seq("b", prompt=8, out=4), arrival)
    assert arrival <= stretch.ends_at < arrival + 0.012
    assert 5 == stretch.steps
    joined = batch.step(stretch.ends_at)
    assert joined is not None
    assert ["b"] == [s.id for s in joined.first]
    assert 1 + 5 + 1 == a.generated


def test_profiles_name_a_source_for_each_figure():
    figures = {f for f in Profile.__struct_fields__ if f not in ("name", "block_tokens", "max_model_len")}
    assert figures == set(SOURCES)


def test_a_resized_profile_never_allows_an_answer_that_memory_cannot_hold():
    small = resized(H100, kv_capacity_tokens=1000, block_tokens=16)
    assert 992 == small.max_model_len


Load = st.lists(
    st.tuples(
        st.integers(1, 60),
        st.integers(1, 30),
        st.integers(0, 3),
        st.floats(0, 0.5),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(load=Load, limit=st.sampled_from([1, 7, 1000]), kv=st.sampled_from([96, 128, 400]))
def test_whatever_the_load_tokens_are_conserved_memory_is_never_over_and_all_that_is_wanted_finishes(load, limit, kv):
    batch = Batch(resized(SMALL, kv_capacity_tokens=kv))
    arrivals = sorted(
        ((at, i, prompt, out, group, cancel) for i, (prompt, out, group, at, cancel) in enumerate(load)),
    )
    sequences: dict[str, Sequence] = {}
    got: dict[str, int] = {}
    finished: set[str] = set()
    cancelled: set[str] = set()
    admitted: list[str] = []
    now, held = 0.0, None

    def settle(step: Step | None) -> None:
        if step is not None:
            for id_, n in step.tokens().items():
                got[id_] = got.get(id_, 0) + n
            finished.update(s.id for s in step.finished)

    while arrivals or batch.busy or held is not None:
        if arrivals and (held is None or arrivals[0][0] <= held.ends_at):
            at, i, prompt, out, group, cancel = arrivals.pop(0)
            now = max(now, at)
            s = seq(str(i), prompt, out, [group * 1000 + j for j in range(prompt // 4)])
            sequences[s.id] = s
            batch.add(s, now)
            if cancel:
                batch.cancel(s, now)
                cancelled.add(s.id)
        if held is not None and not (arrivals and arrivals[0][0] <= held.ends_at):
            settle(held)
            now, held = held.ends_at, None
        if held is None:
            held = batch.step(now, limit=limit)
            admitted += [s.id for s in held.first if s.generated == 1] if held else []
        pool = batch.pool
        assert pool.used + len(pool.idle) <= pool.capacity
        assert pool.private >= 0
        assert len(batch.decoding) + len(batch.prefilling) <= SMALL.max_num_seqs
        assert batch.counters().kv_use <= 1

    wanted = set(sequences) - cancelled
    assert wanted == finished
    assert {i: sequences[i].max_tokens for i in wanted} == {i: n for i, n in got.items() if i in wanted}
    assert sum(got.values()) == batch.counters().generation_tokens
    assert 0 == batch.pool.used
    first_tokens = [sequences[i].arrived for i in admitted]
    assert first_tokens == sorted(first_tokens)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(2, 40)), min_size=1, max_size=4),
    step=st.floats(0.001, 0.2),
)
def test_fast_forward_with_interruptions_is_the_same_engine(lengths, step):
    """Interrupted or not, merged or not: the same tokens at the same times."""
    plain, merged = Batch(SMALL), Batch(SMALL)
    ends: list[list[float]] = []
    for batch, limit in ((plain, 1), (merged, 1000)):
        pending = [(i * step, seq(str(i), p, o)) for i, (p, o) in enumerate(lengths)]
        now, held, done = 0.0, None, []
        while pending or held is not None or batch.busy:
            if held is None:
                held = batch.step(now, limit=limit)
                if held is None:
                    now = max(now, pending[0][0])
            if pending and (held is None or pending[0][0] < held.ends_at):
                at, s = pending.pop(0)
                batch.add(s, at)
            elif held is not None:
                now = held.ends_at
                done += [now] * len(held.finished)
                held = None
        ends.append(done)
    assert ends[0] == pytest.approx(ends[1])


def test_sequences_are_told_apart_by_identity_and_not_by_value():
    assert seq() != msgspec.structs.replace(seq())
