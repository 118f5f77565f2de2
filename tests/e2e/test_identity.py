# SPDX-License-Identifier: Apache-2.0
"""From a join token to an SVID in a program that we did not write, through rotations, outages and kills."""

import base64
import json
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
import spiffe
from spiffe.workloadapi.errors import FetchJwtSvidError, FetchX509SvidError, ValidateJwtSvidError

from firedoor.certs import parse_x509_svid
from firedoor.wire import workload_grpc, workload_pb2
from tests.e2e.conftest import UID, Program, World
from tests.waiting import PATIENCE, until

pytestmark = pytest.mark.peer

PATH = "/segment/inference/host/h/svc/vllm"
ID = f"spiffe://example.org{PATH}"
HEADER = (("workload.spiffe.io", "true"),)


def serial(world: World) -> int:
    """Return the serial number of the SVID that this process gets."""
    with world.api() as api:
        return api.fetch_x509_svid().leaf.serial_number


def issued(world: World) -> bool:
    """Say whether this process gets an SVID."""
    try:
        serial(world)
    except FetchX509SvidError:
        return False
    return True


@pytest.fixture
def agent(world: World) -> str:
    """A broker, a sidecar that has attested, and one entry for this user: the agent's path."""
    world.start_broker()
    path = world.enrol()
    world.start_sidecar().ready()
    world.create_entry(path, PATH)
    until(lambda: issued(world), "an SVID")
    return path


def sidecar(world: World) -> Program:
    return world.programs[-1]


def test_svid_and_bundle(world: World, agent: str) -> None:
    with world.api() as api:
        svid = api.fetch_x509_svid()
        bundles = api.fetch_x509_bundles()
    assert str(svid.spiffe_id) == ID
    assert [one.trust_domain.name for one in bundles.bundles] == ["example.org"]
    status = world.status()
    assert status is not None
    assert (status.connected, list(status.missing)) == (True, [])
    assert [(one.spiffe_id, one.segment) for one in status.svids] == [(ID, "inference")]


def test_entry_of_another_user_gives_nothing(world: World) -> None:
    world.start_broker()
    path = world.enrol()
    world.start_sidecar().ready()
    # The twin of this process's own entry, but for one selector.
    world.create_entry(path, PATH, UID, "supplementary_gid:4000000000")
    until(lambda: (found := world.status()) and found.svids, "the SVID at the sidecar")
    with world.api() as api, pytest.raises(FetchX509SvidError, match="no identity issued"):
        api.fetch_x509_svid()
    world.create_entry(path, PATH + "-2", UID)
    until(lambda: issued(world), "an SVID")


def test_py_spiffe_sees_rotations(world: World) -> None:
    world.start_broker()
    path = world.enrol()
    world.create_entry(path, PATH, x509_svid_ttl=20)
    world.start_sidecar().ready()
    until(lambda: issued(world), "an SVID")
    serials: list[int] = []
    three = threading.Event()
    source = spiffe.X509Source(socket_path=f"unix://{world.auth_socket()}")

    def updated() -> None:
        serials.append(source.get_x509_context().default_svid.leaf.serial_number)
        if len(set(serials)) >= 3:
            three.set()

    try:
        source.subscribe_for_updates(updated)
        assert three.wait(PATIENCE), serials
    finally:
        source.close()


def test_lost_entitlement_ends_the_stream(world: World, agent: str) -> None:
    extra = world.create_entry(agent, PATH + "-2")
    with grpc.insecure_channel(f"unix:{world.auth_socket()}") as channel:
        stub = workload_grpc.SpiffeWorkloadAPIStub(channel)
        stream = stub.FetchX509SVID(workload_pb2.X509SVIDRequest(), metadata=HEADER, timeout=PATIENCE)
        while len(next(stream).svids) != 2:
            pass
        world.delete_entry(extra)
        # Something else may be new before.
        while len(found := [one.spiffe_id for one in next(stream).svids]) == 2:
            pass
        assert found == [ID]


def test_broker_outage(world: World) -> None:
    broker = world.start_broker()
    path = world.enrol()
    world.create_entry(path, PATH, x509_svid_ttl=40)
    world.start_sidecar().ready()
    until(lambda: issued(world), "an SVID")
    broker.kill()
    # Renewed it can be before that, and not any more.
    before = serial(world)
    until(lambda: (found := world.status()) and not found.connected, "the sidecar's notice")
    assert serial(world) == before
    world.start_broker()
    until(lambda: issued(world) and serial(world) != before, "a renewal after the outage")
    assert world.agents() == [path]


def test_sidecar_killed_and_started_again(world: World, agent: str) -> None:
    sidecar(world).kill()
    again = world.start_sidecar()
    again.ready()
    until(lambda: issued(world), "an SVID")
    assert world.agents() == [agent]
    status = world.status()
    assert status is not None
    assert status.agent_id == f"spiffe://example.org{agent}"
    assert again.stop() == 0


LISTENER = {
    "name": "in",
    "as": ID,
    "listen": "127.0.0.1:0",
    "service_port": 9000,
    "protocol": "tcp",
    "app": {"address": "127.0.0.1:9"},
}


def listeners() -> tuple[str, str]:
    return "--inbound", json.dumps([LISTENER])


@pytest.mark.parametrize("keep", ["disk", "memory"])
def test_started_again_while_the_broker_is_down(world: World, keep: str) -> None:
    words = ("--keep-workload-keys", keep, *listeners())
    broker = world.start_broker()
    path = world.enrol()
    world.create_entry(path, PATH)
    first = world.start_sidecar(*words)
    first.ready()
    before = serial(world)
    broker.kill()
    first.kill()
    again = world.start_sidecar(*words)
    if keep == "disk":
        assert "1 identities, 1 listeners" in again.ready()
        assert serial(world) == before
        status = world.status()
        assert status is not None
        address = status.listeners[0].listen
        with socket.create_connection((address.rpartition(":")[0], int(address.rpartition(":")[2])), timeout=PATIENCE):
            pass
    else:
        found = until(lambda: (one := world.status()) and one.missing and one, "a status that says what is missing")
        assert list(found.missing) == [f"an SVID for {ID}, as inbound listener in is configured"]
        assert not found.listeners[0].open
        until(lambda: "keep_workload_keys" in again.text, "a line that says why")
        world.start_broker()
        again.ready()
        assert serial(world) != before


def test_ban(world: World, agent: str) -> None:
    running = sidecar(world)
    world.ban(agent)
    assert running.wait() == 4
    assert "the server has banned this agent" in running.text
    assert not (world.folder / "s/agent.key").exists()
    again = world.start_sidecar()
    assert again.wait() == 4


def test_evicted_agent_attests_again_with_a_new_token(world: World, agent: str) -> None:
    running = sidecar(world)
    fresh = world.enrol()
    world.evict(agent)
    until(lambda: world.agents() == [fresh], "another attestation")
    world.create_entry(fresh, PATH)
    until(lambda: issued(world), "an SVID")
    # The twin has no new token.
    world.evict(fresh)
    assert running.wait() == 4
    assert "join token does not exist or has already been used" in running.text


def test_token_is_used_once(world: World, agent: str) -> None:
    second = world.start_sidecar(name="t")
    assert second.wait() == 4
    assert "join token does not exist or has already been used" in second.text
    assert "firedoor token create" in second.text
    world.enrol()
    world.start_sidecar(name="u").ready()


def test_wrong_server_is_not_talked_to(world: World) -> None:
    world.start_broker()
    world.enrol()
    program = world.start_sidecar("--trust-domain", "example.com")
    until(lambda: "not attested yet" in program.text, "a line that says why")
    assert world.agents() == []
    world.start_sidecar(name="t").ready()
    assert len(world.agents()) == 1


def test_agent_svid_is_renewed_and_the_stream_lives_on(world: World) -> None:
    world.start_broker("--agent-ttl", "24s")
    path = world.enrol()
    program = world.start_sidecar()
    program.ready()
    until(lambda: program.text.count("agent SVID renewed") >= 2, "two renewals")
    world.create_entry(path, PATH)
    until(lambda: issued(world), "an SVID")
    assert world.agents() == [path]
    program.kill()
    before = len(program.text)
    again = world.start_sidecar()
    again.ready()
    until(lambda: "agent SVID renewed" in again.text[before:], "a renewal after the restart")
    assert "attested" not in again.text.partition("agent SVID renewed")[2]


def test_agent_svid_that_expired_meanwhile_needs_a_new_token(world: World) -> None:
    world.start_broker("--agent-ttl", "20s")
    world.enrol()
    program = world.start_sidecar()
    program.ready()
    program.kill()
    until(lambda: not still_good(world, "s"), "the agent SVID's end")
    again = world.start_sidecar()
    assert again.wait() == 4
    assert "the stored agent SVID has expired" in again.text
    world.enrol()
    world.start_sidecar().ready()


def still_good(world: World, name: str) -> bool:
    """Say whether the stored agent SVID is still good."""
    chain = json.loads((world.folder / name / "agent.json").read_text())["chain"]
    return parse_x509_svid([base64.b64decode(one) for one in chain]).not_after > time.time()


def svid_jwt(world: World, *words: str) -> subprocess.CompletedProcess[str]:
    command = ("svid", "fetch", "jwt", "--auth-socket", str(world.auth_socket()), *words)
    return subprocess.run([sys.executable, "-m", "firedoor.cli", *command], capture_output=True, text=True, check=False)


def test_jwt_svids_from_the_broker_to_another_implementation(world: World, agent: str) -> None:
    other = world.create_entry(agent, PATH + "-2", UID, "supplementary_gid:4000000000")
    with world.api() as api:
        mine = api.fetch_jwt_svid({"models", "tools"})
        assert (str(mine.spiffe_id), mine.audience) == (ID, {"models", "tools"})
        assert str(api.validate_jwt_svid(mine.token, "tools").spiffe_id) == ID
        with pytest.raises(ValidateJwtSvidError):
            api.validate_jwt_svid(mine.token, "elsewhere")
        bundle = api.fetch_jwt_bundles().get_bundle_for_trust_domain(spiffe.TrustDomain("example.org"))
        assert bundle is not None
        assert str(spiffe.JwtSvid.parse_and_validate(mine.token, bundle, {"models"}).spiffe_id) == ID
        with pytest.raises(FetchJwtSvidError, match="no identity issued"):
            api.fetch_jwt_svid({"models"}, spiffe.SpiffeId(ID + "-2"))
    (found,) = json.loads(svid_jwt(world, "--audience", "a", "--audience", "b", "--output", "json").stdout)
    assert (found["spiffe_id"], found["audience"]) == (ID, ["a", "b"])
    with world.api() as api:
        assert str(api.validate_jwt_svid(found["token"], "b").spiffe_id) == ID
    shown = svid_jwt(world, "--audience", "a", "--id", ID)
    assert f"spiffe id  {ID}\naudience   a\nexpires    20" in shown.stdout
    refused = svid_jwt(world, "--audience", "a", "--id", ID + "-2")
    assert (refused.returncode, "no identity issued" in refused.stderr) == (4, True)
    world.delete_entry(other)
    logs = "".join(path.read_text() for path in world.folder.rglob("*") if path.suffix in (".log", ".jsonl"))
    for token in (mine.token, found["token"]):
        assert token.split(".")[1] not in logs
        assert token.split(".")[2] not in logs


def test_a_kept_token_outlives_the_broker(world: World, agent: str) -> None:
    with world.api() as api:
        first = api.fetch_jwt_svid({"models"})
        world.programs[0].kill()
        assert api.fetch_jwt_svid({"models"}).token == first.token
        assert str(api.validate_jwt_svid(first.token, "models").spiffe_id) == ID
        with pytest.raises(FetchJwtSvidError):
            api.fetch_jwt_svid({"another"})
        world.start_broker()
        until(lambda: svid_jwt(world, "--audience", "another").returncode == 0, "a token for another audience")
