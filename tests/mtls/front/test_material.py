# SPDX-License-Identifier: Apache-2.0
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from firedoor import mtls
from tests.mtls.front.conftest import CLIENT, SERVER, material, svid
from tests.simulator import Identity, SimulatedTrustDomain


def refusal(core: mtls.Core, given: mtls.Material) -> mtls.MaterialError:
    with pytest.raises(mtls.MaterialError) as caught:
        core.publish(given)
    return caught.value


def test_revisions_count_up(core: mtls.Core, td: SimulatedTrustDomain) -> None:
    assert [core.publish(material(td, td.svid(CLIENT))) for _ in range(3)] == [1, 2, 3]


def test_bundle_alone(core: mtls.Core, td: SimulatedTrustDomain) -> None:
    assert core.publish(material(td)) == 1


KEYS: dict[str, Any] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
}


@pytest.mark.parametrize("kind", KEYS)
def test_key_types(kind: str, core: mtls.Core, td: SimulatedTrustDomain) -> None:
    assert core.publish(material(td, td.svid(CLIENT, key=KEYS[kind]()))) == 1


BAD: dict[str, tuple[str, Any]] = {
    "another key": (
        "key_mismatch",
        lambda td: dataclasses.replace(td.svid(CLIENT), key=ec.generate_private_key(ec.SECP256R1())),
    ),
    "expired": ("expired", lambda td: td.svid(CLIENT, starts=td.at - 7200, expires=td.at - 60)),
    "not yet valid": ("not_yet_valid", lambda td: td.svid(CLIENT, starts=td.at + 600)),
    "a CA": ("leaf_is_ca", lambda td: td.svid(CLIENT, ca=True)),
    "no chain": ("chain_empty", lambda td: Identity([], td.svid(CLIENT).key)),
    "foreign": ("chain_untrusted", lambda _: SimulatedTrustDomain("td", at=_.at).svid(CLIENT)),
    "server alone": (
        "eku_incomplete",
        lambda td: td.svid(CLIENT, extended_key_usage=[ExtendedKeyUsageOID.SERVER_AUTH]),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_svid_is_refused_and_the_last_good_stays(case: str, core: mtls.Core, td: SimulatedTrustDomain) -> None:
    code, make = BAD[case]
    core.publish(material(td, td.svid(CLIENT)))
    bad = make(td)
    given = mtls.Svid(id=f"spiffe://td{CLIENT}", chain=bad.chain, key=bad.key_der)
    parts = {"trust_domain": "td", "bundles": td.roots_by_name()}
    assert refusal(core, mtls.Material(svids=[given], **parts)).code == code
    assert core.publish(material(td, td.svid(CLIENT))) == 2


def test_parts_that_do_not_fit(core: mtls.Core, td: SimulatedTrustDomain) -> None:
    one = td.svid(CLIENT)
    parts: dict[str, Any] = {"trust_domain": "td", "bundles": td.roots_by_name()}
    misnamed = mtls.Svid(id=f"spiffe://td{SERVER}", chain=one.chain, key=one.key_der)
    assert refusal(core, mtls.Material(svids=[misnamed], **parts)).code == "wrong_id"
    assert refusal(core, mtls.Material(svids=[svid(one), svid(one)], **parts)).code == "svid_twice"
    unreadable = mtls.Svid(id=str(one.id), chain=one.chain, key=b"not a key")
    assert refusal(core, mtls.Material(svids=[unreadable], **parts)).code == "bad_key"
    assert refusal(core, mtls.Material(trust_domain="td", bundles={})).code == "bundle_empty"
    assert refusal(core, mtls.Material(trust_domain="td", bundles={"td": []})).code == "bundle_empty"
    assert refusal(core, mtls.Material(trust_domain="td", bundles={"td": [b"junk"]})).code == "bad_root"
    assert refusal(core, mtls.Material(trust_domain="td", bundles={"td": one.chain})).code == "bad_root"
    assert refusal(core, mtls.Material(table=b"\xff\xff", **parts)).code == "bad_table"
    assert core.publish(mtls.Material(svids=[svid(one)], **parts)) == 1


def test_a_revocation_of_our_own_is_taken(core: mtls.Core, td: SimulatedTrustDomain, folder: Path) -> None:
    """Or it would never arrive; the SVID is not used any more."""
    one = td.svid(SERVER)
    revoked = mtls.Revocation(serial=format(one.leaf.serial_number, "x"))
    backend = str(folder / "b.sock")
    core.publish(material(td, one))
    core.tls_front(listen="127.0.0.1:0", as_id=str(one.id), backend=backend)
    assert core.publish(material(td, one, revocations=[revoked])) == 2
    with pytest.raises(mtls.ListenError) as caught:
        core.tls_front(listen="127.0.0.1:0", as_id=str(one.id), backend=backend)
    assert caught.value.code == "no_identity"


def test_texts_are_parsed_at_once(td: SimulatedTrustDomain) -> None:
    one = td.svid(CLIENT)
    for make in (
        lambda: mtls.Svid(id="spiffe://TD/a", chain=one.chain, key=one.key_der),
        lambda: mtls.Svid(id=str(one.id), chain=one.chain, key=one.key_der, federates_with=["A"]),
        lambda: mtls.Material(trust_domain="Td", bundles={}),
        lambda: mtls.Material(trust_domain="td", bundles={"a b": []}),
        lambda: mtls.Revocation(pattern="spiffe://td/a*", issued_before=1),
    ):
        with pytest.raises(mtls.VerifyError):
            make()
    for fields in (
        {},
        {"serial": "A"},
        {"serial": ""},
        {"authority_id": "x"},
        {"serial": "a", "authority_id": "b"},
        {"pattern": "spiffe://td/a"},
        {"issued_before": 1},
    ):
        with pytest.raises(mtls.MtlsError) as caught:
            mtls.Revocation(**fields)  # type: ignore[arg-type]
        assert caught.value.code == "bad_revocation"


def test_keys_are_not_shown(td: SimulatedTrustDomain) -> None:
    one = svid(td.svid(CLIENT))
    assert repr(one) == f"Svid(spiffe://td{CLIENT})"
    assert str(one) == repr(one)


def test_front_needs_its_identity(core: mtls.Core, td: SimulatedTrustDomain, folder: Path) -> None:
    arguments = {"listen": "127.0.0.1:0", "as_id": f"spiffe://td{SERVER}", "backend": str(folder / "b.sock")}
    with pytest.raises(mtls.ListenError) as caught:
        core.tls_front(**arguments)
    assert caught.value.code == "no_identity"
    core.publish(material(td, td.svid(SERVER)))
    for wrong in ({"listen": "nonsense"}, {"listen": "127.0.0.1:99999"}):
        with pytest.raises(mtls.ListenError) as caught:
            core.tls_front(**{**arguments, **wrong})
        assert caught.value.code == "bad_address"
    first = core.tls_front(**arguments)
    with pytest.raises(mtls.ListenError) as caught:
        core.tls_front(**{**arguments, "listen": first.address})
    assert caught.value.code == "bind"
    with pytest.raises(mtls.MtlsError, match="optional"):
        core.tls_front(**arguments, client="maybe")  # type: ignore[arg-type]
