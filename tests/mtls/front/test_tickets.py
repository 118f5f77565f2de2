# SPDX-License-Identifier: Apache-2.0
"""A resumed session is not verified again, so there must be nothing to resume. OpenSSL says what it was sent."""

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from firedoor import mtls
from tests.mtls.front.conftest import CLIENT
from tests.simulator import Identity, SimulatedTrustDomain
from tests.waiting import until

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs the openssl program")


# The preface of HTTP/2 with its settings, and what a server answers those: it comes after any ticket would.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTLED = bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])


def messages(address: str, identity: Identity, folder: Path, last: bytes) -> str:
    """Return the log of all handshake messages, and of what comes after the handshake until the last of it is there."""
    (folder / "chain.pem").write_bytes(identity.chain_pem)
    (folder / "key.pem").write_bytes(identity.key_pem)
    program = [str(OPENSSL), "s_client", "-connect", address, "-alpn", "h2", "-msg", "-tls1_3"]
    program += ["-cert", str(folder / "chain.pem"), "-key", str(folder / "key.pem")]
    log = folder / "messages"
    # An open standard input: at its end s_client hangs up.
    with log.open("wb") as output, subprocess.Popen(program, stdin=subprocess.PIPE, stdout=output) as client:
        assert client.stdin
        client.stdin.write(PREFACE)
        client.stdin.flush()
        until(lambda: last in log.read_bytes() or client.poll() is not None, "what comes last")
        client.kill()
    return log.read_text("latin-1")


async def test_zero_tickets(front: mtls.Front, td: SimulatedTrustDomain, folder: Path) -> None:
    said = await asyncio.to_thread(messages, front.address, td.svid(CLIENT), folder, SETTLED)
    assert "Finished" in said
    assert "ALPN protocol: h2" in said
    assert SETTLED.decode("latin-1") in said
    assert said.count("NewSessionTicket") == 0


def test_the_test_sees_tickets(td: SimulatedTrustDomain, folder: Path) -> None:
    """The twin: an ordinary server sends some."""
    server = td.svid(CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "both.pem").write_bytes(server.chain_pem + server.key_pem)
    context.load_cert_chain(folder / "both.pem")
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            raw, _ = listener.accept()
            with context.wrap_socket(raw, server_side=True) as connection:
                connection.sendall(b"hello")
                with contextlib.suppress(OSError):
                    connection.recv(1)

        serving = threading.Thread(target=serve)
        serving.start()
        said = messages(f"127.0.0.1:{listener.getsockname()[1]}", td.svid(CLIENT), folder, b"hello")
        serving.join()
    assert said.count("NewSessionTicket") > 0
