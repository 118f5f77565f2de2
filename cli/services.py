# SPDX-License-Identifier: Apache-2.0
"""`firedoor segment services`: the directory, of documents and of a cluster's objects."""

from __future__ import annotations

import argparse
from ipaddress import ip_address
from typing import Any, Final

from firedoor.cli.admin import add_broker_socket, broker
from firedoor.cli.errors import NotFound
from firedoor.cli.exits import Exit
from firedoor.cli.output import show, show_json, table
from firedoor.cli.parsing import Group
from firedoor.segments import Address, Service, ServicePort
from firedoor.segments.directory import as_declared
from firedoor.wire import admin_grpc, admin_pb2, policy_pb2

EXAMPLE = """\
$ firedoor segment services
$ firedoor segment services 10.96.0.7"""
_PAGE: Final = 500
# Addresses of a service that a line of the table names.
_NAMED: Final = 2


def configure(words: Group) -> None:
    """Declare the arguments."""
    leaf = words.leaf("services", "show the directory: who is expected behind which address", EXAMPLE, run)
    leaf.add_argument("address", nargs="?", type=_address, metavar="ADDRESS", help="only what has this address")
    add_broker_socket(leaf)


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IP address") from None


def run(options: argparse.Namespace) -> int:
    """Show what there is; exit 1 when an address has none."""
    found, trouble = _listed(options, options.address)
    if options.output == "json":
        show_json({"services": [_as_json(one) for one in found], "trouble": trouble})
    else:
        rows = [
            (one.service.name, one.source, _addresses(one.service), *port)
            for one in found
            for port in map(_port, one.service.ports)
        ]
        show(table(("SERVICE", "FROM", "ADDRESSES", "PORT", "EXPECTED"), rows))
        for said in trouble:
            show(f"warning: {said}")
    if options.address is not None and not found:
        raise NotFound(f"no service has the address {options.address}")
    return Exit.DONE


def find(options: argparse.Namespace, address: Address, port: int) -> tuple[Service, ServicePort, str] | None:
    """Return what the broker's directory has for an address and port, and where that is from; None for nothing."""
    for one in _listed(options, address)[0]:
        service = as_declared(one.service)
        for each in service.ports:
            if each.port == port:
                return service, each, one.source
    return None


def _listed(options: argparse.Namespace, address: Address | None) -> tuple[list[admin_pb2.DirectoryService], list[str]]:
    request = admin_pb2.ListServicesRequest(address=address.packed if address else b"", page_size=_PAGE)
    found: list[admin_pb2.DirectoryService] = []
    with broker(options) as connection:
        stub = admin_grpc.PolicyAdminStub(connection.channel)
        while True:
            answer = connection.call(stub.ListServices, request)
            found += answer.services
            if not answer.next_page_token:
                return found, list(answer.trouble)
            request.page_token = answer.next_page_token


def _addresses(service: policy_pb2.Service) -> str:
    texts = [str(ip_address(one)) for one in service.addresses]
    more = [f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return " ".join(texts[:_NAMED] + more)


def _port(port: policy_pb2.ServicePort) -> tuple[str, str]:
    to = f" to {port.service_port}" if port.service_port != port.port else ""
    return f"{port.port}/{_word(port)}{to}", " ".join(port.expect)


def _word(port: policy_pb2.ServicePort) -> str:
    return policy_pb2.Protocol.Name(port.protocol).partition("_")[2].lower()


def _as_json(one: admin_pb2.DirectoryService) -> dict[str, Any]:
    return {
        "name": one.service.name,
        "source": one.source,
        "addresses": [str(ip_address(address)) for address in one.service.addresses],
        "ports": [
            {
                "port": port.port,
                "protocol": _word(port),
                "service_port": port.service_port,
                "expect": list(port.expect),
                "connect": list(port.connect),
            }
            for port in one.service.ports
        ],
    }
