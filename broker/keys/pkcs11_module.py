# SPDX-License-Identifier: Apache-2.0
"""One PKCS#11 module of this process: begun once, shared, and begun anew when it lost its device.

A module is a library with global state. C_Initialize counts for the whole process, and C_Finalize ends every session in
it, so that who uses it is counted. And it is begun without the word that there are threads, as python-pkcs11 knows no
other way: then only one of them may be in it at a time (PKCS#11 section 5.4.1), or SoftHSM2 fails under load.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, ClassVar, Final

import pkcs11

from firedoor.certs import KeyManagerAway

# How long beginning anew waits for the call that is in the module.
_PATIENCE: Final = 5.0


class Module:
    """A module by its path. `take` and `leave` it; `generation` says whether what was opened in it is still open."""

    _known: ClassVar[dict[str, Module]] = {}
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: str) -> None:
        self._path, self._pid = path, os.getpid()
        self._library: Any = None
        self._lock = threading.RLock()
        self.users, self.generation = 0, 0

    @classmethod
    def take(cls, path: str) -> Module:
        """Return the module, for whoever calls `leave` once."""
        with cls._guard:
            found = cls._known.setdefault(path, Module(path))
            found.users += 1
            return found

    def leave(self) -> None:
        """Be one user fewer; after the last one the module is ended."""
        with self._guard:
            self.users -= 1
            if self.users or self._pid != os.getpid():
                return
            del self._known[self._path]
        # Whoever hangs in it keeps it: it ends with the process.
        if self._lock.acquire(timeout=_PATIENCE):
            self._end()
            self._lock.release()

    @contextlib.contextmanager
    def inside(self) -> Iterator[Any]:
        """Call into the module, as the only thread. Raise KeyManagerAway."""
        if self._pid != os.getpid():
            raise KeyManagerAway("forked")
        with self._lock:
            if self._library is None:
                self._begin()
            yield self._library

    def restart(self, seen: int) -> None:
        """Begin anew, unless somebody did so since that generation. Raise KeyManagerAway."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise KeyManagerAway("too_slow", "a call into the module does not return")
        try:
            if self.generation == seen:
                self._end()
                self._begin()
        finally:
            self._lock.release()

    def _begin(self) -> None:
        self.generation += 1
        try:
            # Loads it the first time, and begins it again after it was ended.
            self._library = pkcs11.lib(self._path)
        except pkcs11.PKCS11Error as error:
            raise KeyManagerAway("no_module", f"{self._path} ({said(error)})") from None

    def _end(self) -> None:
        library, self._library = self._library, None
        if library is not None:
            # What fails here fails again, and is told, where the module is begun.
            with contextlib.suppress(pkcs11.PKCS11Error):
                library.finalize()


def said(error: Exception) -> str:
    """Return what a module said: the name of its return value, and what the binding adds."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
