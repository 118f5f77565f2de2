# SPDX-License-Identifier: Apache-2.0
"""A trust domain to measure in: a broker and sidecars as processes of their own, started as an operator would."""

import json
import os
import re
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import grpc

from bench.processes import Late, Program, until
from firedoor.certs import TrustBundle, TrustDomain
from firedoor.wire import (
    admin_grpc,
    admin_pb2,
    agent_grpc,
    agent_pb2,
    bundle_grpc,
    bundle_pb2,
    entry_grpc,
    entry_pb2,
    types,
)

TRUST_DOMAIN = "bench.test"
CLIENT = "/segment/clients/host/a/svc/client"
SERVER = "/segment/servers/host/b/svc/server"
TCP_PORT, HTTP_PORT = 9000, 9001
UID = f"uid:{os.geteuid()}"
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: clients}}
spec:
  function: bench
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/clients/**"]
  admission: {{entry: ["unix:{UID}"], mint: true}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: servers}}
spec:
  function: bench
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/servers/**"]
  admission: {{entry: ["unix:{UID}"]}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: bytes}}
spec:
  owner: bench
  reason: bench
  from: {{segment: clients}}
  to: {{segment: servers, port: {TCP_PORT}}}
  allow: [{{tcp: {{}}}}]
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: requests}}
spec:
  owner: bench
  reason: bench
  from: {{segment: clients}}
  to: {{segment: servers, port: {HTTP_PORT}}}
  allow: [{{http: {{methods: [GET, HEAD], paths: ["/", "/mib"]}}}}]
"""


# As many entries as one call may bring.
OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]


def spiffe_id(path: str) -> str:
    """Return an ID of the trust domain."""
    return f"spiffe://{TRUST_DOMAIN}{path}"


class Server:
    """A server of SPIRE's APIs: a broker, or a real spire-server. `admin_socket` is where administrators call it."""

    admin_socket: Path
    address: str
    program: Program

    def admin(self) -> grpc.Channel:
        """Return a channel to it."""
        return grpc.insecure_channel(f"unix:{self.admin_socket}", options=OPTIONS)

    def join_token(self) -> tuple[str, str]:
        """Make a join token; return the path of its agent's ID, and the token."""
        with self.admin() as channel:
            request = agent_pb2.CreateJoinTokenRequest(ttl=600)
            token = agent_grpc.AgentStub(channel).CreateJoinToken(request, timeout=10).value
        return f"/spire/agent/join_token/{token}", token

    def bundle(self) -> TrustBundle:
        """Return its bundle."""
        with self.admin() as channel:
            found = bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest(), timeout=10)
        return TrustBundle.of(TrustDomain.parse(TRUST_DOMAIN), [one.asn1 for one in found.x509_authorities])

    def create_entries(self, parent: str, *paths: str, timeout: float = 60) -> list[str]:
        """Create an entry below a parent for each path and return their IDs; `timeout` in seconds."""
        return self.create([(parent, path) for path in paths], timeout)

    def create(self, entries: Sequence[tuple[str, str]], timeout: float = 60) -> list[str]:
        """Create entries, each a parent's path and its own, and return their IDs. Raise Late; `timeout` in seconds."""
        messages = [
            types.Entry(
                spiffe_id=types.SPIFFEID(trust_domain=TRUST_DOMAIN, path=path),
                parent_id=types.SPIFFEID(trust_domain=TRUST_DOMAIN, path=parent),
                selectors=[types.Selector(type="unix", value=UID)],
            )
            for parent, path in entries
        ]
        with self.admin() as channel:
            stub = entry_grpc.EntryStub(channel)
            try:
                made = stub.BatchCreateEntry(entry_pb2.BatchCreateEntryRequest(entries=messages), timeout=timeout)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise Late(f"not within {timeout:.0f} s: {len(messages)} entries are created") from None
                raise
        assert all(one.status.code == 0 for one in made.results), made.results[0].status.message
        return [one.entry.id for one in made.results]


class World(Server):
    """One broker, and what is needed to start sidecars."""

    def __init__(
        self,
        folder: Path,
        *broker_words: str,
        policy: Literal["files", "database"] = "files",
        listen: str = "127.0.0.1:0",
        prefix: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.command = (sys.executable, "-m", "firedoor.cli")
        self.admin_socket = folder / "broker.sock"
        self.programs: list[Program] = []
        (folder / "policy.yaml").write_text(POLICY)
        source = ("--segments", str(folder / "policy.yaml")) if policy == "files" else ()
        self.broker = self.program = self._start(
            "broker",
            *("broker", "run", "--trust-domain", TRUST_DOMAIN, "--listen", listen, "--metrics", "off"),
            *("--data-dir", str(folder / "broker"), "--admin-socket", str(self.admin_socket)),
            *("--x509-svid-ttl", "12h", "--ca-ttl", "72h"),
            *(*source, *broker_words),
            prefix=prefix,
        )
        found = re.search(r"listen=(\S+) .*metrics=(\S+)", self.broker.ready())
        assert found
        self.address, self.metrics_address = found.groups()

    def metrics(self) -> dict[str, float]:
        """Return the broker's metrics by name and labels, as written; it was started with an address for them."""
        with urllib.request.urlopen(f"http://{self.metrics_address}/metrics", timeout=60) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def apply(self, documents: Mapping[str, str]) -> tuple[int, int]:
        """Replace the policy in the database; return its generation."""
        made = [admin_pb2.Document(name=name, text=text) for name, text in documents.items()]
        with self.admin() as channel:
            stub = admin_grpc.PolicyAdminStub(channel)
            done = stub.ApplyPolicy(admin_pb2.ApplyPolicyRequest(documents=made), timeout=60)
        return done.generation.epoch, done.generation.number

    def _start(self, name: str, *words: str, prefix: Sequence[str] = ()) -> Program:
        program = Program(self.folder / f"{name}.log", [*prefix, *self.command, *words])
        self.programs.append(program)
        return program

    def sidecar(
        self, name: str, token: str, *, uid: int = 0, prefix: Sequence[str] = (), **settings: object
    ) -> "Sidecar":
        """Start a sidecar that attests by this token, with these keys of its configuration, by `prefix` as a user."""
        home = self.folder / name
        home.mkdir()
        own = {"trust_domain": TRUST_DOMAIN, "broker": [self.address], "metrics": "off", **settings}
        texts = {"token": token, "bundle.json": self.bundle().to_json().decode(), "own.json": json.dumps(own)}
        for file, text in texts.items():
            (home / file).write_text(text)
        for path in (home, *home.iterdir()):
            os.chown(path, uid, uid)
        program = self._start(
            name,
            *("sidecar", "run", "--config", str(home / "own.json"), "--data-dir", str(home / "data")),
            *("--bootstrap-bundle", str(home / "bundle.json"), "--join-token-file", str(home / "token")),
            *("--auth-socket", str(home / "auth.sock"), "--admin-socket", str(home / "admin.sock")),
            prefix=prefix,
        )
        return Sidecar(home, program)

    def stop(self) -> None:
        """End every program, the youngest first."""
        for program in reversed(self.programs):
            program.stop()


class Sidecar:
    """A running sidecar."""

    def __init__(self, home: Path, program: Program) -> None:
        self.program, self.auth_socket = program, home / "auth.sock"
        self._admin_socket = home / "admin.sock"
        program.ready()

    def status(self) -> admin_pb2.GetStatusResponse:
        """Return what `firedoor sidecar status` shows."""
        with grpc.insecure_channel(f"unix:{self._admin_socket}") as channel:
            return admin_grpc.SidecarAdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=10)

    def listening(self, name: str) -> str:
        """Wait until a listener is open and return where."""
        return until(lambda: self._open(name), f"listener {name} is open")

    def _open(self, name: str) -> str:
        return next((one.listen for one in self.status().listeners if one.name == name and one.open), "")
