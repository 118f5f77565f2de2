# SPDX-License-Identifier: Apache-2.0
"""mTLS between our data path and programs on go-spiffe of another trust domain, a real spire-server above each.

Our side's sidecars are below the one, the programs' stock agents below the other; the servers federate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_datapath import App
from tests.ports import own_port
from tests.spire.conftest import TD, UID
from tests.spire.programs import SpireServer, Workload
from tests.spire.test_sidecar_below_spire import Node
from tests.spire.test_traffic_below_spire import MODELS, POLICY, VLLM, Site, _line, address, app, inbound
from tests.waiting import until

__all__ = ["app"]

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

MakeWorkload = Callable[[dict[str, str]], Workload]
OTHER = "other.org"
PARTNER, STORE, STRANGER = (f"spiffe://{OTHER}/{name}" for name in ("partner/reader", "store/models", "stranger"))
# A foreign ID is in a segment only where its trust domain is written out.
FEDERATED = (
    POLICY
    + f"""\
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: partners}}
spec:
  function: partner
  trust: low
  mode: enforce
  members: ["spiffe://{OTHER}/partner/**"]
  admission: {{entry: ["{UID}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: partners-stores}}
spec:
  function: partner
  trust: low
  mode: enforce
  members: ["spiffe://{OTHER}/store/**"]
  admission: {{entry: ["{UID}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: partners-pull-models}}
spec:
  owner: ml-platform
  reason: partners use our models
  from: {{segment: partners}}
  to: {{segment: registry, port: 9000}}
  allow: [{{tcp: {{}}}}]
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-pulls-from-partners}}
spec:
  owner: ml-platform
  reason: we use the partners' models
  from: {{segment: inference}}
  to: {{segment: partners-stores, port: 9000}}
  allow: [{{tcp: {{}}}}]
"""
)


@pytest.fixture
def port() -> int:
    """Where the bundle endpoint is."""
    return own_port()


@pytest.fixture
def theirs(tmp_path: Path, port: int) -> Iterator[SpireServer]:
    """A real spire-server of another trust domain, with a bundle endpoint."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    endpoint = f'bundle_endpoint {{ address = "127.0.0.1" port = {port} profile "https_spiffe" {{}} }}'
    server = SpireServer(folder, OTHER, more=f"federation {{ {endpoint} }}")
    server.start()
    (folder / "theirs.pem").write_text(server.bundle_pem())
    yield server
    server.close()


@pytest.fixture
def sites(tmp_path: Path, spire_server: SpireServer, theirs: SpireServer, port: int) -> Iterator[tuple[Site, Site]]:
    """Both trust domains: ours fetches their bundle from the endpoint, theirs was given ours."""
    spire_server.cli.ok(
        *("federation", "create", "-trustDomain", OTHER, "-bundleEndpointURL", f"https://127.0.0.1:{port}"),
        *("-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", f"spiffe://{OTHER}/spire/server"),
        *("-trustDomainBundlePath", str(theirs.folder / "theirs.pem")),
    )
    spire_server.cli.ok("federation", "refresh", "-id", f"spiffe://{OTHER}")
    ours = spire_server.cli.ok("bundle", "show", "-format", "spiffe")
    theirs.cli.ok("bundle", "set", "-id", f"spiffe://{TD}", "-format", "spiffe", given=ours)
    here = Site(tmp_path / "here", spire_server, FEDERATED, (OTHER,))
    there = Site(tmp_path / "there", theirs, federates=(TD,))
    for one in (here, there):
        one.folder.mkdir()
    yield here, there
    for one in (here, there):
        one.close()


def knows_both(node: Node) -> bool:
    """Say whether a sidecar hands out both bundles, which its data path has from the same answer."""
    with node.api() as client:
        return {one.trust_domain.name for one in client.fetch_x509_bundles().bundles} == {TD, OTHER}


def test_both_directions_and_when_the_bundle_endpoint_is_gone(
    sites: tuple[Site, Site], app: App, workload: MakeWorkload
) -> None:
    here, there = sites
    models = here.sidecar("r", MODELS, inbound=inbound(app))
    stores = workload(there.stock("s", STORE).environment)
    reader = workload(there.stock("p", PARTNER).environment)
    stranger = workload(there.stock("x", STRANGER).environment)
    out = here.folder / "out.sock"
    serving = stores.follow("serve", "-allow", f"member:{TD}")
    impostor = reader.follow("serve", "-allow", f"member:{TD}")
    listener = {
        "name": "theirs",
        "as": VLLM,
        "listen": f"unix:{out}",
        "protocol": "tcp",
        "expect": [STORE],
        "service_port": 9000,
        # The first proves another identity of that trust domain.
        "addresses": [impostor.next()["listen"], serving.next()["listen"]],
    }
    vllm = here.sidecar("i", VLLM, outbound=listener)
    for node in (models, vllm):
        until(lambda node=node: knows_both(node), "the other trust domain's bundle")
    to = address(models)
    address(vllm)

    def both_ways() -> None:
        """Connect anew: their program to our app by ID, trust domain and list, our app to their program."""
        before = app.accepted
        for allow in (MODELS, f"member:{TD}", f"{VLLM},{MODELS}"):
            assert reader.ask("dial", "-to", to, "-allow", allow) == {"peer": MODELS, "echo": "hello hello\n"}
        assert _line(out) == b"hello\n"
        assert serving.next()["peer"] == VLLM
        # Known by its bundle, and named by no flow.
        assert "error" in stranger.ask("dial", "-to", to, "-allow", MODELS)
        assert app.accepted == before + 3

    both_ways()
    # Tokens, by go-spiffe's JWTSource at either end.
    ours = workload(vllm.environment)
    for one, other, spiffe_id in ((ours, reader, VLLM), (reader, ours, PARTNER)):
        token = one.ask("token", "-audience", "models")["token"]
        assert other.ask("validate", "-audience", "models", given=token)["id"] == spiffe_id
        assert "error" in other.ask("validate", "-audience", "else", given=token)

    there.server.stop()
    assert here.server.cli("federation", "refresh", "-id", f"spiffe://{OTHER}").code == 1
    both_ways()
    token = reader.ask("token", "-audience", "models")["token"]
    assert ours.ask("validate", "-audience", "models", given=token)["id"] == PARTNER

    # Their bundle is taken out: nobody there is known any more, and who is here goes on.
    here.server.cli.ok("bundle", "delete", "-id", f"spiffe://{OTHER}", "-mode", "dissociate")
    until(lambda: "error" in reader.ask("dial", "-to", to, "-allow", MODELS), "the end of their bundle")
    until(lambda: _line(out) == b"", "the end of it outbound")
