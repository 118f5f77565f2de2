# SPDX-License-Identifier: Apache-2.0
"""What the openssl program says of a certificate, by revocation lists."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization


def verify(folder: Path, chain: Sequence[bytes], roots: Sequence[bytes], crls: Sequence[bytes] | None, at: int) -> str:
    """Say what `openssl verify` says of a leaf with its chain, "OK" when it accepts it. All are DER.

    It checks revocation lists unless these are None.
    """
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("needs the openssl program")

    def write(name: str, ders: Sequence[bytes]) -> str:
        path = folder / name
        loaded = [x509.load_der_x509_certificate(der) for der in ders]
        path.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in loaded))
        return str(path)

    command = [program, "verify", "-attime", str(at)]
    if crls is not None:
        lists = [x509.load_der_x509_crl(one).public_bytes(serialization.Encoding.PEM) for one in crls]
        (folder / "crl.pem").write_bytes(b"".join(lists))
        command += ["-crl_check", "-CRLfile", str(folder / "crl.pem")]
    command += ["-CAfile", write("roots.pem", roots)]
    if chain[1:]:
        command += ["-untrusted", write("between.pem", chain[1:])]
    ran = subprocess.run([*command, write("leaf.pem", chain[:1])], capture_output=True, text=True, timeout=120)
    return "OK" if ran.returncode == 0 else ran.stderr
