# SPDX-License-Identifier: Apache-2.0
"""Signing X.509-SVIDs, and the proof without which nothing is signed.

`AuthorizedIssuance` is made by the functions here that check, and by nothing else: for a workload, that the agent is
entitled to the entry and that the ID's segment admits it; for an agent, that it attested or renews in good standing.
The row in the table of what was issued is committed before the certificate leaves the broker, and the proof is asked
for once more after that commit: whoever was banned, or lost the entry, in between gets nothing, and what was written
is revocable.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

from firedoor import mtls
from firedoor.broker.agent import Agent
from firedoor.broker.db.rows import INSERT_ISSUED
from firedoor.broker.entry import Entry, is_reserved
from firedoor.broker.errors import (
    AgentBanned,
    AgentMustReattest,
    AttestationRefused,
    BrokerError,
    InvalidRequest,
    NotAdmitted,
    NotEntitled,
    PolicyUnavailable,
    Stale,
)
from firedoor.broker.keys.device import DeviceKey
from firedoor.certs import (
    NOT_BEFORE_CUSHION,
    DownstreamCa,
    IssueError,
    Selector,
    SpiffeId,
    SubjectKey,
    X509Issuer,
    X509Svid,
    issue_downstream_ca,
    issue_x509,
)
from firedoor.segments import (
    AdmissionRefused,
    Admitted,
    PolicySet,
    Refused,
    check_admission,
    check_breakglass,
    check_mint,
)

if TYPE_CHECKING:
    from firedoor.broker.attest import AttestedNode
    from firedoor.broker.keys.keyring import Keyring
    from firedoor.broker.kubernetes.pod_requests import RequestingPod
    from firedoor.broker.metrics import Metrics
    from firedoor.broker.policy import PolicyKeeper
    from firedoor.broker.state import State

NO_POLICY: Final = (
    "no segments are declared, so nothing is issued: start the broker with --segments PATH, "
    "or apply some with `firedoor segment apply PATH`"
)
# Seconds that the certificate of a pod lives at least, or no API server takes it.
LEAST_POD_TTL: Final = 3600
# How many are signed before other calls get a turn: about 2 ms.
_SLICE: Final = 8


@final
@dataclass(frozen=True, slots=True, init=False)
class AuthorizedIssuance:
    """Leave to sign one SVID. Made by the `authorize_...` functions alone."""

    spiffe_id: SpiffeId
    ttl: int
    dns_names: tuple[str, ...]
    # Empty for an agent's own SVID and the broker's.
    entry_id: str
    # None for the broker's own SVID, and for one that is minted.
    agent_id: SpiffeId | None

    def __init__(self) -> None:
        raise TypeError("AuthorizedIssuance is made by the functions that check")


def _proof(
    spiffe_id: SpiffeId, ttl: int, *, agent_id: SpiffeId | None, entry_id: str = "", dns_names: tuple[str, ...] = ()
) -> AuthorizedIssuance:
    made = object.__new__(AuthorizedIssuance)
    values = {"spiffe_id": spiffe_id, "ttl": ttl, "agent_id": agent_id, "entry_id": entry_id, "dns_names": dns_names}
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def authorize_workload(
    state: State, policy: PolicyKeeper, agent_id: SpiffeId, entry_id: str, default_ttl: int
) -> AuthorizedIssuance:
    """Check that the agent is entitled to the entry and that the ID's segment admits it.

    Raise NotEntitled, NotAdmitted (it names the selector that is missing), PolicyUnavailable or AgentNotAttested.
    """
    entry = state.entitled_entry(agent_id, entry_id)
    _check_admission(policy, entry, state.entitlement(agent_id).node_selectors)
    return _proof(
        entry.spiffe_id,
        entry.x509_svid_ttl or default_ttl,
        agent_id=agent_id,
        entry_id=entry.id,
        dns_names=entry.dns_names,
    )


def _check_admission(policy: PolicyKeeper, entry: Entry, node: frozenset[Selector]) -> None:
    # While an edit waits for holders of old SVIDs there are two: the one in force, and the one that comes.
    for asked in policy.asked:
        if asked is None:
            raise PolicyUnavailable(NO_POLICY)
        try:
            check_admission(asked, entry.spiffe_id, entry=entry.selectors, node=node)
        except Refused as error:
            # Agents and logs learn which selector it is, not its value.
            raise NotAdmitted(error.redacted if isinstance(error, AdmissionRefused) else str(error)) from None


def authorize_pod(
    state: State, policy: PolicyKeeper, pod: RequestingPod, default_ttl: int, longest: int
) -> AuthorizedIssuance:
    """Check that a pod without a sidecar may have the ID that it asks for: what its sidecar would be given.

    An entry must give it the ID, by what the cluster's objects show, and the ID's segment must admit the pod.
    `longest`: seconds from its notBefore that the certificate may live. Raise AgentBanned, NotEntitled, NotAdmitted
    or PolicyUnavailable.
    """
    agent = state.agents.get(pod.agent_id)
    if agent is not None and agent.banned:
        raise AgentBanned("the pod's agent is banned")
    entitled = state.entries.entitlement(pod.agent_id, pod.attested, state.clock.now())
    entries = [one for one in entitled.workloads.values() if one.spiffe_id == pod.spiffe_id]
    entry = min((one for one in entries if one.selectors <= pod.workload), key=lambda one: one.id, default=None)
    if entry is None:
        raise NotEntitled(f"no entry gives {pod.spiffe_id} to this pod")
    if 0 < entry.x509_svid_ttl < LEAST_POD_TTL:
        raise NotEntitled("the entry gives less than an hour (x509_svid_ttl), and Kubernetes takes no less")
    _check_admission(policy, entry, entitled.node_selectors)
    life = min(entry.x509_svid_ttl or default_ttl, longest) - NOT_BEFORE_CUSHION
    return _proof(entry.spiffe_id, life, agent_id=pod.agent_id, entry_id=entry.id, dns_names=entry.dns_names)


def downstream_proof(trust_domain_id: SpiffeId, ttl: int, *, agent_id: SpiffeId, entry_id: str) -> AuthorizedIssuance:
    """Give leave to sign the CA of an authority below us. For `authorize_downstream` alone (downstream.py)."""
    return _proof(trust_domain_id, ttl, agent_id=agent_id, entry_id=entry_id)


def authorize_mint(
    state: State, policy: PolicyKeeper, spiffe_id: SpiffeId, ttl: int, dns_names: tuple[str, ...] = ()
) -> AuthorizedIssuance:
    """Check that an SVID for the ID may be minted for an administrator, without a workload.

    Raise InvalidRequest, NotAdmitted or PolicyUnavailable.
    """
    return _without_workload(state, policy, check_mint, spiffe_id, ttl, dns_names)


def authorize_breakglass(state: State, policy: PolicyKeeper, spiffe_id: SpiffeId, ttl: int) -> AuthorizedIssuance:
    """Check that an SVID for the ID may be given to a person whom another one approved. Raise as `authorize_mint`."""
    return _without_workload(state, policy, check_breakglass, spiffe_id, ttl)


def _without_workload(
    state: State,
    policy: PolicyKeeper,
    check: Callable[[PolicySet, SpiffeId], Admitted],
    spiffe_id: SpiffeId,
    ttl: int,
    dns_names: tuple[str, ...] = (),
) -> AuthorizedIssuance:
    if spiffe_id.trust_domain != state.trust_domain:
        raise InvalidRequest(f'"{spiffe_id}" is not a member of trust domain "{state.trust_domain}"')
    if not spiffe_id.path or is_reserved(spiffe_id):
        raise InvalidRequest(f'"{spiffe_id}" is no workload\'s ID: it has no path, or lies below /spire')
    for asked in policy.asked:
        if asked is None:
            raise PolicyUnavailable(NO_POLICY)
        try:
            check(asked, spiffe_id)
        except Refused as error:
            raise NotAdmitted(str(error)) from None
    return _proof(spiffe_id, ttl, agent_id=None, dns_names=dns_names)


def authorize_attested(node: AttestedNode, ttl: int, at: int) -> AuthorizedIssuance:
    """Give leave to sign the SVID of an agent whose evidence an attestor has checked. Raise AttestationRefused."""
    if node.not_after:
        ttl = min(ttl, node.not_after - at)
    if ttl <= 0:
        raise AttestationRefused("failed to attest: the evidence has expired")
    return _proof(node.agent_id, ttl, agent_id=node.agent_id)


def authorize_renewal(agent: Agent, ttl: int) -> AuthorizedIssuance:
    """Give leave to renew the SVID of an agent in good standing. Raise AgentBanned or AgentMustReattest."""
    if agent.banned:
        raise AgentBanned("agent is banned")
    if agent.can_reattest:
        raise AgentMustReattest("agent must reattest instead of renew")
    return _proof(agent.id, ttl, agent_id=agent.id)


def authorize_server(state: State, ttl: int, dns_names: tuple[str, ...] = ()) -> AuthorizedIssuance:
    """Give leave to sign the broker's own SVID, with the DNS names by which API servers reach its webhook."""
    return _proof(state.server_id, ttl, agent_id=None, dns_names=dns_names)


@dataclass(frozen=True, slots=True)
class Csr:
    """What counts in a signing request whose self-signature holds."""

    key: SubjectKey
    # What it asks for. Only minting listens to that.
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]


def read_csr(csr: bytes) -> SubjectKey:
    """Return the key of a request whose holder signed it; its names count for nothing. Raise InvalidRequest."""
    return read_named_csr(csr).key


def read_named_csr(csr: bytes) -> Csr:
    """Return a request whose holder signed it, with the names that it asks for. Raise InvalidRequest."""
    if not csr:
        raise InvalidRequest("missing CSR")
    try:
        key, uris, dns_names = mtls.read_csr(csr)
        return Csr(SubjectKey.parse(key), uris, dns_names)
    except (mtls.VerifyError, IssueError) as error:
        raise InvalidRequest(_CSR_TEXTS.get(error.code, str(error))) from None


# SPIRE's words.
_CSR_TEXTS: Final = {"malformed_csr": "malformed CSR", "invalid_csr_signature": "invalid CSR signature"}


@dataclass(frozen=True, slots=True)
class Order:
    """One SVID to make, or why there is none. `again` authorizes anew, after the commit."""

    proof: AuthorizedIssuance
    key: SubjectKey
    again: Callable[[], AuthorizedIssuance]


@dataclass(frozen=True, slots=True)
class Pen:
    """An authority and a moment to sign at, taken on the event loop so that a writer thread can use them."""

    issuer: X509Issuer
    at: int

    def sign(self, proof: AuthorizedIssuance, key: SubjectKey) -> X509Svid:
        """Sign one SVID. The caller commits its row before it hands it out. Raise CertsError."""
        return issue_x509(
            proof.spiffe_id,
            key,
            self.issuer,
            at=self.at,
            random=secrets.token_bytes,
            ttl=proof.ttl,
            dns_names=proof.dns_names,
        )

    def sign_ca(self, proof: AuthorizedIssuance, key: SubjectKey) -> DownstreamCa:
        """Sign the CA of an authority below us. The caller commits its row before it hands it out. Raise CertsError."""
        trust_domain = proof.spiffe_id.trust_domain
        return issue_downstream_ca(
            trust_domain, key, self.issuer, at=self.at, random=secrets.token_bytes, ttl=proof.ttl
        )


class Signer:
    """Signs with the active authority, writing down what it signs."""

    def __init__(self, state: State, issuer: Callable[[], X509Issuer], metrics: Metrics, keys: Keyring) -> None:
        self._state, self._issuer, self._metrics, self._keys = state, issuer, metrics, keys

    def pen(self) -> Pen:
        """Return what signs now. Raise AuthorityError."""
        return Pen(self._issuer(), self._state.issue_time())

    async def sign(self, proof: AuthorizedIssuance, key: SubjectKey, pen: Pen | None = None) -> X509Svid:
        """Sign one SVID, which the caller writes down before it hands it out. Raise AuthorityError or CertsError."""
        pen = pen or self.pen()
        return await self._keys.sign(pen.issuer.key, partial(pen.sign, proof, key))

    async def sign_ca(self, proof: AuthorizedIssuance, key: SubjectKey) -> DownstreamCa:
        """Sign the CA of an authority below us, as `sign` does an SVID."""
        pen = self.pen()
        return await self._keys.sign(pen.issuer.key, partial(pen.sign_ca, proof, key))

    def issued_row(self, proof: AuthorizedIssuance, svid: X509Svid | DownstreamCa) -> dict[str, Any]:
        """Return the row that says who holds this SVID, or this CA."""
        kind = "workload" if proof.entry_id else "agent" if proof.agent_id else "minted"
        if isinstance(svid, DownstreamCa):
            kind = "downstream"
        self._metrics.issued.labels(kind).inc()
        return {
            "serial": svid.serial,
            "spiffe_id": str(proof.spiffe_id),
            "entry_id": proof.entry_id,
            "agent_id": str(proof.agent_id or ""),
            "authority_id": svid.authority_id,
            "issued_at": svid.not_before + NOT_BEFORE_CUSHION,
            "not_after": svid.not_after,
        }

    async def issue(self, orders: Sequence[Order]) -> list[X509Svid | BrokerError]:
        """Sign all, commit their rows together, and return what may be handed out: an SVID or a refusal each."""
        await self._state.time_to_issue()
        pen = self.pen()
        signed = await self._signed(pen, orders)
        rows = [self.issued_row(order.proof, svid) for order, svid in zip(orders, signed, strict=True)]
        if rows:
            await self._state.database.append(INSERT_ISSUED, rows)
        return [self._still(order, svid) for order, svid in zip(orders, signed, strict=True)]

    async def _signed(self, pen: Pen, orders: Sequence[Order]) -> list[X509Svid]:
        if isinstance(pen.issuer.key, DeviceKey):
            return await asyncio.gather(*(self.sign(order.proof, order.key, pen) for order in orders))
        signed: list[X509Svid] = []
        for number, order in enumerate(orders):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            signed.append(pen.sign(order.proof, order.key))
        return signed

    def _still(self, order: Order, svid: X509Svid) -> X509Svid | BrokerError:
        if self._state.ends(svid.id, svid.not_before + NOT_BEFORE_CUSHION):
            return Stale("its ID was revoked at another broker while the SVID was signed; ask again")
        return _still(order, svid)


def _still(order: Order, svid: X509Svid) -> X509Svid | BrokerError:
    try:
        if order.again() != order.proof:
            return NotAdmitted("the entry changed while the SVID was signed; ask again")
    except BrokerError as error:
        return error
    return svid
