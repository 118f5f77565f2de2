# SPDX-License-Identifier: Apache-2.0
"""Trust bundles on the command line: read from files, carried in SPIRE's APIs, shown."""

import argparse
import json
from pathlib import Path

from firedoor.certs import CertsError, JwtKey, SpiffeIdError, TrustBundle, TrustDomain, X509Root
from firedoor.cli.errors import UsageError
from firedoor.cli.output import show, show_json
from firedoor.wire import types

# One byte more than the reader takes, so that it says so.
_MAX_FILE = 4 * 1024 * 1024 + 1


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add `--format`."""
    parser.add_argument(
        "--format", choices=("spiffe", "pem"), default="spiffe", help="spiffe (JWKS, the default) or pem"
    )


def trust_domain(text: str) -> TrustDomain:
    """Parse a trust domain from the command line, with or without `spiffe://`. Raise UsageError."""
    try:
        return TrustDomain.parse(text.removeprefix("spiffe://"))
    except SpiffeIdError as error:
        raise UsageError(f"{text!r} is no trust domain: {error}") from None


def read_file(path: str, domain: TrustDomain) -> types.Bundle:
    """Read a bundle from a file, SPIFFE's format or PEM. Raise UsageError."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_FILE)
        spiffe = text.lstrip().startswith(b"{")
        return to_wire(TrustBundle.parse(domain, text) if spiffe else TrustBundle.from_pem(domain, text))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except CertsError as error:
        raise UsageError(f"{path} holds no trust bundle: {error}") from None


def to_wire(bundle: TrustBundle) -> types.Bundle:
    """Return a bundle as SPIRE's APIs carry it."""
    return types.Bundle(
        trust_domain=bundle.trust_domain.name,
        x509_authorities=[types.X509Certificate(asn1=root.der, tainted=root.tainted) for root in bundle.x509_roots],
        jwt_authorities=[
            types.JWTKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at)
            for key in bundle.jwt_keys
        ],
        wit_authorities=[
            types.WITKey(public_key=key.public_key, key_id=key.key_id, expires_at=key.expires_at)
            for key in bundle.wit_keys
        ],
        sequence_number=bundle.sequence,
        refresh_hint=bundle.refresh_hint,
    )


def read(carried: types.Bundle) -> TrustBundle:
    """Return a bundle of SPIRE's APIs as a value."""
    jwt_keys, wit_keys = (
        tuple(JwtKey(one.key_id, one.public_key, one.expires_at, one.tainted) for one in keys)
        for keys in (carried.jwt_authorities, carried.wit_authorities)
    )
    return TrustBundle(
        TrustDomain.parse(carried.trust_domain.removeprefix("spiffe://")),
        tuple(X509Root(one.asn1, one.tainted) for one in carried.x509_authorities),
        jwt_keys,
        carried.sequence_number,
        carried.refresh_hint,
        wit_keys,
    )


def show_bundle(carried: types.Bundle, options: argparse.Namespace) -> None:
    """Print a bundle in the format that was asked for; `--output json` is SPIFFE's, which is JSON."""
    bundle = read(carried)
    if options.format == "pem" and options.output == "text":
        show(bundle.to_pem())
    else:
        show_json(json.loads(bundle.to_json()))
