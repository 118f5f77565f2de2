# SPDX-License-Identifier: Apache-2.0
"""A broker for tests; `harness` has the parts, for suites elsewhere."""

import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.broker.harness import RunningBroker, running
from tests.web_pki import WebPki


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="fd-"))
    yield made
    shutil.rmtree(made)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module's tests that have a broker on each of the databases that its `ENGINES` names."""
    if "engine" in metafunc.fixturenames and hasattr(metafunc.module, "ENGINES"):
        metafunc.parametrize("engine", metafunc.module.ENGINES, indirect=True)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> dict[str, str]:
    """What a broker is told of its database: SQLite's file, unless something else is asked for."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return {}
    url, password_file = request.getfixturevalue("postgres").database()
    return {"database": url, "database_password_file": str(password_file)}


@pytest.fixture
async def broker(folder: Path, engine: dict[str, str]) -> AsyncIterator[RunningBroker]:
    """A broker with two segments."""
    async with running(folder, **engine) as found:
        yield found


@pytest.fixture
def web_pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """A web certificate for 127.0.0.1 that this process trusts."""
    pki = WebPki()
    (tmp_path / "ca.pem").write_bytes(pki.root_pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    return pki.server("127.0.0.1")
