# SPDX-License-Identifier: Apache-2.0
"""Pods' ports are read alike by who refuses what is wrong, and by those who leave it out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from firedoor.broker.injector import wishes
from firedoor.broker.injector.exclusions import InjectionRefused
from firedoor.broker.kubernetes.endpoint_records import read_pod
from firedoor.segments.cluster_pods import read_cluster
from firedoor.segments.pod_ports import PodPort, port_words
from firedoor.segments.well_known import PORTS

WORDS: dict[str, PodPort | None] = {
    "9000/http": PodPort(9000, "http", audit=False, listen=0),
    "65535/grpc": PodPort(65535, "grpc", audit=False, listen=0),
    "5432/tcp/audit": PodPort(5432, "tcp", audit=True, listen=0),
    "9000/http=19000": PodPort(9000, "http", audit=False, listen=19000),
    "5432/tcp/audit=2": PodPort(5432, "tcp", audit=True, listen=2),
    "": None,
    "9000": None,
    "0/tcp": None,
    "09000/tcp": None,
    "65536/tcp": None,
    "9000/tcp=65536": None,
    "9000/tcp=0": None,
    "9000/udp": None,
    "9000/tcp/audit/audit": None,
    "9000/tcp audit": None,
    "9000/tcp\n": None,
    "\u0669/tcp": None,
}


def pod(text: str, **annotations: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {
            "name": "a",
            "namespace": "n",
            "uid": "u",
            "labels": {"firedoor.dev/segment": "inference"},
            "annotations": {PORTS: text, **annotations},
        },
        "spec": {"serviceAccountName": "vllm"},
        "status": {"podIPs": [{"ip": "10.0.0.1"}]},
    }


@pytest.mark.parametrize("word", WORDS)
def test_words(word: str) -> None:
    assert PodPort.parse(word) == WORDS[word]


@pytest.mark.parametrize("word", WORDS)
def test_all_read_it_alike(word: str) -> None:
    text = f"1/tcp,{word}"
    (stripped,) = port_words(word) or [""]
    found = PodPort.parse(stripped)
    record = read_pod(pod(text))
    assert record is not None
    assert [one[1] for one in record.ports if one[1] != 1] == ([found.port] if found else [])
    listed = {"items": [{"kind": "Namespace", "metadata": {"name": "n"}}, pod(text)]}
    (seen,) = read_cluster(json.dumps(listed)).pods
    assert seen.audited == ((stripped,) if found and found.audit else ())
    if stripped and found is None:
        with pytest.raises(InjectionRefused, match="must be PORT/PROTOCOL"):
            wishes.read(pod(text), "n")


def test_what_the_injector_takes_is_what_the_others_read() -> None:
    taken = wishes.read(pod("9000/http, 5432/tcp/audit,"), "n")
    assert taken.ports == tuple(PodPort.parse(word) for word in ("9000/http", "5432/tcp/audit"))
