# SPDX-License-Identifier: Apache-2.0
"""OpenBao, which has Vault's API and PKI secrets engine, as a process on loopback.

    with bao(folder) as vault:
        root = vault.engine("pki")
        vault.policy("firedoor", SIGN_POLICY)
        role_id, secret_id = vault.app_role("firedoor")

It comes from `make peers`; without it `bao` skips and says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kubernetes.api import Api, ApiError
from tests.ports import own_port
from tests.spire.programs import Daemon, needed
from tests.waiting import until
from tests.web_pki import WebPki

# A port that was free may be taken a moment later.
_TRIES = 5
# Starting a large program on a busy machine.
_SECONDS = 100.0
# What docs/spire.md has an operator write.
DOCUMENT = (Path(__file__).parents[1] / "docs" / "spire.md").read_text()
(SIGN_POLICY,) = re.findall(r"^```hcl policy\n(.*?)^```", DOCUMENT, re.M | re.S)


@dataclass(frozen=True)
class Asked:
    """One call. `operator`: with the token that may do everything."""

    path: str
    operator: bool


class Bao:
    """A server with its storage in a folder. `root_token` may do everything."""

    def __init__(self, folder: Path, web: WebPki) -> None:
        self.folder, self.web = folder, web
        self.daemon = Daemon(folder / "bao.log")
        self.daemon.more_environment = {"HOME": str(folder)}
        self._program = needed("openbao", "openbao")
        self.root_token = self._unseal_key = ""
        self.port = self.cluster_port = 0
        self.calls = folder / "calls.log"
        (folder / "storage").mkdir()
        web.write(folder, "127.0.0.1")
        (folder / "ca.pem").write_bytes(web.root_pem)

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def api(self, namespace: str = "", token: str | None = None) -> Api:
        """Return its API as whoever may do everything, or as a token's bearer."""
        headers = (("X-Vault-Namespace", namespace),) if namespace else ()
        return Api(f"{self.address}/v1/", self.web.client(), self.root_token if token is None else token, headers)

    def write(self, path: str, body: Mapping[str, Any] | None = None, namespace: str = "") -> dict[str, Any]:
        """Write to a path and return what is answered, if anything is. Raise ApiError."""
        answer = self.api(namespace).text("POST", path, body or {})
        return dict(json.loads(answer)) if answer else {}

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it for the first time, and make it ready."""
        for _ in range(_TRIES):
            self.port, self.cluster_port = own_port(), own_port()
            if self.launch():
                break
        else:
            raise AssertionError(f"it has not started:\n{self.daemon.text[-3000:]}")
        made = self.write("sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._unseal_key, self.root_token = made["keys"][0], made["root_token"]
        self.unseal()

    def launch(self) -> bool:
        """Start it, sealed, on the port that it had; say whether it answers."""
        (self.folder / "bao.hcl").write_text(self._config())
        self.daemon.launch(self._program, "server", f"-config={self.folder / 'bao.hcl'}")
        until(lambda: self._answers() or not self.daemon.alive(), "its start", seconds=_SECONDS)
        return self.daemon.alive()

    def _config(self) -> str:
        # It logs each call by its path, and hashes what is secret.
        return f"""
api_addr = "{self.address}"
cluster_addr = "https://127.0.0.1:{self.cluster_port}"
storage "raft" {{
  path = "{self.folder}/storage"
  node_id = "one"
  performance_multiplier = 1
}}
listener "tcp" {{
  address = "127.0.0.1:{self.port}"
  cluster_address = "127.0.0.1:{self.cluster_port}"
  tls_cert_file = "{self.folder}/web.pem"
  tls_key_file = "{self.folder}/web.key"
}}
audit "file" "calls" {{
  options {{ file_path = "{self.calls}" }}
}}
"""

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ApiError):
            self.api(token="").text("GET", "sys/seal-status")
            return True
        return False

    def stop(self) -> None:
        """End it at once, as a machine does whose power fails."""
        self.daemon.close()

    def back(self) -> None:
        """Start it again, sealed; the port may be somebody's for a moment."""
        until(self.launch, "that it is back", seconds=_SECONDS)

    def unseal(self) -> None:
        """Give it the key of its storage, and wait until it serves."""
        self.write("sys/unseal", {"key": self._unseal_key})
        until(self._serves, "that it serves", seconds=_SECONDS)

    def _serves(self) -> bool:
        try:
            self.api(token="").text("GET", "sys/health")
        except ApiError:
            # Its storage is open, and it does not write yet.
            return False
        return True

    def shell(self, commands: str, folder: Path) -> str:
        """Run an operator's commands in a folder, where `vault` is its command line; return what they print."""
        (self.folder / "bin").mkdir()
        (self.folder / "bin" / "vault").symlink_to(self._program)
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("BAO_", "VAULT_"))},
            "HOME": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "VAULT_ADDR": self.address,
            "VAULT_CACERT": str(self.folder / "ca.pem"),
            "VAULT_TOKEN": self.root_token,
        }
        ran = subprocess.run(["sh", "-ec", commands], cwd=folder, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    # --- what an operator sets up -----------------------------------------------------------------------------------

    def engine(self, mount: str, *, above: str = "", namespace: str = "", **ca: Any) -> str:
        """Mount a PKI engine whose CA is a root, or is signed by the engine `above`; return that CA, PEM."""
        self.write(f"sys/mounts/{mount}", {"type": "pki", "config": {"max_lease_ttl": "87600h"}}, namespace)
        body = {"common_name": f"CA {mount}", "key_type": "ec", "ttl": "8760h", **ca}
        if not above:
            return str(self.write(f"{mount}/root/generate/internal", body, namespace)["data"]["certificate"])
        csr = self.write(f"{mount}/intermediate/generate/internal", body, namespace)["data"]["csr"]
        signed = self.write(f"{above}/root/sign-intermediate", {**body, "csr": csr}, namespace)["data"]
        chain = "\n".join([signed["certificate"], *signed["ca_chain"]])
        self.write(f"{mount}/intermediate/set-signed", {"certificate": chain}, namespace)
        return str(signed["certificate"])

    def policy(self, name: str, text: str, namespace: str = "") -> None:
        """Write a policy."""
        self.write(f"sys/policies/acl/{name}", {"policy": text}, namespace)

    def auth(self, kind: str, mount: str = "", namespace: str = "") -> None:
        """Have an auth method."""
        self.write(f"sys/auth/{mount or kind}", {"type": kind}, namespace)

    def app_role(self, name: str, namespace: str = "", **settings: Any) -> tuple[str, str]:
        """Make a role with the policy of its name; return its RoleID and a SecretID."""
        role = f"auth/approle/role/{name}"
        self.write(role, {"token_policies": [name], **settings}, namespace)
        role_id = self.api(namespace).get(f"{role}/role-id")["data"]["role_id"]
        return role_id, self.write(f"{role}/secret-id", namespace=namespace)["data"]["secret_id"]

    def listed(self, path: str) -> list[str]:
        """Return the names below a path."""
        return list(self.api().get(f"{path}?list=true")["data"]["keys"])

    def asked(self) -> list[Asked]:
        """Return what it was asked, in this order."""
        lines = [json.loads(line) for line in self.calls.read_text().splitlines()]
        return [
            Asked(one["request"]["path"], "root" in one.get("auth", {}).get("policies", ()))
            for one in lines
            if one["type"] == "request"
        ]


@contextlib.contextmanager
def bao(folder: Path) -> Iterator[Bao]:
    """Run a server, unsealed."""
    found = Bao(folder, WebPki())
    try:
        found.start()
        yield found
    finally:
        found.daemon.close()
