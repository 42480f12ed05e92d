"""Predictions meet what was observed: as metrics, and the round trip as a term of the next one."""

from __future__ import annotations

import asyncio
import socket

from router.core.constants import RTT_REGION_MS
from router.core.model import Shape
from router.upstream.rtt import kernel_rtt_s
from tests.router.harness import MODEL, Exchange, Router, plays, router_with


def network_ms(router: Router) -> float:
    """Of the only replica."""
    asked = Shape(request_id="x", model=MODEL)
    (candidate,) = router.app.dispatcher.explain(asked, now=asyncio.get_running_loop().time())
    return candidate.terms["network"]


async def takes_a_moment(exchange: Exchange) -> None:
    """The loop's clock counts milliseconds, and an answer within none says nothing about a prediction."""
    clock = asyncio.get_running_loop().time
    asked = clock()
    while clock() < asked + 0.002:
        await asyncio.sleep(0)
    await plays(exchange)


async def test_predicted_and_observed_times_to_first_token_are_compared_as_metrics() -> None:
    async with router_with(takes_a_moment) as (router, _):
        before = (await router.client.get("/metrics")).text
        assert f'switchyard_ttft_predictions_total{{model="{MODEL}"}} 0.0' in before
        assert "switchyard_ttft_prediction_bias_ratio{" not in before
        assert 200 == (await router.chat()).status_code
        after = (await router.client.get("/metrics")).text
        assert f'switchyard_ttft_predictions_total{{model="{MODEL}"}} 1.0' in after
        for name in ("bias", "spread", "p90_coverage"):
            assert f'switchyard_ttft_prediction_{name}_ratio{{model="{MODEL}"}} ' in after


async def test_the_round_trip_of_a_new_connection_to_an_engine_is_learned_for_its_node() -> None:
    async with router_with(plays) as (router, _):
        before = network_ms(router)
        await router.chat()
        learned = network_ms(router)
        assert before - RTT_REGION_MS[True] < learned < before  # loopback is nearer than any region
        await router.chat()
        assert learned == network_ms(router)  # the connection was kept: nothing new is known


async def test_a_socket_that_has_no_round_trip_has_none() -> None:
    with socket.socket() as never_connected:
        assert 0.0 == kernel_rtt_s(never_connected)
    assert 0.0 == kernel_rtt_s(never_connected)
