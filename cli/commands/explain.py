# SPDX-License-Identifier: Apache-2.0
"""`firedoor explain`: which flow allows a request, or why nothing does. The same engine answers as on the data path."""

import argparse
import time
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from firedoor.certs import SpiffeId, TrustDomain
from firedoor.cli import services
from firedoor.cli.admin import add_broker_socket, broker, spiffe_id
from firedoor.cli.errors import NotFound, UsageError
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json
from firedoor.cli.parsing import finish
from firedoor.cli.policy_files import loaded, read_documents, trust_domain
from firedoor.mtls import Decision, Engine
from firedoor.segments import (
    Address,
    Document,
    PolicySet,
    Question,
    QuestionError,
    ServicePort,
    compile_table,
    examples,
    expected_examples,
    explain,
    nearest_answer,
    parse_action,
    parse_destination,
    table_bytes,
)
from firedoor.wire import admin_grpc, admin_pb2

EXAMPLE = """\
$ firedoor explain --from spiffe://example.org/segment/inference/host/gpu-1/svc/vllm \\
    --to registry:9000 --action "GET /models/llama/weights.bin"
$ firedoor explain --segments segments/ --trust-domain example.org --from ... \\
    --to inference:8001 --action "grpc inference.GRPCInferenceService/ModelInfer"
$ firedoor explain --from ... --to 10.20.0.5:9000 --action "GET /models/llama\""""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    finish(parser, "say which flow allows a request, or why nothing does", EXAMPLE, run)
    add = parser.add_argument
    add("--from", dest="source", required=True, metavar="ID", help="the SPIFFE ID that asks")
    add("--to", required=True, metavar="SEGMENT:PORT", help="the segment, a SPIFFE ID or an address, and its port")
    add("--action", required=True, metavar="WHAT", help='"tcp", "GET /path", "GET host/path" or "grpc Service/Method"')
    add("--segments", metavar="PATH", help="ask a local policy instead of the broker's")
    add("--trust-domain", metavar="TD", help="what {td} stands for in a local policy (the domain of --from)")
    add("--at", type=int, metavar="UNIX", help="the time to ask about (now)")
    add_broker_socket(parser)


def run(options: argparse.Namespace) -> int:
    """Ask the engine and print its answer in sentences; exit 1 when it is no."""
    source = spiffe_id(options.source)
    try:
        target, port = parse_destination(options.to)
        asked = parse_action(options.action)
    except QuestionError as error:
        raise UsageError(str(error)) from None
    policy = _local(options, source) if options.segments else _remote(options)
    at = int(time.time()) if options.at is None else options.at
    about: tuple[str, ...] = ()
    if isinstance(target, IPv4Address | IPv6Address):
        found, what = _service(options, policy, target, port)
        about, port, ids = _row(found, what, options.to), found.service_port, expected_examples(policy, found.expect)
    else:
        ids = _destinations(policy, target, port)
    if not ids:
        raise NotFound(f"nobody in any segment could answer at {options.to}")
    questions = [Question(source, one, port, asked, at) for one in ids]
    engine = Engine(table_bytes(compile_table(policy)))
    question, decision = nearest_answer((one, _decide(engine, one)) for one in questions)
    sentences = (*explain(question, decision, policy).sentences, *about)
    if options.output == "json":
        show_json(_as_json(question, decision, sentences))
    else:
        show("\n".join(sentences))
    return Exit.DONE if decision.allowed else Exit.NO


def _local(options: argparse.Namespace, source: SpiffeId) -> PolicySet:
    domain = trust_domain(options.trust_domain) if options.trust_domain else source.trust_domain
    return loaded(read_documents(options.segments), domain)


def _remote(options: argparse.Namespace) -> PolicySet:
    with broker(options) as connection:
        stub = admin_grpc.PolicyAdminStub(connection.channel)
        carried = connection.call(stub.GetPolicy, admin_pb2.GetPolicyRequest())
    if not carried.documents:
        raise NotFound("the broker has no policy yet: `firedoor segment apply PATH`, or `broker run --segments PATH`")
    documents = [Document(one.name, one.text) for one in carried.documents]
    return loaded(documents, TrustDomain.parse(carried.table.trust_domain))


def _destinations(policy: PolicySet, target: SpiffeId | str, port: int) -> list[SpiffeId]:
    if isinstance(target, SpiffeId):
        return [target]
    segment = policy.segment(target)
    if segment is None:
        names = ", ".join(sorted(one.name for one in policy.segments)) or "none at all"
        raise NotFound(f"there is no segment {target!r}; the policy has {names}")
    found = examples(policy, segment, port)
    if not found:
        raise NotFound(f"segment {target!r} has no members")
    return found


def _service(options: argparse.Namespace, policy: PolicySet, address: Address, port: int) -> tuple[ServicePort, str]:
    """Return what the directory has there, and what to call it: of the policy, else of what a broker derived."""
    declared = policy.service_at(address, port)
    if declared is not None:
        return declared[1], f"service {declared[0].name}"
    derived = None if options.segments else services.find(options, address, port)
    if derived is None:
        whose = "the policy" if options.segments else "the policy or the cluster"
        raise NotFound(
            f"no service of {whose} has {address} at port {port}: what an app sends there by capture is denied, or "
            "passed and recorded where its segment is in audit mode"
        )
    _, found, source = derived
    return found, source


def _row(port: ServicePort, what: str, text: str) -> tuple[str, ...]:
    expected = " or ".join(map(str, port.expect))
    protocol = port.protocol.name.lower()
    return (f"{text} is {what}, {protocol} at service port {port.service_port}; expected: {expected}",)


def _decide(engine: Engine, question: Question) -> Decision:
    asked = question.asked
    return engine.decide(
        source=str(question.source),
        destination=str(question.destination),
        port=question.port,
        protocol=asked.protocol,
        authority=asked.authority,
        method=asked.method,
        path=asked.path,
        grpc_service=asked.grpc_service,
        grpc_method=asked.grpc_method,
        time=question.time,
    )


def _as_json(question: Question, decision: Decision, sentences: tuple[str, ...]) -> dict[str, Any]:
    return {
        "allowed": decision.allowed,
        "flow": decision.flow,
        "reason": decision.reason,
        "source": str(question.source),
        "source_segment": decision.source_segment,
        "destination": str(question.destination),
        "destination_segment": decision.destination_segment,
        "port": question.port,
        "action": str(question.asked),
        "sentences": list(sentences),
    }
