# SPDX-License-Identifier: Apache-2.0
"""An injected pod without a kubelet: its containers' very commands, environments and privileges.

A network namespace stands for the pod's, folders for its volumes.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import netns
from tests.e2e.conftest import Program
from tests.e2e.namespaces import SIDECAR_UID, Namespace
from tests.waiting import until

# What a container runtime leaves of root's capabilities, as the injected security contexts say.
CAPABILITY = ("--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs", "--clear-groups")
NOTHING = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--clear-groups")


class StandIn:
    """What is injected into one pod; its sidecar's user is SIDECAR_UID."""

    def __init__(self, folder: Path, space: Namespace, pod: Mapping[str, Any]) -> None:
        """Make a folder for each volume, open as an emptyDir is, and name it in place of the mount."""
        self.folder, self.space = folder, space
        self.capture, self.sidecar = pod["spec"]["initContainers"][:2]
        self.env: dict[str, str] = {one["name"]: one["value"] for one in self.sidecar["env"]}
        for number, mount in enumerate(self.sidecar["volumeMounts"]):
            place = folder / f"v{number}"
            place.mkdir()
            place.chmod(0o777)
            self.env = {key: value.replace(mount["mountPath"] + "/", f"{place}/") for key, value in self.env.items()}
        # What the startup probe printed last.
        self.said = ""

    def give(self, token: str, bundle: bytes) -> None:
        """Do what the kubelet does: bring the projected token, and the ConfigMap with the trust bundle."""
        Path(self.env["FIREDOOR_SIDECAR_K8S_POD_TOKEN"]).write_text(token)
        file = Path(self.env["FIREDOOR_SIDECAR_BOOTSTRAP_BUNDLE"])
        file.write_bytes(bundle)
        file.chmod(0o644)

    @property
    def auth_socket(self) -> str:
        """Where programs of the pod have their identity."""
        return self.env["FIREDOOR_SIDECAR_AUTH_SOCKET"]

    def words(self, *privileges: str) -> list[str]:
        """Return what runs a command of ours in the pod."""
        pairs = [f"{name}={value}" for name, value in self.env.items()]
        return [*self.space.entering(), "setpriv", *privileges, "env", f"PATH={netns.PATH}", *pairs]

    def as_sidecar(self) -> list[str]:
        """Return what runs a command of ours as the sidecar."""
        return self.words(f"--reuid={SIDECAR_UID}", f"--regid={SIDECAR_UID}", *NOTHING)

    def write_rules(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the init container, or other words of `firedoor` in its place."""
        program, *own = self.capture["command"]
        assert program == "firedoor"
        command = [*self.words(*CAPABILITY), sys.executable, "-m", "firedoor.cli", *(words or own)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def start(self) -> Program:
        """Start the sidecar, and wait as the kubelet does: until the startup probe passes."""
        program = Program(self.folder / "sidecar.log", *self.sidecar["command"][1:], prefix=self.as_sidecar())
        try:
            until(self._started, "the startup probe passes")
        except AssertionError as error:
            said = program.text[-3000:]
            program.close()
            raise AssertionError(f"{self.said}\n{said}") from error
        return program

    def _started(self) -> bool:
        probe = self.sidecar["startupProbe"]["exec"]["command"]
        # The mount of the admin socket is a folder here.
        words = [*probe[1:-1], self.env["FIREDOOR_SIDECAR_ADMIN_SOCKET"]]
        ran = [*self.as_sidecar(), sys.executable, "-m", "firedoor.cli", *words]
        done = subprocess.run(ran, capture_output=True, text=True, check=False)
        self.said = done.stdout + done.stderr
        return done.returncode == 0
