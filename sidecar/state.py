# SPDX-License-Identifier: Apache-2.0
"""What a sidecar keeps in its data directory (0700), each file replaced atomically.

    VERSION              of this layout; a newer one is refused
    agent.json           the agent SVID's chain, unless this node can attest again
    agent.key            its key, and during a renewal the next one too: the chain says which of them counts (0600)
    bundle.json          trust bundles by trust domain
    generation.pb        the last update that was acknowledged
    workload/<entry>.pem key and chain of each identity, with `keep_workload_keys: disk` (0600)

The next agent key is written before the server is asked to sign it, and the old one is dropped after the new chain is
on disk: killed at any moment, a sidecar finds a key for the chain that it has. A join token works only once.
"""

import base64
import binascii
import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from firedoor.certs import SpiffeId, SpiffeIdError
from firedoor.sidecar import keys
from firedoor.sidecar.errors import StateError
from firedoor.sidecar.keys import Key
from firedoor.wire import control_pb2

VERSION = 1
PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
_SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,100}")


@dataclass(frozen=True, slots=True)
class StoredAgent:
    """The agent SVID as it was last issued. `chain` is DER, leaf first."""

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...]
    key: Key
    reattestable: bool


class State:
    """A data directory. Made with `open()`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None

    @classmethod
    def open(cls, root: Path) -> "State":
        """Make the directory, or check the one that is there. Raise StateError."""
        state = cls(root)
        with _told(root):
            root.mkdir(mode=PRIVATE_DIR, parents=True, exist_ok=True)
            state._check_owner()
            state._take_lock()
            state._check_version()
            (root / "workload").mkdir(mode=PRIVATE_DIR, exist_ok=True)
        return state

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        """Hold the directory until `close`, or until the process ends in whatever way."""
        self._lock = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StateError(f"{self.root} is in use by another sidecar; give each a directory of its own") from None

    def _check_owner(self) -> None:
        found = self.root.stat()
        if found.st_uid != os.geteuid():
            raise StateError(f"{self.root} belongs to another user; give the sidecar a directory of its own")
        if found.st_mode & 0o077:
            self.root.chmod(PRIVATE_DIR)

    def _check_version(self) -> None:
        file = self.root / "VERSION"
        if not file.exists():
            self._replace("VERSION", f"{VERSION}\n".encode())
            return
        text = file.read_text(errors="replace").strip()
        if not text.isdecimal():
            raise StateError(f"{file} does not hold a number; this is not a sidecar's data directory")
        if int(text) > VERSION:
            raise StateError(
                f"{self.root} was written by a newer firedoor (layout {text}, this one knows {VERSION}); "
                "run that version, or choose an empty data_dir and attest again"
            )

    # The agent.

    def load_agent(self) -> StoredAgent | None:
        """Return the stored agent SVID, or None when there is none. Raise StateError when it is damaged."""
        text = self._read("agent.json")
        if text is None:
            return None
        try:
            data = json.loads(text)
            chain = tuple(base64.b64decode(one, validate=True) for one in data["chain"])
            spiffe_id, reattestable = SpiffeId.parse(data["id"]), bool(data["reattestable"])
            wanted = keys.public_key_of(chain[0])
            candidates = keys.from_pem(self._read("agent.key") or b"")
        except (ValueError, KeyError, TypeError, IndexError, binascii.Error, SpiffeIdError) as error:
            raise StateError(f"{self.root}/agent.json cannot be used; delete it and attest again") from error
        for key in candidates:
            if key.public == wanted:
                return StoredAgent(spiffe_id, chain, key, reattestable)
        raise StateError(f"{self.root}/agent.key holds no key for agent.json; delete both and attest again")

    def prepare_agent_key(self, present: Key | None, coming: Key) -> None:
        """Write the key that is about to be signed, beside the one in use."""
        self._replace("agent.key", keys.to_pem([key for key in (present, coming) if key]))

    def store_agent(self, agent: StoredAgent) -> None:
        """Write a new agent SVID; its key was prepared."""
        data = {
            "id": str(agent.spiffe_id),
            "chain": [base64.b64encode(one).decode() for one in agent.chain],
            "reattestable": agent.reattestable,
        }
        self._replace("agent.json", json.dumps(data, indent=1).encode())
        # From here on it counts; where that fails (a full disk), the old key stays beside it until the next time.
        with contextlib.suppress(StateError):
            self._replace("agent.key", keys.to_pem([agent.key]))

    def delete_agent(self) -> None:
        """Forget the agent SVID and every workload's: what a ban asks for."""
        self.forget_agent()
        self.keep_workloads(())

    def forget_agent(self) -> None:
        """Forget the agent SVID."""
        for name in ("agent.json", "agent.key"):
            self._unlink(self.root / name)

    # Bundles, generation.

    def load_bundles(self) -> bytes | None:
        """Return bundle.json."""
        return self._read("bundle.json")

    def store_bundles(self, text: bytes) -> None:
        """Write bundle.json."""
        self._replace("bundle.json", text)

    def load_generation(self) -> control_pb2.Update | None:
        """Return the last update that was acknowledged. Raise StateError when it is damaged."""
        data = self._read("generation.pb")
        if data is None:
            return None
        try:
            return control_pb2.Update.FromString(data)
        except DecodeError as error:
            raise StateError(
                f"{self.root}/generation.pb cannot be read; delete it, and the server sends it again"
            ) from error

    def store_generation(self, update: control_pb2.Update) -> None:
        """Write the update that is about to be acknowledged."""
        self._replace("generation.pb", update.SerializeToString(deterministic=True))

    def forget_generation(self) -> None:
        """Forget the pushed policy."""
        self._unlink(self.root / "generation.pb")

    # Workload keys.

    def store_workload(self, entry_id: str, key: Key, chain: Iterable[bytes]) -> None:
        """Write one identity: its key, then its chain, as PEM."""
        self._replace(f"workload/{_file_name(entry_id)}", keys.to_pem([key]) + keys.chain_to_pem(chain))

    def load_workloads(self, entry_ids: Iterable[str]) -> Mapping[str, tuple[Key, tuple[bytes, ...]]]:
        """Return what is stored for these entries; what is damaged is left out, because it can be issued again."""
        found = {}
        for entry_id in entry_ids:
            data = self._read(f"workload/{_file_name(entry_id)}")
            with contextlib.suppress(ValueError, IndexError):
                if data is not None:
                    found[entry_id] = (keys.from_pem(data)[0], keys.chain_from_pem(data))
        return found

    def keep_workloads(self, entry_ids: Iterable[str]) -> None:
        """Delete the stored identities of all other entries."""
        keep = {_file_name(one) for one in entry_ids}
        with _told(self.root):
            for file in (self.root / "workload").glob("*.pem"):
                if file.name not in keep:
                    self._unlink(file)

    # Files.

    def _read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.root / name} cannot be read: {error.strerror}") from error

    def _unlink(self, file: Path) -> None:
        with _told(file):
            file.unlink(missing_ok=True)

    def _replace(self, name: str, data: bytes) -> None:
        """Replace a file so that a crash leaves the old or the new one, whole."""
        target = self.root / name
        temporary = target.with_name(f".{target.name}.new")
        with _told(target):
            temporary.unlink(missing_ok=True)
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _file_name(entry_id: str) -> str:
    """Return a file name for an entry: its ID where that is safe, else a hash, as servers choose their IDs freely."""
    safe = entry_id if _SAFE_NAME.fullmatch(entry_id) else "h-" + hashlib.sha256(entry_id.encode()).hexdigest()
    return f"{safe}.pem"


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Turn an operating system's error into ours."""
    try:
        yield
    except OSError as error:
        raise StateError(f"{place}: {error.strerror}; the sidecar needs a data_dir that it can write") from error
