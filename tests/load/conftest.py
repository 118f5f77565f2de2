# SPDX-License-Identifier: Apache-2.0
"""A broker, two sidecars with HTTP and opaque listeners between them, and programs at both ends."""

from __future__ import annotations

import json
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import UID, Program, World
from tests.load.programs import App, KeepAlive
from tests.load.traffic import Traffic
from tests.waiting import until

SEGMENT = """\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: {name}}}
spec:
  function: {name}
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/{name}/**"]
  admission: {{entry: ["unix:{uid}"], node: []}}
  {more}
---
"""
FLOW = """\
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: {name}}}
spec:
  owner: ml-platform
  reason: a load
  from: {{segment: {source}}}
  to: {{segment: {destination}, port: {port}}}
  allow: [{action}]
---
"""
GET = '{{http: {{methods: [GET], paths: ["/{}/**"]}}}}'
# What outlives its certificates until it is revoked, and what ends with them.
OUTLIVING, CLOSING = "expiry: {until-revoked: 12h}", "expiry: close"
FLOWS = {
    "pulls": FLOW.format(
        name="pulls", source="inference", destination="registry", port=9000, action=GET.format("models")
    ),
    "follows": FLOW.format(
        name="follows", source="inference", destination="registry", port=9000, action=GET.format("follow")
    ),
    "opaque": FLOW.format(name="opaque", source="inference", destination="registry", port=9001, action="{tcp: {}}"),
    "short": FLOW.format(name="short", source="batch", destination="store", port=9002, action="{tcp: {}}"),
    "brief": FLOW.format(name="brief", source="batch", destination="store", port=9003, action=GET.format("follow")),
}
# A name, who connects to whom, the protocol and the service port.
LISTENERS = (
    ("http", "inference", "registry", "http", 9000),
    ("opaque", "inference", "registry", "tcp", 9001),
    ("short", "batch", "store", "tcp", 9002),
    ("brief", "batch", "store", "http", 9003),
)
IDS = {name: f"/segment/{name}/host/h/svc/x" for name in ("inference", "registry", "batch", "store")}


def policy(*without: str, more: str = OUTLIVING) -> str:
    """Write the policy, less the flows named."""
    segments = {"inference": more, "registry": more, "batch": CLOSING, "store": CLOSING}
    text = "".join(SEGMENT.format(name=name, uid=UID, more=more) for name, more in segments.items())
    return text + "".join(flow for name, flow in FLOWS.items() if name not in without)


def listener(name: str, identity: str, protocol: str, port: int, **more: object) -> dict[str, object]:
    return {
        "name": name,
        "as": f"spiffe://example.org{IDS[identity]}",
        "protocol": protocol,
        "service_port": port,
        **more,
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests report, whether or not their output is captured."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for text in (value for name, value in report.user_properties if name == "report"):
                terminalreporter.section(report.nodeid)
                terminalreporter.line(str(text))


class Estate(World):
    """Sidecar `server` before the programs, sidecar `client` after those that ask."""

    def __init__(self, folder: Path, app: App) -> None:
        super().__init__(folder)
        self.app = app
        # Of the inbound listeners, once they are bound.
        self._addresses: tuple[str, ...] = ("127.0.0.1:0",) * len(LISTENERS)
        self.write_policy(policy())

    def edit(self, text: str) -> None:
        """Make this the policy, and tell the broker."""
        self.write_policy(text)
        self.programs[0].process.send_signal(signal.SIGHUP)

    def change(self, text: str) -> None:
        """Make this the policy, and wait until both sidecars run on it."""
        before = {name: self.generation(name) for name in ("server", "client")}
        self.edit(text)
        until(lambda: all(self.generation(name) > old for name, old in before.items()), "another generation")

    def generation(self, name: str) -> tuple[int, int]:
        status = until(lambda: self.status(name), f"the status of {name}")
        assert status
        return status.generation.epoch, status.generation.number

    @property
    def http(self) -> Path:
        return self.socket("http")

    @property
    def opaque(self) -> Path:
        return self.socket("opaque")

    def socket(self, listener: str) -> Path:
        """Return where an outbound listener is bound."""
        return self.folder / f"{listener}.sock"

    def begin(self, *words: str, server: tuple[str, ...] = ()) -> None:
        """Start the broker with these words, and both sidecars."""
        self.start_broker(*words)
        self.attest("server", "registry", "store")
        self.start_server(*server).ready()
        self.attest("client", "inference", "batch")
        self.start_client().ready()

    def attest(self, name: str, *segments: str) -> None:
        """Make what a new sidecar needs to become that agent."""
        parent = self.enrol()
        (self.folder / "token").replace(self.folder / f"{name}.token")
        for segment in segments:
            self.create_entry(parent, IDS[segment])

    def start(self, name: str, *words: str) -> Program:
        return self.start_sidecar("--join-token-file", str(self.folder / f"{name}.token"), *words, name=name)

    def start_server(self, *words: str) -> Program:
        """Start the sidecar before the programs, at the ports that it had before."""
        apps = {"http": self.app.http, "tcp": self.app.opaque}
        found = [
            listener(name, peer, protocol, port, app={"address": apps[protocol]}, listen=address)
            for (name, _, peer, protocol, port), address in zip(LISTENERS, self._addresses, strict=True)
        ]
        return self.start("server", "--inbound", json.dumps(found), *words)

    def start_client(self, *words: str) -> Program:
        """Start the sidecar of those that ask."""
        self._addresses = self.addresses()
        found = [
            listener(name, identity, protocol, port, listen=f"unix:{self.socket(name)}", addresses=[address])
            | {"expect": [f"spiffe://example.org/segment/{peer}/**"]}
            for (name, identity, peer, protocol, port), address in zip(LISTENERS, self._addresses, strict=True)
        ]
        return self.start("client", "--outbound", json.dumps(found), *words)

    def addresses(self) -> tuple[str, ...]:
        """Return where the inbound listeners are bound."""
        status = self.status("server")
        assert status is not None
        return tuple(one.listen for one in status.listeners)

    def expiry(self, name: str, segment: str) -> int:
        """Return when an SVID that a sidecar holds expires."""
        status = self.status(name)
        assert status is not None
        return next(one.not_after for one in status.svids if one.spiffe_id.endswith(IDS[segment]))


@pytest.fixture(scope="module")
def loop() -> Iterator[Traffic]:
    with Traffic() as found:
        yield found


@pytest.fixture(scope="module")
def app(loop: Traffic) -> Iterator[App]:
    found = loop.call(App().start())
    yield found
    loop.call(found.stop())


@pytest.fixture(scope="module")
def estate(app: App) -> Iterator[Estate]:
    """Nothing is started yet."""
    folder = Path(tempfile.mkdtemp(prefix="fd-"))
    found = Estate(folder, app)
    yield found
    found.close()
    shutil.rmtree(folder)


@pytest.fixture
def traffic(loop: Traffic) -> Iterator[Traffic]:
    """Loads of one test."""
    yield loop
    loop.stop()


@pytest.fixture
def pool(estate: Estate, traffic: Traffic) -> Iterator[KeepAlive]:
    """Connections to the HTTP listener."""
    found = KeepAlive(estate.http)
    yield found
    traffic.stop()
    traffic.call(found.close())
