# SPDX-License-Identifier: Apache-2.0
import copy

import pytest

from firedoor.certs import CallerError, CertsError, OurError, PeerError, SpiffeIdError, SvidError, errors


def leaves() -> list[type[CertsError]]:
    found = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CertsError)]
    return [each for each in found if each.sentences]


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.__name__)
def test_every_leaf(leaf: type[CertsError]) -> None:
    assert issubclass(leaf, CallerError | PeerError | OurError)
    assert f"{leaf.__name__} " in (errors.__doc__ or "")
    for code, sentence in leaf.sentences.items():
        error = leaf(code)
        assert (error.code, str(error)) == (code, sentence)
        assert str(leaf(code, "where")) == f"{sentence}: where"
        assert code.replace("_", "").isalnum()


def test_status_is_by_fault() -> None:
    assert (SpiffeIdError("empty").fault, SpiffeIdError.grpc_status) == ("caller", "INVALID_ARGUMENT")
    assert (SvidError("expired").fault, SvidError.grpc_status) == ("peer", "UNAUTHENTICATED")
    assert (OurError.fault, OurError.grpc_status) == ("us", "INTERNAL")


def test_a_copy_is_the_same() -> None:
    error = copy.copy(SvidError("expired", "x"))
    assert (error.code, error.detail, str(error)) == ("expired", "x", "a certificate in the chain has expired: x")
