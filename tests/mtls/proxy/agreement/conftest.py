# SPDX-License-Identifier: Apache-2.0
"""The same folders for sockets as the other tests of the data path."""

from tests.mtls.proxy.conftest import sockets

__all__ = ["sockets"]
