# SPDX-License-Identifier: Apache-2.0
"""Name constraints of CAs that are not ours (RFC 5280 section 4.2.1.10, X509-SVID.md 4.2).

The URI kind would limit SPIFFE IDs. RFC 5280 defines it over hosts, libraries differ on it or do not know it, so a CA
that has it is refused by name, here and in the Rust core. DNS names are evaluated. The other kinds matter only to
certificates that hold such names, which are then refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from firedoor.certs.certificate import Certificate
from firedoor.certs.errors import SvidError


def check_name_constraints(constraints: x509.NameConstraints, below: Sequence[Certificate]) -> None:
    """Raise SvidError unless the names of all certificates below a CA keep to its constraints."""
    permitted, excluded = constraints.permitted_subtrees or [], constraints.excluded_subtrees or []
    kinds = {type(subtree) for subtree in (*permitted, *excluded)}
    if x509.UniformResourceIdentifier in kinds:
        raise SvidError("name_constraints_unsupported")
    for certificate in below:
        # A subject is a directory name, and ours never lies below a corporate one.
        present = {type(name) for name in certificate.names}
        if not certificate.subject_empty:
            present.add(x509.DirectoryName)
        if present & (kinds - {x509.DNSName}):
            raise SvidError("name_constraints_unsupported")
        if x509.DNSName in kinds:
            _check_dns(certificate.dns_names, _dns(permitted), _dns(excluded))


def _dns(subtrees: Sequence[x509.GeneralName]) -> list[str]:
    return [subtree.value.lower() for subtree in subtrees if isinstance(subtree, x509.DNSName)]


def _check_dns(names: Sequence[str], permitted: Sequence[str], excluded: Sequence[str]) -> None:
    for name in names:
        if permitted and not any(_within(name.lower(), base) for base in permitted):
            raise SvidError("chain_untrusted", "a DNS name is outside what its CA may name")
        if any(_within(name.lower(), base) for base in excluded):
            raise SvidError("chain_untrusted", "a DNS name is one that its CA may not name")


def _within(name: str, base: str) -> bool:
    """A name lies within a base when it is equal or has more labels to the left; an empty base holds every name."""
    return not base or name == base or name.endswith("." + base.removeprefix("."))
