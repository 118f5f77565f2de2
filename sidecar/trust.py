# SPDX-License-Identifier: Apache-2.0
"""Hands a sidecar that does not run another trust bundle of its own trust domain, from a file.

For one that was away while every authority which it knows was replaced: no server can prove itself to it then. Whoever
runs this vouches for the file; nothing is ever trusted because a server sent it first. Policy, generation and agent
SVID stay, so an older state of the server is refused as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from firedoor.certs import TrustBundle, TrustDomain, X509Root
from firedoor.certs.certificate import read_certificate
from firedoor.sidecar import bundles
from firedoor.sidecar.config import Config
from firedoor.sidecar.errors import ConfigError
from firedoor.sidecar.state import State
from firedoor.wire import control_pb2, views

# Of a bundle's file, in bytes.
MAX_BUNDLE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Authority:
    """One root: its ID, and when it expires in Unix seconds."""

    id: str
    not_after: int

    @classmethod
    def of(cls, root: X509Root) -> "Authority":
        """Describe a root."""
        return cls(root.authority_id, read_certificate(root.der).not_after)


@dataclass(frozen=True, slots=True)
class Change:
    """What is trusted from now on, and what no longer is."""

    trusted: Sequence[Authority]
    added: frozenset[str]
    dropped: Sequence[Authority]


def trust(config: Config, file: Path, now: float) -> Change:
    """Make a file's bundle the one that verifies the server. Raise ConfigError or StateError, and change nothing."""
    fresh = read(file, config.trust_domain, now)
    state = State.open(config.data_dir)
    try:
        stored = state.load_bundles()
        held = dict(bundles.load(stored)) if stored is not None else {}
        before = held.get(config.trust_domain)
        update = state.load_generation()
        held[config.trust_domain] = fresh
        if update is not None:
            state.store_generation(with_bundle(update, fresh))
        state.store_bundles(bundles.dump(held.values()))
    finally:
        state.close()
    old = [Authority.of(root) for root in before.x509_roots] if before is not None else []
    trusted = [Authority.of(root) for root in fresh.x509_roots]
    kept = {one.id for one in trusted}
    return Change(
        trusted,
        frozenset(kept - {one.id for one in old}),
        [one for one in old if one.id not in kept],
    )


def read(file: Path, trust_domain: TrustDomain, now: float) -> TrustBundle:
    """Read a bundle that can vouch for a server now. Raise ConfigError."""
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BUNDLE + 1)
    except OSError as error:
        raise ConfigError([f"{file}: the file cannot be read: {error.strerror}"]) from error
    if len(text) > MAX_BUNDLE:
        raise ConfigError([f"{file}: the file is longer than a bundle may be"])
    found = bundles.read_bootstrap(text, trust_domain, str(file))
    if all(read_certificate(root.der).not_after <= now for root in found.x509_roots):
        raise ConfigError([f"{file}: all its X.509 authorities have expired: ask the broker for its present bundle"])
    return found


def with_bundle(update: control_pb2.Update, bundle: TrustBundle) -> control_pb2.Update:
    """Return a stored update with another bundle of the sidecar's own trust domain. Raise StateError."""
    made = control_pb2.Update()
    made.CopyFrom(update)
    name = bundle.trust_domain.name
    for part in made.parts:
        for one in part.bundles.bundles if part.WhichOneof("kind") == "bundles" else ():
            if bundles.read_trust_domain(one.trust_domain).name == name:
                fresh = bundle if bundle.sequence else replace(bundle, sequence=one.sequence_number)
                one.CopyFrom(bundles.to_wire(fresh))
    made.view_hash = views.view_hash(made.parts)
    return made
