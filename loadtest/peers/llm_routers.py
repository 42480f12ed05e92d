"""LLM routers and gateways from PyPI, each with two engines, quiet logs and limits above the load.

Policy is power of two choices where there is one: their default cache-aware policies keep a tree of prompts, and on
the identical prompts of this load they send everything to one engine and have delayed first tokens by a second.
`python -m loadtest.replay` compares the policies; compare.py compares the cost of carrying a request. Retries and
circuit breakers of the Rust routers are on by default; LiteLLM gets three retries and a time limit, and no fallback
group: with the same engines as a second group it fails at more of the fault scenes, as it repeats a client's own error.
"""

from __future__ import annotations

import msgspec

from loadtest.peers.contestant import Command, Contestant, Launch, Site, environment, lacks
from loadtest.processes import free_port

_LIMIT = "16384"


def _python(group: str) -> str:
    return str(environment(group) / "bin" / "python")


def _workers(site: Site) -> tuple[str, ...]:
    return ("--worker-urls", *(f"http://{engine}" for engine in site.engines))


def _listen(site: Site) -> tuple[str, ...]:
    return ("--host", "127.0.0.1", "--port", str(site.port), "--prometheus-port", str(free_port()))


def _rust(name: str, module: tuple[str, ...], site: Site, *options: str) -> Launch:
    argv = (_python("routers"), "-m", *module, *_listen(site), *_workers(site))
    argv += ("--max-concurrent-requests", _LIMIT, "--health-check-interval-secs", "1", *options)
    return Launch(router=Command(name=name, argv=argv), port=site.port, health="/health")


def vllm_router(site: Site, policy: str = "power_of_two") -> Launch:
    options = ("--policy", policy, "--log-level", "error")
    return _rust("vllm-router", ("vllm_router.launch_router",), site, *options)


def smg(site: Site, policy: str = "power_of_two") -> Launch:
    options = ("--policy", policy, "--log-level", "error", "--backend", "vllm", "--model-path", site.model)
    return _rust("smg", ("smg.launch_router",), site, *options, "--disable-tokenizer-autoload")


def sglang_router(site: Site, policy: str = "power_of_two") -> Launch:
    options = ("--policy", policy, "--log-level", "error")
    return _rust("sglang-router", ("sglang_router.launch_router",), site, *options)


def litellm(site: Site) -> Launch:
    models = [
        {
            "model_name": site.model,
            "litellm_params": {
                "model": f"hosted_vllm/{site.model}",
                "api_base": f"http://{engine}/v1",
                "api_key": "none",
            },
        }
        for engine in site.engines
    ]
    config = {
        "model_list": models,
        "router_settings": {
            "routing_strategy": "least-busy",
            "num_retries": 3,
            "stream_timeout": 20,
            "cooldown_time": 1,
        },
        "general_settings": {"master_key": "sk-compare"},
        "litellm_settings": {"telemetry": False, "request_timeout": 600},
    }
    path = site.directory / "litellm.yaml"
    path.write_bytes(msgspec.json.encode(config))
    program = str(environment("litellm") / "bin" / "litellm")
    options = ("--config", str(path), "--host", "127.0.0.1", "--port", str(site.port), "--num_workers", "1")
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    command = Command(name="litellm", argv=(program, *options), env=env)
    return Launch(router=command, port=site.port, health="/health/liveliness", api_key="sk-compare")


CONTESTANTS = (
    Contestant(
        name="vllm-router", about="LLM router, Rust", missing=lacks("routers", "vllm-router"), launch=vllm_router
    ),
    Contestant(name="smg", about="LLM gateway, Rust", missing=lacks("routers", "smg"), launch=smg),
    Contestant(
        name="sglang-router", about="LLM router, Rust", missing=lacks("routers", "sglang-router"), launch=sglang_router
    ),
    Contestant(name="litellm", about="LLM gateway, Python", missing=lacks("litellm", "litellm"), launch=litellm),
)
