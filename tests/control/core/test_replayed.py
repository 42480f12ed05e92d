from control.core.replayed import Example, Replayed, in_words


def test_a_replay_is_told_in_shares_and_milliseconds() -> None:
    found = Replayed(decisions=200, changed=30, expected_ms=215.34, instead_ms=243.94, examples=[])
    told = in_words(found, policy="lmetric", constants=["tie_ms=0"])
    assert "of 200 decisions remembered, 30 (15.0%) would have gone elsewhere under lmetric, tie_ms=0" in told
    assert "mean: 215.3 ms as decided, 243.9 ms then (+28.6 ms)" in told


def test_without_a_decision_to_replay_that_is_said() -> None:
    told = in_words(Replayed(0, 0, 0.0, 0.0, []), policy="random", constants=[])
    assert "no decision that random could have made is remembered; send some requests first" == told


def test_an_example_shows_the_difference() -> None:
    assert 25.0 == Example("q", "m", "a", "b", 100.0, 125.0).difference_ms
