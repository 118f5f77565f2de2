# SPDX-License-Identifier: Apache-2.0
"""The same worlds as for opaque TCP."""

from tests.mtls.proxy.conftest import make_world, sockets, world

__all__ = ["make_world", "sockets", "world"]
