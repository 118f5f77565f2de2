# SPDX-License-Identifier: Apache-2.0
"""Lends a network namespace what listens on the loopback of this one: programs there reach it at the same address."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from tests.e2e.namespaces import Namespace
from tests.netns import enter


@contextmanager
def lent(space: Namespace, port: int) -> Iterator[None]:
    """Carry connections to 127.0.0.1 and a port there to the same here."""
    # A socket belongs to the namespace of the thread that made it, whoever uses it.
    with ThreadPoolExecutor(1, initializer=enter, initargs=(f"/run/netns/{space.name}",)) as there:
        listening = there.submit(socket.create_server, ("127.0.0.1", port)).result()
    threading.Thread(target=_accept, args=(listening, port), daemon=True).start()
    try:
        yield
    finally:
        # `close` alone does not wake who accepts.
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def _accept(listening: socket.socket, port: int) -> None:
    while True:
        try:
            near, _ = listening.accept()
        except OSError:
            return
        try:
            far = socket.create_connection(("127.0.0.1", port))
        except OSError:
            near.close()
            continue
        threading.Thread(target=_carry, args=(near, far), daemon=True).start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    back = threading.Thread(target=_copy, args=(far, near), daemon=True)
    back.start()
    _copy(near, far)
    # Not before neither is in use: the number of a closed one is the next connection's.
    back.join()
    for one in (near, far):
        one.close()


def _copy(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
    # Either end of it: the whole is over.
    for each in (one, other):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
