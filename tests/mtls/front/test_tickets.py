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

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs the openssl program")


def messages(address: str, identity: Identity, folder: Path) -> str:
    """Return the log of all handshake messages; the connection stays open for a second after the handshake."""
    (folder / "chain.pem").write_bytes(identity.chain_pem)
    (folder / "key.pem").write_bytes(identity.key_pem)
    program = [str(OPENSSL), "s_client", "-connect", address, "-alpn", "h2", "-msg", "-tls1_3"]
    program += ["-cert", str(folder / "chain.pem"), "-key", str(folder / "key.pem")]
    log = folder / "messages"
    # An open standard input: at its end s_client hangs up.
    with log.open("wb") as output, subprocess.Popen(program, stdin=subprocess.PIPE, stdout=output) as client:
        with contextlib.suppress(subprocess.TimeoutExpired):
            client.wait(timeout=1)
        client.kill()
    return log.read_text("latin-1")


async def test_zero_tickets(front: mtls.Front, td: SimulatedTrustDomain, folder: Path) -> None:
    said = await asyncio.to_thread(messages, front.address, td.svid(CLIENT), folder)
    assert "Finished" in said
    assert "ALPN protocol: h2" in said
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
        said = messages(f"127.0.0.1:{listener.getsockname()[1]}", td.svid(CLIENT), folder)
        serving.join()
    assert said.count("NewSessionTicket") > 0
