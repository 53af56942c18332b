"""gRPC as a router written in another language uses it: stubs that `grpcio-tools` makes from our contract."""

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from google.rpc import error_details_pb2

from conftest import Server

pytestmark = pytest.mark.skipif("QUIRE_URL" in os.environ, reason="needs a server with a gRPC port")

CONTRACT = Path(__file__).resolve().parents[2] / "base" / "proto"
PROMPT = "A lease is the right to read published pages. " * 12
NAMESPACES = '[[namespace]]\nname = "acme"\napi_keys = ["acme-key"]\n'
OPERATOR = [("authorization", "Bearer root")]
TENANT = [("authorization", "Bearer acme-key")]
WAIT_S = 60


@pytest.fixture(scope="module")
def quire(tmp_path_factory):
    """The generated modules."""
    out = tmp_path_factory.mktemp("stubs")
    files = sorted(str(path.relative_to(CONTRACT)) for path in CONTRACT.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{CONTRACT}", f"--python_out={out}"]
    subprocess.run([*command, f"--grpc_python_out={out}", *files], check=True)
    sys.path.insert(0, str(out))
    from quire.v1 import cache_pb2, cache_pb2_grpc, replica_pb2, replica_pb2_grpc, types_pb2

    class Stubs:
        pass

    stubs = Stubs()
    for module in (cache_pb2, replica_pb2, types_pb2):
        vars(stubs).update({name: getattr(module, name) for name in dir(module) if name[0].isupper()})
    stubs.CacheStub, stubs.ReplicaStub = cache_pb2_grpc.CacheStub, replica_pb2_grpc.ReplicaStub
    return stubs


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    names = tmp_path_factory.mktemp("node") / "namespaces.toml"
    names.write_text(NAMESPACES)
    server = Server(
        "--grpc-port", "0", "--admin-key", "root", "--namespaces", str(names), "--kv-host-memory", "64MiB"
    )
    with grpc.insecure_channel(server.grpc) as channel:
        yield server, channel
    assert server.end() == 0


def ask(server, prompt):
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="acme-key")
    model = client.models.list().data[0].id
    return client.completions.create(model=model, prompt=prompt, max_tokens=2)


class Follower:
    def __init__(self, quire, channel, **request):
        self.stream = quire.CacheStub(channel).KvEvents(
            quire.KvEventsRequest(**request), metadata=OPERATOR, timeout=WAIT_S
        )
        self.hello = next(self.stream).hello
        self.blocks, self.next, self.purged = {}, None, []

    def store(self, run):
        for block in run.hashes:
            self.blocks.setdefault(block, set()).update(run.tiers)

    def step(self):
        message = next(self.stream)
        kind = message.WhichOneof("message")
        if kind == "snapshot_page":
            for run in message.snapshot_page.runs:
                self.store(run)
        elif kind == "snapshot_end":
            assert message.snapshot_end.blocks == len(self.blocks)
            self.next = message.snapshot_end.next.next_sequence
        elif kind == "batch":
            assert self.next in (None, message.batch.sequence)
            for event in message.batch.events:
                self.apply(event)
            if not message.batch.more:
                assert message.batch.load.in_flight_max > 0
                self.next = message.batch.sequence + 1
        return kind

    def apply(self, event):
        kind = event.WhichOneof("event")
        if kind == "stored":
            assert not event.stored.token_ids
            self.store(event.stored)
        elif kind == "removed":
            for block in event.removed.hashes:
                self.blocks[block].remove(event.removed.tier)
                if not self.blocks[block]:
                    del self.blocks[block]
        elif kind == "purged":
            self.purged.append(event.purged)


def test_health_needs_no_key_and_model_info_any(quire, node):
    _, channel = node
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "quire.v1.Cache", "quire.v1.Replica"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=WAIT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    replica = quire.ReplicaStub(channel)
    with pytest.raises(grpc.RpcError) as refused:
        replica.ModelInfo(quire.ModelInfoRequest(), timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    info = replica.ModelInfo(quire.ModelInfoRequest(), metadata=TENANT, timeout=WAIT_S)
    assert info.models and info.page_tokens >= 16 and len(info.model_digest) == 32
    load = next(replica.Load(quire.LoadRequest(), metadata=OPERATOR, timeout=WAIT_S))
    assert load.pages_total == info.device_pages


def test_reflection_lists_the_services(node):
    server, _ = node

    class Keyed(grpc.StreamStreamClientInterceptor):
        def intercept_stream_stream(self, continuation, details, requests):
            return continuation(details._replace(metadata=TENANT), requests)

    with grpc.insecure_channel(server.grpc) as channel:
        keyed = grpc.intercept_channel(channel, Keyed())
        services = ProtoReflectionDescriptorDatabase(keyed).get_services()
        assert {"quire.v1.Cache", "quire.v1.Replica", "grpc.health.v1.Health"} <= set(services)


def test_events_begin_with_a_snapshot_and_can_be_resumed(quire, node):
    server, channel = node
    ask(server, f"first {PROMPT}")
    follower = Follower(quire, channel)
    while follower.step() != "snapshot_end":
        pass
    ask(server, f"second {PROMPT}")
    before = len(follower.blocks)
    while len(follower.blocks) <= before:
        follower.step()
    position = quire.Position(incarnation=follower.hello.incarnation, next_sequence=follower.next)
    follower.stream.cancel()
    ask(server, f"third {PROMPT}")
    again = Follower(quire, channel, resume=position)
    again.blocks, again.next = dict(follower.blocks), position.next_sequence
    before = len(again.blocks)
    while len(again.blocks) <= before:
        assert again.step() == "batch"
    again.stream.cancel()


def test_a_purge_is_heard_and_its_report_verifies(quire, node, tmp_path):
    server, channel = node
    ask(server, f"purged {PROMPT}")
    follower = Follower(quire, channel)
    cache = quire.CacheStub(channel)
    order = quire.PurgeRequest(namespace="acme")
    with pytest.raises(grpc.RpcError) as refused:
        cache.Purge(order, metadata=TENANT, timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    answer = cache.Purge(order, metadata=OPERATOR, timeout=WAIT_S)
    assert answer.report.guarantee == quire.GUARANTEE_ERASED
    assert json.loads(answer.signed_payload) == json.loads(answer.signed_report_json)["report"]
    report = tmp_path / "acme.json"
    report.write_text(answer.signed_report_json)
    binary = os.environ["QUIRE_COMMAND"].split("\n")[0]
    subprocess.run([binary, "verify", str(report), "--public-key", answer.public_key.hex()], check=True)
    while not follower.purged:
        follower.step()
    purged = follower.purged[0]
    assert (purged.namespace, purged.up_to_generation) == ("acme", answer.report.generation)
    assert purged.blocks > 0
    follower.stream.cancel()


def test_a_wrong_field_is_named_in_the_details(quire, node):
    _, channel = node
    with pytest.raises(grpc.RpcError) as refused:
        order = quire.PurgeRequest(namespace="nobody")
        quire.CacheStub(channel).Purge(order, metadata=OPERATOR, timeout=WAIT_S)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    wrong = error_details_pb2.BadRequest()
    details = rpc_status.from_call(refused.value).details
    assert any(detail.Unpack(wrong) for detail in details)
    assert wrong.field_violations[0].field == "namespace"
