# SPDX-License-Identifier: Apache-2.0
"""Anybody may connect to the broker: HTTP/2 that is made to hurt costs little, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import threading

import pytest

from firedoor.wire import bundle_grpc, bundle_pb2
from tests.broker.harness import RunningBroker
from tests.hostile_http2 import ATTACKS, MIB, attack, memory, tls_socket

PATH = b"/spire.api.server.agent.v1.Agent/AttestAgent"
# Of the whole process, which is the attacker too: a hundred calls at once, each of which costs at most 2.4 MiB.
MOST_MEMORY = 384 * MIB


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
