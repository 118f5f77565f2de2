# SPDX-License-Identifier: Apache-2.0
"""The stubs are current, complete, and keep out of the way of other SPIFFE libraries."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, struct_pb2

from firedoor.wire import (
    POOL,
    agent_pb2,
    control_pb2,
    details,
    health_pb2,
    policy_pb2,
    types,
    well_known,
    workload_pb2,
)

ROOT = Path(__file__).parents[2]


def python(code: str, **env: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env or None, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_committed_stubs_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "wire/generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


PY_SPIFFE = "from spiffe._proto import workload_pb2 as theirs"
OURS = "from firedoor.wire import workload_pb2 as ours"
USE = "print(ours.X509SVID(hint='a').hint, theirs.X509SVID(hint='b').hint, ours.X509SVID is theirs.X509SVID)"


@pytest.mark.parametrize("order", [(PY_SPIFFE, OURS), (OURS, PY_SPIFFE)], ids=["theirs_first", "ours_first"])
def test_lives_beside_py_spiffe(order: tuple[str, str]) -> None:
    assert python("\n".join([*order, USE])) == "a b False"


HEALTH = "from grpc_health.v1 import health_pb2 as theirs"
OUR_HEALTH = "from firedoor.wire import health_pb2 as ours"


@pytest.mark.parametrize("order", [(HEALTH, OUR_HEALTH), (OUR_HEALTH, HEALTH)], ids=["theirs_first", "ours_first"])
def test_lives_beside_grpc_health(order: tuple[str, str]) -> None:
    use = "print(ours.HealthCheckRequest(service='a').service, theirs.HealthCheckRequest(service='b').service)"
    assert python("\n".join([*order, use])) == "a b"


def test_works_with_the_pure_python_protobuf() -> None:
    code = (
        "from firedoor.wire import workload_pb2 as w, types\n"
        "r = w.X509SVIDResponse(federated_bundles={'spiffe://a': b'x'})\n"
        "again = w.X509SVIDResponse.FromString(r.SerializeToString())\n"
        "e = types.Entry(); print(dict(again.federated_bundles), e.HasField('additional_attributes'))\n"
    )
    assert python(code, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python") == "{'spiffe://a': b'x'} False"


def test_the_default_pool_knows_nothing_of_ours() -> None:
    for name in ("workload.proto", "firedoor/policy/v1/policy.proto", "spire/api/types/entry.proto"):
        assert POOL.FindFileByName(name).name == name
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("firedoor/policy/v1/policy.proto")


def test_struct_behaves() -> None:
    response = workload_pb2.ValidateJWTSVIDResponse(spiffe_id="spiffe://example.org/a")
    response.claims.update({"sub": "spiffe://example.org/a", "aud": ["x"], "exp": 1.0, "nested": {"n": None}})
    again = workload_pb2.ValidateJWTSVIDResponse.FromString(response.SerializeToString())
    assert next(iter(again.claims.fields["aud"].list_value.values)).string_value == "x"
    assert json_format.MessageToDict(again.claims)["nested"] == {"n": None}
    assert struct_pb2.Struct.FromString(again.claims.SerializeToString())["exp"] == 1.0


def test_wrappers_keep_absence() -> None:
    filters = agent_pb2.ListAgentsRequest.Filter()
    assert not filters.HasField("by_banned")
    filters.by_banned.value = False
    assert agent_pb2.ListAgentsRequest.Filter.FromString(filters.SerializeToString()).HasField("by_banned")


def test_any_packs_messages_of_our_pool() -> None:
    box = well_known.Any()
    box.Pack(types.Selector(type="unix", value="uid:1"))
    assert box.type_url == "type.googleapis.com/spire.api.types.Selector"
    out = types.Selector()
    assert box.Unpack(out)
    assert out.value == "uid:1"
    assert not box.Unpack(types.Entry())


def test_denial_reason_travels() -> None:
    banned = types.PermissionDeniedDetails.AGENT_BANNED
    metadata = details.permission_denied_metadata("agent is banned", banned)
    assert details.permission_denied_reason(metadata) == banned


@pytest.mark.parametrize(
    "metadata",
    [None, (), (("grpc-status-details-bin", b"\xff\xff"),), (("other-bin", b""),)],
    ids=["none", "empty", "garbage", "other_key"],
)
def test_no_denial_reason(metadata: tuple[tuple[str, str | bytes], ...] | None) -> None:
    assert details.permission_denied_reason(metadata) == types.PermissionDeniedDetails.UNKNOWN


def test_unknown_part_and_condition_have_no_kind() -> None:
    # Field 99 stands for a kind that a later version adds.
    unknown = bytes([0x9A, 0x06, 0x00])
    assert control_pb2.Part.FromString(unknown).WhichOneof("kind") is None
    assert policy_pb2.Condition.FromString(unknown).WhichOneof("kind") is None


def test_names_on_the_wire() -> None:
    services = {
        "workload.proto": "SpiffeWorkloadAPI",
        "spire/api/server/agent/v1/agent.proto": "spire.api.server.agent.v1.Agent",
        "spire/api/server/entry/v1/entry.proto": "spire.api.server.entry.v1.Entry",
        "spire/api/server/svid/v1/svid.proto": "spire.api.server.svid.v1.SVID",
        "spire/api/server/bundle/v1/bundle.proto": "spire.api.server.bundle.v1.Bundle",
        "grpc/health/v1/health.proto": "grpc.health.v1.Health",
        "firedoor/control/v1/control.proto": "firedoor.control.v1.Control",
    }
    for file, name in services.items():
        assert [s.full_name for s in POOL.FindFileByName(file).services_by_name.values()] == [name]
    assert health_pb2.HealthCheckResponse.SERVING == 1


def test_workload_api_is_field_for_field_py_spiffes() -> None:
    code = (
        "from spiffe._proto import workload_pb2 as w\n"
        "for m in sorted(w.DESCRIPTOR.message_types_by_name.values(), key=lambda m: m.name):\n"
        "    print(m.name, sorted((f.number, f.name, f.type, f.is_repeated) for f in m.fields))\n"
    )
    theirs = dict(line.split(" ", 1) for line in python(code).splitlines())
    ours = {
        m.name: str(sorted((f.number, f.name, f.type, f.is_repeated) for f in m.fields))
        for m in workload_pb2.DESCRIPTOR.message_types_by_name.values()
    }
    assert {name: ours[name] for name in theirs} == theirs
