# SPDX-License-Identifier: Apache-2.0
"""Several brokers as processes of their own, on one PostgreSQL database."""

from __future__ import annotations

from typing import Self

import grpc

from tests.e2e.conftest import Program, World
from tests.postgres import Server


class Brokers(World):
    """Several brokers on one database."""

    _words: tuple[str, ...] = ()
    asked = ""

    def share(self, server: Server) -> None:
        """Have brokers keep their state in a database of this server."""
        url, password_file = server.database()
        self._words = ("--database", url, "--database-password-file", str(password_file))
        # By their names.
        self.listening: dict[str, str] = {}

    def start_one(self, name: str, *words: str) -> Program:
        """Start a broker, at the same port as before."""
        folder = self.folder
        program = self._start(
            f"{name}.log",
            *("broker", "run", "--trust-domain", self.trust_domain, "--metrics", "off"),
            *("--listen", self.listening.get(name, "127.0.0.1:0"), "--data-dir", str(folder / name)),
            *("--admin-socket", str(folder / f"{name}.sock"), "--segments", str(folder / "policy.yaml"), *self._words),
            *words,
        )
        self.ready_line = program.ready()
        self.listening[name] = self.said("listen")
        return program

    def at(self, name: str) -> Self:
        """Have the administrator ask this broker."""
        self.asked = name
        (self.folder / "b.sock").unlink(missing_ok=True)
        (self.folder / "b.sock").symlink_to(self.folder / f"{name}.sock")
        return self

    def admin(self) -> grpc.Channel:
        """Return a channel to the asked broker's admin socket."""
        return grpc.insecure_channel(f"unix:{self.folder / f'{self.asked}.sock'}")

    def start_sidecar_of(self, *brokers: str, name: str = "s") -> Program:
        self.address = ",".join(self.listening[one] for one in brokers)
        return self.start_sidecar(name=name)
