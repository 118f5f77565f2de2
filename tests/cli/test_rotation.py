# SPDX-License-Identifier: Apache-2.0
"""What who watches a rotation is told."""

import pytest

from firedoor.cli.rotation import sentence
from firedoor.wire import admin_pb2

ENDS = "streams that began under it end with it"


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (admin_pb2.Rotation(kind="x509", stage="retire"), True),
        (admin_pb2.Rotation(kind="x509", stage="reissue"), False),
        # Tokens carry no streams.
        (admin_pb2.Rotation(kind="jwt", stage="retire"), False),
    ],
    ids=lambda one: f"{one.kind} {one.stage}" if isinstance(one, admin_pb2.Rotation) else str(one),
)
def test_it_is_said_what_ends_with_the_old_authority(one: admin_pb2.Rotation, told: bool) -> None:
    assert (ENDS in sentence(one)) is told
