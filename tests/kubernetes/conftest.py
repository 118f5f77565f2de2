# SPDX-License-Identifier: Apache-2.0
"""One control plane for all tests of a process; what a test makes lies in namespaces of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kubernetes.cluster import Cluster, running_cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A control plane that the tests of a process share: leave nothing in it that reaches beyond a namespace."""
    with running_cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found
