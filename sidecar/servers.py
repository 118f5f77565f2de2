# SPDX-License-Identifier: Apache-2.0
"""The servers' addresses, in the order in which they are tried.

The order is made by chance once a process, so that sidecars spread over the servers, and those of a server that ends
over the others. A connection is made to the first that answers and proves who it is; an address that led to one which
then failed becomes the last.
"""

import random
from collections.abc import Callable, Sequence


class Servers:
    """Addresses of one kind: brokers on one database, or SPIRE servers."""

    def __init__(self, addresses: Sequence[str], shuffle: Callable[[list[str]], None] = random.shuffle) -> None:
        self._order = list(dict.fromkeys(addresses))
        shuffle(self._order)

    @property
    def order(self) -> tuple[str, ...]:
        """All of them, the next to be tried first."""
        return tuple(self._order)

    def turn(self) -> bool:
        """Make the first one the last; say whether that makes a difference."""
        self._order.append(self._order.pop(0))
        return len(self._order) > 1
