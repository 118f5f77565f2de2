# SPDX-License-Identifier: Apache-2.0
"""The decision table: what a policy compiles to, and the only thing that the engine reads.

Everything is sorted, so that the same policy, however it is cut into files, gives the same bytes and the same hash.
Admission is not in it: the broker alone decides about signatures.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from firedoor.certs import Fingerprint
from firedoor.segments.errors import TableError
from firedoor.segments.model import (
    Action,
    Flow,
    HttpAction,
    PolicySet,
    Segment,
    Service,
    ServicePort,
    Subject,
    TcpAction,
)
from firedoor.wire import policy_pb2

# The engine's input that tables are written for; see policy.proto.
VERSION: Final = 1


def compile_table(policy: PolicySet) -> policy_pb2.Table:
    """Compile a policy that lint has passed."""
    return policy_pb2.Table(
        version=VERSION,
        trust_domain=policy.trust_domain.name,
        segments=(_segment(one) for one in sorted(policy.segments, key=lambda one: one.name)),
        flows=(_flow(one) for one in sorted(policy.flows, key=lambda one: one.name)),
        services=(_service(one) for one in sorted(policy.services, key=lambda one: one.name)),
    )


def part_size(part: Segment | Flow | Service) -> int:
    """Return how many bytes of a table a segment, flow or service takes."""
    if isinstance(part, Service):
        return _service(part).ByteSize()
    return (_segment(part) if isinstance(part, Segment) else _flow(part)).ByteSize()


def table_bytes(table: policy_pb2.Table) -> bytes:
    """Serialise a table, the same bytes each time."""
    return table.SerializeToString(deterministic=True)


def table_hash(table: policy_pb2.Table) -> Fingerprint:
    """Return the table's identity: the SHA-256 of its bytes."""
    return Fingerprint.of(table_bytes(table))


def read_table(data: bytes) -> policy_pb2.Table:
    """Read a table back from its bytes. Raise TableError."""
    try:
        table = policy_pb2.Table.FromString(data)
    except DecodeError:
        raise TableError("the decision table is damaged") from None
    if data and table.version != VERSION:
        raise TableError(f"the decision table has version {table.version}; this firedoor reads version {VERSION}")
    return table


def _segment(segment: Segment) -> policy_pb2.Segment:
    return policy_pb2.Segment(
        name=segment.name,
        mode=policy_pb2.Mode.Value(f"MODE_{segment.mode.name}"),
        trust=policy_pb2.Trust.Value(f"TRUST_{segment.trust.name}"),
        members=sorted(str(pattern) for pattern in segment.members),
        fallback=segment.fallback,
        audit_loss=policy_pb2.AuditLoss.Value(f"AUDIT_LOSS_{segment.audit_loss.name}"),
        expiry=policy_pb2.Expiry(until_revoked_seconds=kept) if (kept := segment.expiry.until_revoked) else None,
        alert=segment.admission.breakglass,
    )


def _flow(flow: Flow) -> policy_pb2.Flow:
    made = policy_pb2.Flow(name=flow.name, owner=flow.owner, reason=flow.reason, to=_subject(flow.destination))
    # `from` is a word of Python's.
    getattr(made, "from").CopyFrom(_subject(flow.source))
    made.port = flow.port
    actions = {action.SerializeToString(deterministic=True): action for action in map(_action, flow.allow)}
    made.allow.extend(actions[key] for key in sorted(actions))
    if flow.valid is not None:
        window = made.conditions.add().time
        window.SetInParent()
        setattr(window, "from", flow.valid.start or 0)
        window.until = flow.valid.until or 0
    return made


def _service(service: Service) -> policy_pb2.Service:
    return policy_pb2.Service(
        name=service.name,
        addresses=sorted((one.packed for one in service.addresses), key=lambda packed: (len(packed), packed)),
        ports=(_service_port(one) for one in sorted(service.ports, key=lambda one: one.port)),
    )


def _service_port(port: ServicePort) -> policy_pb2.ServicePort:
    return policy_pb2.ServicePort(
        port=port.port,
        protocol=policy_pb2.Protocol.Value(f"PROTOCOL_{port.protocol.name}"),
        expect=sorted(str(pattern) for pattern in port.expect),
        service_port=port.service_port,
        # In the order of the file: it is the order in which they are tried.
        connect=port.connect,
    )


def _subject(subject: Subject) -> policy_pb2.Subject:
    return policy_pb2.Subject(segment=subject.segment or "", ids=sorted(str(pattern) for pattern in subject.ids))


def _action(action: Action) -> policy_pb2.Action:
    if isinstance(action, TcpAction):
        return policy_pb2.Action(tcp=policy_pb2.Tcp())
    if isinstance(action, HttpAction):
        http = policy_pb2.Http(
            methods=sorted(action.methods),
            paths=sorted(str(path) for path in action.paths),
            authorities=sorted(action.authorities),
        )
        return policy_pb2.Action(http=http)
    return policy_pb2.Action(grpc=policy_pb2.Grpc(service=action.service, methods=sorted(action.methods)))
