"""A real Envoy carries requests to the replicas that the picker chose."""

import json
import subprocess
import sysconfig
from pathlib import Path

import pytest

from conftest import ask, free_port, ready, sim, until

CONFIG = """
admin: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {admin}}}}}}}
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: in
          route_config:
            virtual_hosts:
            - {{name: all, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: replicas, timeout: 60s}}}}]}}
          http_filters:
          - name: envoy.filters.http.ext_proc
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
              grpc_service: {{envoy_grpc: {{cluster_name: picker}}}}
              message_timeout: 60s
              processing_mode:
                request_header_mode: SEND
                request_body_mode: FULL_DUPLEX_STREAMED
                request_trailer_mode: SEND
                response_header_mode: SEND
                response_body_mode: FULL_DUPLEX_STREAMED
                response_trailer_mode: SEND
              metadata_options:
                receiving_namespaces: {{untyped: [envoy.lb]}}
                forwarding_namespaces: {{untyped: [envoy.lb, envoy.lb.subset_hint]}}
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: picker
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment: {{cluster_name: picker, endpoints: [{{lb_endpoints: [{picker}]}}]}}
  - name: replicas
    type: STATIC
    load_balancing_policy:
      policies:
      - typed_extension_config:
          name: envoy.load_balancing_policies.override_host
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost
            override_host_sources: [{{header: x-gateway-destination-endpoint}}]
            fallback_policy:
              policies:
              - typed_extension_config:
                  name: envoy.load_balancing_policies.round_robin
                  typed_config:
                    "@type": type.googleapis.com/envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin
    load_assignment: {{cluster_name: replicas, endpoints: [{{lb_endpoints: [{replicas}]}}]}}
"""


def endpoint(address):
    host, port = address.rsplit(":", 1)
    return f"{{endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}}}"


def envoy_binary():
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("scripts")}:
        for path in Path(folder).rglob("envoy"):
            if path.is_file() and path.stat().st_size > 10 << 20:
                return path
    raise RuntimeError("the wheel has no envoy")


@pytest.fixture
def gateway(start, tmp_path):
    replicas = [sim(start) for _ in range(3)]
    router = start("route", *[r.url for r in replicas], "--port", "0", "--picker-port", "0", "--log-level", "error")
    until(lambda: ready(router) == 3)
    port, admin = free_port(), free_port()
    config = tmp_path / "envoy.yaml"
    config.write_text(
        CONFIG.format(
            port=port, admin=admin, picker=endpoint(router.grpc), replicas=", ".join(endpoint(r.address) for r in replicas)
        )
    )
    log = open(tmp_path / "envoy.log", "w")
    process = subprocess.Popen(
        [envoy_binary(), "-c", config, "--concurrency", "1", "-l", "warn", "--disable-hot-restart"], stderr=log, stdout=log
    )
    url = f"http://127.0.0.1:{port}"

    def is_up():
        assert process.poll() is None, (tmp_path / "envoy.log").read_text()[-3000:]
        try:
            return ask(f"http://127.0.0.1:{admin}", "/ready")[0] == 200
        except OSError:
            return False

    until(is_up, 60)
    yield url, router, replicas
    process.terminate()
    process.wait(timeout=20)


def prompt(seed, tokens=320):
    return [seed * 7 + n % 500 + 1 for n in range(tokens)]


def served(replica):
    text = ask(replica.url, "/metrics")[1].decode()
    lines = [l for l in text.splitlines() if l.startswith("quire_prompt_tokens_total")]
    return float(lines[0].rsplit(" ", 1)[1])


def test_envoy_sends_each_conversation_where_its_prefix_is(gateway):
    url, router, replicas = gateway
    for conversation in range(6):
        body = {"model": "sim", "prompt": prompt(conversation), "max_tokens": 4, "ignore_eos": True}
        before = [served(r) for r in replicas]
        for _ in range(4):
            status, text, _ = ask(url, body=body)
            assert status == 200, text
        moved = [after > was for was, after in zip(before, [served(r) for r in replicas])]
        assert sum(moved) == 1, "one replica served all four"
        assert json.loads(text)["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_envoy_streams_through_and_large_bodies_pass(gateway):
    url, _, _ = gateway
    body = {"model": "sim", "prompt": prompt(1, 30_000), "max_tokens": 8, "ignore_eos": True, "stream": True}
    status, text, _ = ask(url, body=body)
    assert status == 200 and text.decode().rstrip().endswith("data: [DONE]"), text[-300:]


def test_a_refusal_of_the_picker_reaches_the_client(gateway):
    url, router, _ = gateway
    status, text, headers = ask(url, body={"model": "other", "prompt": "x"})
    assert status == 404 and json.loads(text)["error"]["code"] == "model_not_found"
    until(lambda: json.loads(ask(router.url, "/debug/replicas")[1])["pools"][0]["admission"]["in_flight"] == 0)
