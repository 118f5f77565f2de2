# SPDX-License-Identifier: Apache-2.0
"""A broker and sidecars as processes of their own, started as an operator would."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
import spiffe

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
from tests.waiting import PATIENCE, NotInTime

T = TypeVar("T")

UID = f"uid:{os.geteuid()}"
POLICY = f"""\
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: inference}}
spec:
  function: inference
  trust: medium
  mode: enforce
  members: ["spiffe://{{td}}/segment/inference/**"]
  admission: {{entry: ["unix:{UID}"], node: []}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Segment
metadata: {{name: registry}}
spec:
  function: registry
  trust: high
  mode: enforce
  members: ["spiffe://{{td}}/segment/registry/**"]
  admission: {{entry: ["unix:{UID}"], node: []}}
---
apiVersion: firedoor.dev/v1alpha1
kind: Flow
metadata: {{name: inference-pulls-models}}
spec:
  owner: ml-platform
  reason: model weights at start-up
  from: {{segment: inference}}
  to: {{segment: registry, port: 9000}}
  allow: [{{tcp: {{}}}}]
"""


class Program:
    """A `firedoor` process; its stderr goes to a file. `prefix` is what runs it, such as `nsenter`."""

    # What is run.
    module = "firedoor.cli"

    def __init__(self, log: Path, *words: str, prefix: Sequence[str] = ()) -> None:
        self.log = log
        command = [*prefix, sys.executable, "-m", self.module, *words]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, bufsize=0)

    def ready(self) -> str:
        """Wait for the line on stdout."""
        assert self.process.stdout
        found, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        if not found:
            raise NotInTime(f"not within {PATIENCE:.0f} s: that it is ready\n{self.text}")
        line = self.process.stdout.readline().decode()
        assert "ready" in line, f"{line!r}\n{self.text}"
        return line

    @property
    def text(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def kill(self) -> None:
        """End it with no chance to say anything."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end and return its exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def wait(self) -> int:
        """Return the exit code when it ends by itself."""
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Make sure that nothing is left."""
        self.kill()
        assert self.process.stdout
        self.process.stdout.close()


class World:
    """One trust domain: a broker, and what is needed to start sidecars."""

    def __init__(self, folder: Path, trust_domain: str = "example.org", prefix: Sequence[str] = ()) -> None:
        self.folder, self.trust_domain, self.prefix = folder, trust_domain, prefix
        self.address = "127.0.0.1:0"
        self.ready_line = ""
        self.programs: list[Program] = []
        (folder / "policy.yaml").write_text(POLICY)

    def launch_broker(self, *words: str) -> Program:
        """Start the broker, at the same port as before, and do not wait until it is ready."""
        folder = self.folder
        return self._start(
            "broker.log",
            *("broker", "run", "--trust-domain", self.trust_domain, "--listen", self.address, "--metrics", "off"),
            *("--data-dir", str(folder / "broker"), "--admin-socket", str(folder / "b.sock")),
            *("--segments", str(folder / "policy.yaml"), *words),
        )

    def start_broker(self, *words: str) -> Program:
        """Start the broker, at the same port as before."""
        broker = self.launch_broker(*words)
        self.ready_line = broker.ready()
        self.address = self.said("listen")
        return broker

    def said(self, what: str) -> str:
        """Return an address that the broker told when it was ready."""
        found = re.search(rf"\b{what}=(\S+)", self.ready_line)
        assert found, self.ready_line
        return found.group(1)

    def start_sidecar(self, *words: str, name: str = "s", evidence: Sequence[str] = ()) -> Program:
        """Start a sidecar, which attests by the join token unless something else is given."""
        return self._start(
            f"{name}.log",
            *("sidecar", "run", "--trust-domain", self.trust_domain, "--broker", self.address, "--metrics", "off"),
            *("--bootstrap-bundle", str(self.folder / "bundle.json")),
            *(evidence or ("--join-token-file", str(self.folder / "token"))),
            *("--auth-socket", str(self.auth_socket(name)), "--admin-socket", str(self.admin_socket(name))),
            *("--data-dir", str(self.folder / name), *words),
        )

    def _start(self, log: str, *words: str) -> Program:
        program = Program(self.folder / log, *words, prefix=self.prefix)
        self.programs.append(program)
        return program

    def auth_socket(self, name: str = "s") -> Path:
        return self.folder / f"{name}-auth.sock"

    def admin_socket(self, name: str = "s") -> Path:
        return self.folder / f"{name}-admin.sock"

    def admin(self) -> grpc.Channel:
        """Return a channel to the broker's admin socket."""
        return grpc.insecure_channel(f"unix:{self.folder / 'b.sock'}")

    def enrol(self) -> str:
        """Write bundle and join token for the next sidecar, and return the ID that its agent will have."""
        from firedoor.certs import TrustBundle, TrustDomain

        with self.admin() as channel:
            bundle = bundle_grpc.BundleStub(channel).GetBundle(bundle_pb2.GetBundleRequest(), timeout=PATIENCE)
            request = agent_pb2.CreateJoinTokenRequest(ttl=600)
            token = agent_grpc.AgentStub(channel).CreateJoinToken(request, timeout=PATIENCE)
        roots = [one.asn1 for one in bundle.x509_authorities]
        text = TrustBundle.of(TrustDomain.parse(self.trust_domain), roots).to_json()
        (self.folder / "bundle.json").write_bytes(text)
        (self.folder / "token").write_text(token.value + "\n")
        return f"/spire/agent/join_token/{token.value}"

    def write_policy(self, text: str) -> None:
        """Make this the policy, whole at once: the broker may look at any time. It takes it at its next look."""
        new = self.folder / "policy.yaml.new"
        new.write_text(text)
        new.replace(self.folder / "policy.yaml")

    def run(self, *words: str, seconds: float = PATIENCE) -> str:
        """Run a command of an administrator and return what it prints."""
        command = [sys.executable, "-m", "firedoor.cli", *words, "--admin-socket", str(self.folder / "b.sock")]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds).stdout

    def create_entry(self, parent: str, path: str, *selectors: str, **fields: object) -> str:
        """Create an entry and return its ID."""
        entry = types.Entry(
            spiffe_id=types.SPIFFEID(trust_domain=self.trust_domain, path=path),
            parent_id=types.SPIFFEID(trust_domain=self.trust_domain, path=parent),
            selectors=[types.Selector(type="unix", value=one) for one in selectors or (UID,)],
            **fields,  # type: ignore[arg-type]
        )
        with self.admin() as channel:
            stub = entry_grpc.EntryStub(channel)
            request = entry_pb2.BatchCreateEntryRequest(entries=[entry])
            (result,) = stub.BatchCreateEntry(request, timeout=PATIENCE).results
        assert result.status.code == 0, result.status.message
        return result.entry.id

    def delete_entry(self, entry_id: str) -> None:
        """Delete an entry."""
        with self.admin() as channel:
            request = entry_pb2.BatchDeleteEntryRequest(ids=[entry_id])
            (result,) = entry_grpc.EntryStub(channel).BatchDeleteEntry(request, timeout=PATIENCE).results
        assert result.status.code == 0, result.status.message

    def ban(self, agent: str) -> None:
        """Ban an agent."""
        with self.admin() as channel:
            one = types.SPIFFEID(trust_domain=self.trust_domain, path=agent)
            agent_grpc.AgentStub(channel).BanAgent(agent_pb2.BanAgentRequest(id=one), timeout=PATIENCE)

    def evict(self, agent: str) -> None:
        """Make the broker forget an agent."""
        with self.admin() as channel:
            one = types.SPIFFEID(trust_domain=self.trust_domain, path=agent)
            agent_grpc.AgentStub(channel).DeleteAgent(agent_pb2.DeleteAgentRequest(id=one), timeout=PATIENCE)

    def agents(self) -> list[str]:
        """Return the paths of all attested agents."""
        with self.admin() as channel:
            found = agent_grpc.AgentStub(channel).ListAgents(agent_pb2.ListAgentsRequest(), timeout=PATIENCE).agents
        return [one.id.path for one in found]

    def status(self, name: str = "s") -> admin_pb2.GetStatusResponse | None:
        """Return a sidecar's status; None when it does not answer."""
        with grpc.insecure_channel(f"unix:{self.admin_socket(name)}") as channel:
            try:
                return admin_grpc.SidecarAdminStub(channel).GetStatus(admin_pb2.GetStatusRequest(), timeout=PATIENCE)
            except grpc.RpcError:
                return None

    def api(self, name: str = "s") -> spiffe.WorkloadApiClient:
        """Return py-spiffe's client of a sidecar's auth socket."""
        return spiffe.WorkloadApiClient(f"unix://{self.auth_socket(name)}", default_timeout=PATIENCE)

    def close(self) -> None:
        """End every program."""
        for program in reversed(self.programs):
            program.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    found = World(tmp_path)
    yield found
    found.close()
