# SPDX-License-Identifier: Apache-2.0
"""Anybody may connect to the broker: HTTP/2 that is made to hurt costs little, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from firedoor.wire import bundle_grpc, bundle_pb2
from tests.broker.harness import RunningBroker
from tests.hostile_http2 import ATTACKS, MIB, PREFACE, PRIORITY, SETTINGS, attack, frame, memory, tls_socket

PATH = b"/spire.api.server.agent.v1.Agent/AttestAgent"
# Of the whole process, which is the attacker too: whoever has no certificate sends 256 KiB.
MOST_MEMORY = 192 * MIB


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ATTACKS)
async def test_others_are_served_meanwhile_and_after(broker: RunningBroker, name: str) -> None:
    good = bundle_grpc.BundleStub(broker.client().channel)
    assert (await good.GetBundle(bundle_pb2.GetBundleRequest())).x509_authorities
    before, ended = memory(), threading.Event()
    made = await asyncio.to_thread(tls_socket, broker.broker.listen)
    thread = threading.Thread(target=attack, args=(made, ATTACKS[name](PATH), ended))
    thread.start()
    served = 0
    while not ended.is_set() or served < 3:
        assert (await good.GetBundle(bundle_pb2.GetBundleRequest(), timeout=60)).x509_authorities
        served += 1
        await asyncio.sleep(0.01)
    await asyncio.to_thread(thread.join)
    # A new connection too.
    again = bundle_grpc.BundleStub(broker.client().channel)
    assert (await again.GetBundle(bundle_pb2.GetBundleRequest(), timeout=60)).x509_authorities
    assert memory() - before < MOST_MEMORY


async def test_nobody_without_a_certificate_sends_much(broker: RunningBroker) -> None:
    """An attestation takes 100 KiB at most; an agent with its certificate may send what it likes."""
    made = await asyncio.to_thread(tls_socket, broker.broker.listen)
    sent = 0

    def flood() -> None:
        nonlocal sent
        with contextlib.suppress(OSError), made:
            made.sendall(PREFACE + frame(SETTINGS, 0, 0))
            for _ in range(10_000):
                made.sendall(frame(PRIORITY, 0, 1, b"\0\0\0\0\1") * 1000)
                sent += 14_000

    await asyncio.to_thread(flood)
    # Beyond the limit lies what the kernel and TLS hold at both ends.
    assert sent < 8 * MIB
