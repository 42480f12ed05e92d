"""Every number the decision uses, with its unit in the name and its source beside it. Data only.

Sources in brackets are those of routing.md; "own" means chosen here, with the reason in README.md.
"""

from __future__ import annotations

import msgspec


class Constants(msgspec.Struct, frozen=True, kw_only=True):
    """Changed for a test, a simulation or `switchyard whatif`, never at run time."""

    # Ties and choice
    tie_ms: float = 5.0
    """Candidates this near to the best are equal: one is drawn, so that many routers do not agree [§2.4]."""
    tie_fraction: float = 0.02
    explore: float = 0.005
    """Share of requests sent to the second best, so that a slow node can be seen to have recovered [llm-d uses 1 %]."""
    explore_ms: float = 2000.0
    """Never explored at a higher expected price than this."""
    excess_tpot_weight: float = 0.05
    """Weight of a slower decode, counted over the expected answer. llm-d's blend would be 0.25; in our simulation that
    cost 8 % of the median time to the first token and made decoding no faster (README.md)."""

    harm_weight: float = 1.0
    """A ms that our prefill takes from the answers of others counts as much as one of our own first token: with it the
    rule minimises what all of them wait, and not only what the newest does [own; simulated in SIMULATION.md]."""

    # Load that an engine cannot hide
    kv_barrier_ms: float = 150.0
    """Cost at half-used KV memory; grows as k / (1 - k) [SMG least_load 0.15 s]."""
    kv_full: float = 0.98
    min_step_tokens: float = 256.0
    """Prefill room of a step is never taken as less than this, however many sequences decode."""

    # Reports
    report_interval_s: float = 0.25
    """Agents push at least this often (node.proto)."""
    stale_after_intervals: float = 3.0
    stale_fade_per_s: float = 0.9
    """What other routers had in flight is believed less by this factor a second once reports stop [§2.4]."""
    suspect_ms: float = 500.0
    stall_after_s: float = 2.0
    """An engine that had work and no token, or no answer to a scrape, for so long is charged that time
    [ReplicaLoad.idle_s, scraped_age_s]."""

    # Learning
    slowness_up: float = 0.3
    slowness_down: float = 0.1
    """Fast to believe that a node is slow, slow to believe that it is fast again [Peak-EWMA]."""
    slowness_floor: float = 0.1
    slowness_ceiling: float = 20.0
    slowness_decay_s: float = 60.0
    """An idle node is forgiven with this time constant: nothing else would ever try it again."""
    censored_share: float = 0.7
    """A request waiting for `age` says slowness >= 0.7 age / predicted, before it ends [own]."""
    class_forget: float = 0.999
    class_bound_known: float = 4.0
    class_bound_unknown: float = 400.0
    """How far learned costs may leave the prior: a CPU is 300 times slower than the GPU an unknown class may be."""
    hit_rate: float = 0.05
    hit_ceiling: float = 1.5
    """Replies are cached too and the index does not know them, so the truth may exceed the prediction."""
    length_rate: float = 0.02
    length_prior_tokens: float = 256.0
    length_keys: int = 4096
    bytes_per_token_rate: float = 0.05
    tokens_per_byte_prior: float = 0.25
    uncertainty_rate: float = 0.05
    uncertainty_prior: float = 0.3
    """Mean of |log(observed / predicted)|; BLIS: TTFT mean error 17.6 %, p99 29 %."""
    coverage_rate: float = 0.02
    """Step of the p90's width toward covering 90 % (online quantile)."""

    # Models that are not loaded, seconds [§2.5: vLLM sleep mode, ServerlessLLM]
    sleeping_s: float = 3.0
    on_disk_s: float = 40.0
    loading_s: float = 20.0
    load_rate: float = 0.3
    adapter_load_ms: float = 400.0
    wake_hysteresis_ms: float = 500.0
    evict_ms: float = 3000.0
    """Charged to a load beside a model in use, which may have to leave for it."""
    in_use_s: float = 60.0
    spill_ms: float = 50.0
    spill_fraction: float = 0.1
    """Another region must be better by the larger of both [GORGO's pathological forwarding]."""
    spill_fade_s: float = 5.0
    """A figure of another region older than this is not used; regions publish each second."""
    fallback_ms: float = 1000.0
    """What an answer of the substitute model is worth less."""
    hold_poll_s: float = 1.0
    """A held request asks again at least so often; news of the fleet wakes it earlier."""

    # Health
    slow_start_s: float = 30.0
    slow_start_floor: float = 0.1
    """Envoy slow start: weight max(0.1, t / 30 s) after a join or a wake."""
    eject_failures: int = 5
    eject_share: float = 0.5
    """Ejected also when success falls so far below the model's mean, over enough outcomes."""
    eject_outcomes: int = 10
    outcome_rate: float = 0.1
    eject_s: float = 10.0
    eject_ceiling_s: float = 300.0
    probation_successes: int = 3
    panic_share: float = 0.5
    """With more than this share of a model's replicas ejected, ejection is ignored and only costs are used [Envoy]."""
    failure_ms: float = 1000.0
    failure_ceiling_ms: float = 30000.0
    failure_half_life_s: float = 10.0
    refusal_ms: float = 500.0

    # Prefix index
    prefix_blocks_total: int = 400_000
    """Block keys over all models; about 150 bytes each (README.md says how measured)."""
    prefix_bytes_per_replica: int = 1_600_000
    """When an engine does not tell its KV capacity: 400k tokens of 4 bytes."""

    # Selection by size
    scan_limit: int = 48
    """Replicas of one model that are all scored; of more, the promising ones [bench_decision.py: which costs less]."""
    holders: int = 24
    shortlist: int = 24
    strangers: int = 2
    """Of those that hold most of the prompt, of those with least to do, and of any: so many are looked at roughly."""
    scored: int = 10
    """So many of them exactly. Of 1,000 replicas with drawn devices, states, loads and shared prefixes this finds one
    as good as the best in 99 decisions of 100; 8, 8 and 4, all scored, did in 85 [own; test_candidates.py]."""
    refresh_s: float = 0.3
    """A row whose figures are older is computed anew: more than the interval of reports, which do so too."""

    # Explaining
    records: int = 1024
    record_candidates: int = 16

    retry_after_s: float = 5.0


RTT_REGION_MS: dict[bool, float] = {True: 0.5, False: 60.0}
"""Round trip inside the region and to another one, until it has been measured."""
