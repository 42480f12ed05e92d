from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.core.reconcile import Capacity, Fate, Found, Size, fates, no_room


def found(**about: object) -> Found:
    usual = {"replica": "n.m.0", "config_hash": "same", "generation": 3, "keeper_alive": True, "engine_alive": True}
    return Found(**{**usual, **about})  # type: ignore[arg-type]


def fate(**about: object) -> Fate:
    return fates([found(**about)], {"n.m.0": "same"})["n.m.0"]


def test_an_engine_that_is_as_we_would_start_it_is_adopted() -> None:
    assert Fate.ADOPT is fate()


def test_an_engine_of_another_configuration_or_of_no_model_of_ours_is_drained() -> None:
    assert Fate.RETIRE is fate(config_hash="other")
    assert {"n.gone.0": Fate.RETIRE} == fates([found(replica="n.gone.0")], {"n.m.0": "same"})


def test_an_engine_without_a_keeper_is_killed_because_nobody_would_notice_its_end() -> None:
    assert Fate.KILL is fate(keeper_alive=False)


def test_an_engine_on_its_way_out_is_waited_for() -> None:
    assert Fate.WAIT is fate(stopping=True)


def test_only_a_file_is_forgotten() -> None:
    assert Fate.FORGET is fate(keeper_alive=False, engine_alive=False)
    assert Fate.FORGET is fate(exited=True, engine_alive=False)


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_a_living_engine_is_never_forgotten(
    keeper: bool, engine: bool, stopping: bool, exited: bool, same: bool
) -> None:
    one = found(
        keeper_alive=keeper,
        engine_alive=engine,
        stopping=stopping,
        exited=exited and not engine,
        config_hash="same" if same else "other",
    )
    decided = fates([one], {"n.m.0": "same"})["n.m.0"]
    assert not (engine and decided is Fate.FORGET)
    assert decided is not Fate.ADOPT or (keeper and same)


HOST = Capacity(slots=2, memory_gib=80)


def test_an_engine_that_fits_is_let_in() -> None:
    assert "" == no_room(HOST, {"a": Size(memory_gib=40)}, "b", Size(memory_gib=40))
    assert "" == no_room(Capacity(), {f"m{n}": Size(slots=9, memory_gib=999) for n in range(9)}, "b", Size())


def test_one_that_does_not_fit_is_told_what_to_put_away() -> None:
    assert "b needs 41 GiB and 40 of 80 are free; sleep or unload one of a" == no_room(
        HOST, {"a": Size(memory_gib=40)}, "b", Size(memory_gib=41)
    )
    assert "slots" in no_room(HOST, {"a": Size(), "c": Size()}, "b", Size())


def test_an_engine_that_is_awake_already_needs_no_more_room() -> None:
    assert "" == no_room(HOST, {"b": Size(memory_gib=80)}, "b", Size(memory_gib=80))
