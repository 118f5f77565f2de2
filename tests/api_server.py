# SPDX-License-Identifier: Apache-2.0
"""What stands for a cluster's API server where a test says what it answers."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trustme
from aiohttp import web

from tests.tls_server import serving_tls


@asynccontextmanager
async def serving(app: web.Application, folder: Path, **options: float) -> AsyncIterator[str]:
    """Serve an application over TLS, with `ca.pem` and `token` in the folder; yield its URL."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "token").write_text("ours\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with serving_tls(app, context, **options) as address:
        yield f"https://{address}"
