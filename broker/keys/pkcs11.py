# SPDX-License-Identifier: Apache-2.0
"""Keys in a PKCS#11 token: a hardware security module, a smart card, or SoftHSM2.

Keys are token objects, private, sensitive and not extractable, labelled `firedoor/<broker ID>/<key ID>`, so that
several brokers can share a token. CKA_ID has a number that grows and 64 random bits: a new key is made beside the one
that it replaces, which is then destroyed. After a crash in between both are there, and the older one counts: whoever
asked for the new one was never told of it.

The PIN is read from its file at each login. One that was refused is not tried again before the file changes, or
somebody says so (`forgive`): tokens lock after a few wrong ones.

A missing key is believed only while the token itself is seen: a token that is away has no keys either, and taking its
silence for "there is no such key" would make the broker give its authorities up.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pkcs11
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key
from pkcs11 import Attribute, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
from pkcs11.util.rsa import encode_rsa_public_key

from firedoor.broker.errors import ConfigError
from firedoor.broker.files import OPEN_TO_OTHERS, stamp
from firedoor.broker.keys.device import device_key
from firedoor.broker.keys.pkcs11_module import Module, said
from firedoor.certs import KeyManagerAway, KeyManagerError, KeyType, PrivateKey
from firedoor.certs.keys import check_key_id

if TYPE_CHECKING:
    from firedoor.broker.keys.settings import Pkcs11Rules

T = TypeVar("T")
_MAX_PIN: Final = 256
_NUMBER_BYTES: Final = 8
_CURVES: Final = {KeyType.EC_P256: "secp256r1", KeyType.EC_P384: "secp384r1"}
_BITS: Final = {KeyType.RSA_2048: 2048, KeyType.RSA_4096: 4096}
# RFC 8017 section 9.2, note 1: what stands before a digest that RSA signs.
_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
}


class _Login:
    """A session on the token in one generation of the module, and the private keys that were found in it."""

    def __init__(self, generation: int, library: Any, token: pkcs11.Token, session: pkcs11.Session) -> None:
        self.generation, self.library, self.token, self.session = generation, library, token, session
        self.keys: dict[bytes, Any] = {}

    @contextlib.contextmanager
    def writing(self) -> Iterator[pkcs11.Session]:
        """Open a session that may make and destroy keys."""
        session = self.token.open(rw=True)
        try:
            yield session
        finally:
            with contextlib.suppress(pkcs11.PKCS11Error):
                session.close()


class Pkcs11KeyManager:
    """See the module. `owner` is the broker's ID. Calls may come from several threads."""

    def __init__(self, settings: Pkcs11Rules, owner: str) -> None:
        self._settings, self._owner = settings, owner
        self._module = Module.take(str(settings.module))
        self._lock = threading.Lock()
        # Held while keys are made and destroyed: what nobody waits for any more must not meet what comes after it.
        self._writing = threading.Lock()
        self._login: _Login | None = None
        # The stamp of the PIN file whose PIN was refused, and how.
        self._refused: tuple[object, str] | None = None
        self._closed = False

    # --- keys ---------------------------------------------------------------------------------------------------

    def generate(self, key_id: str, key_type: KeyType) -> PrivateKey:
        """Make a key, and destroy what had this ID. Raise KeyManagerAway or KeyManagerError."""
        label = self._label(key_id)

        def run(login: _Login) -> tuple[bytes, bytes]:
            with login.writing() as session:
                old = _found(session, label)
                number = 1 + max((int.from_bytes(one[:_NUMBER_BYTES]) for one in old), default=0)
                ident = number.to_bytes(_NUMBER_BYTES) + secrets.token_bytes(8)
                public = _generate(session, key_type, label, ident)
                for one in old:
                    _destroy(session, label, one)
                return ident, public

        with self._writing:
            return self._key(key_id, label, *self._run(run, again=False))

    def get(self, key_id: str) -> PrivateKey:
        """Return the key. Raise KeyManagerAway or KeyManagerError."""
        label = self._label(key_id)

        def run(login: _Login) -> tuple[bytes, bytes] | None:
            found = _found(login.session, label)
            if found:
                return min(found), _read_public(login.session, label, min(found), key_id)
            self._check_present(login)
            return None

        made = self._run(run)
        if made is None:
            raise KeyManagerError("key_not_found", key_id)
        return self._key(key_id, label, *made)

    def delete(self, key_id: str) -> None:
        """Destroy the key if there is one. Raise KeyManagerAway."""
        label = self._label(key_id)

        def run(login: _Login) -> None:
            with login.writing() as session:
                found = _found(session, label)
                for one in found:
                    _destroy(session, label, one)
            if not found:
                self._check_present(login)

        with self._writing:
            self._run(run)

    def _key(self, key_id: str, label: str, ident: bytes, public: bytes) -> PrivateKey:
        try:
            loaded = load_der_public_key(public)
        except ValueError:
            raise KeyManagerError("key_damaged", key_id) from None
        return device_key(loaded, partial(self._sign, key_id, label, ident), key_id)

    def _sign(self, key_id: str, label: str, ident: bytes, digest: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
        def run(login: _Login) -> bytes | None:
            key = login.keys.get(ident) or _private(login.session, label, ident)
            if key is not None:
                login.keys[ident] = key
                return _signed(key, digest, algorithm)
            self._check_present(login)
            return None

        made = self._run(run)
        if made is None:
            raise KeyManagerAway("key_gone", key_id)
        return made

    def _label(self, key_id: str) -> str:
        return f"firedoor/{self._owner}/{check_key_id(key_id)}"

    # --- the device ---------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Look whether the token answers; begin the module anew when it does not. Raise KeyManagerAway."""
        login, generation = self._login, self._module.generation
        try:
            self._once(login or self._open(None), self._check_present)
            return
        except pkcs11.PKCS11Error:
            pass
        except KeyManagerAway as error:
            # A module looks for tokens when it begins; of a PIN that was refused it will think no better.
            if error.code != "no_token":
                raise
        self._forget(login)
        self._module.restart(generation)
        self._run(self._check_present)

    def forgive(self) -> None:
        """Let the PIN be tried again."""
        self._refused = None

    def close(self) -> None:
        """Log out, and end the module when nobody else uses it."""
        if not self._closed:
            self._closed, self._login = True, None
            self._module.leave()

    def _run(self, run: Callable[[_Login], T], *, again: bool = True) -> T:
        """Run something on the token; once more, logged in anew, when it failed. Raise KeyManagerAway.

        `again`: not for what may have been done though it failed.
        """
        login = self._login
        if login is not None and login.generation != self._module.generation:
            login = None
            self._login = None
        try:
            return self._once(login or self._open(None), run)
        except pkcs11.PKCS11Error as error:
            self._forget(login)
            if not again:
                raise KeyManagerAway("device_failed", said(error)) from None
        try:
            return self._once(self._open(login), run)
        except pkcs11.PKCS11Error as error:
            self._forget(self._login)
            raise KeyManagerAway("device_failed", said(error)) from None

    def _once(self, login: _Login, run: Callable[[_Login], T]) -> T:
        with self._module.inside():
            if login.generation != self._module.generation:
                raise pkcs11.SessionClosed
            return run(login)

    def _forget(self, login: _Login | None) -> None:
        with self._lock:
            if self._login is login:
                self._login = None

    def _open(self, seen: _Login | None) -> _Login:
        """Log in, unless another thread just did. Raise KeyManagerAway or PKCS11Error."""
        with self._lock:
            present = self._login
            if present is not None and present is not seen:
                return present
            with self._module.inside() as library:
                token = self._token(library)
                self._login = _Login(self._module.generation, library, token, self._first(token))
                return self._login

    def _token(self, library: Any) -> pkcs11.Token:
        """Return the token, as it is now. Raise KeyManagerAway or PKCS11Error."""
        found = list(library.get_tokens(token_label=self._settings.token))
        if not found:
            raise KeyManagerAway("no_token", f'"{self._settings.token}" in {self._settings.module}')
        if len(found) > 1:
            raise KeyManagerAway("no_token", f'"{self._settings.token}" is the label of several tokens')
        token: pkcs11.Token = found[0]
        return token

    def _check_present(self, login: _Login) -> None:
        self._token(login.library)

    def _first(self, token: pkcs11.Token) -> pkcs11.Session:
        """Log in with the PIN, unless it was refused or one wrong one more locks it."""
        file = stamp(self._settings.pin_file)
        if self._refused is not None and self._refused[0] == file:
            raise KeyManagerAway(self._refused[1])
        try:
            check_flags(token.flags)
            return token.open(user_pin=read_pin(self._settings.pin_file))
        except pkcs11.UserAlreadyLoggedIn:
            # Somebody else in this process; a login is the process's.
            return token.open()
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            code = "wrong_pin"
        except pkcs11.PinLocked:
            code = "pin_locked"
        except KeyManagerAway as error:
            if error.code == "no_pin":
                raise
            code = error.code
        self._refused = (file, code)
        raise KeyManagerAway(code)


def check(rules: Pkcs11Rules) -> None:
    """Look at the files. Raise ConfigError."""
    if not os.access(rules.module, os.R_OK):
        raise ConfigError(f"key_manager.pkcs11.module: {rules.module} cannot be read")
    try:
        read_pin(rules.pin_file)
    except KeyManagerAway as error:
        raise ConfigError(f"key_manager.pkcs11.pin_file: {error.detail}") from None


def read_pin(path: Path) -> str:
    """Read the PIN. Raise KeyManagerAway, which does not show it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & OPEN_TO_OTHERS:
                raise KeyManagerAway("no_pin", f"{path} is open to others; chmod 0600 it")
            data = file.read(_MAX_PIN + 1)
    except OSError as error:
        raise KeyManagerAway("no_pin", f"{path} cannot be read: {error.strerror}") from None
    found = data.strip(b"\r\n")
    if not found or len(data) > _MAX_PIN or not found.isascii() or b"\n" in found:
        raise KeyManagerAway("no_pin", f"{path} does not hold one PIN, on one line")
    return found.decode("ascii")


def check_flags(flags: TokenFlag) -> None:
    """Refuse to try a PIN that is locked, or would be by one wrong try. Raise KeyManagerAway."""
    if flags & TokenFlag.USER_PIN_LOCKED:
        raise KeyManagerAway("pin_locked")
    if flags & TokenFlag.USER_PIN_FINAL_TRY:
        raise KeyManagerAway("last_try")


def _found(session: pkcs11.Session, label: str) -> list[bytes]:
    """Return the IDs of the private keys of a label."""
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label}
    return [bytes(one[Attribute.ID]) for one in session.get_objects(wanted)]


def _private(session: pkcs11.Session, label: str, ident: bytes) -> Any | None:
    wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label, Attribute.ID: ident}
    found = list(session.get_objects(wanted))
    return found[0] if found else None


def _destroy(session: pkcs11.Session, label: str, ident: bytes) -> None:
    """Destroy a pair. Some tokens destroy one half with the other."""
    for each in (ObjectClass.PRIVATE_KEY, ObjectClass.PUBLIC_KEY):
        for one in list(session.get_objects({Attribute.CLASS: each, Attribute.LABEL: label, Attribute.ID: ident})):
            with contextlib.suppress(pkcs11.ObjectHandleInvalid):
                one.destroy()


def _generate(session: pkcs11.Session, key_type: KeyType, label: str, ident: bytes) -> bytes:
    """Make a pair and return the public half in DER. Raise KeyManagerError for a key that could be copied."""
    named: dict[str, Any] = {"store": True, "label": label, "id": ident}
    named["capabilities"] = MechanismFlag.SIGN | MechanismFlag.VERIFY
    named["private_template"] = {Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False}
    if key_type in _CURVES:
        curve = {Attribute.EC_PARAMS: encode_named_curve_parameters(_CURVES[key_type])}
        made = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
        public, private = made.generate_keypair(**named)
    else:
        public, private = session.generate_keypair(pkcs11.KeyType.RSA, _BITS[key_type], **named)
    if private[Attribute.EXTRACTABLE] or not private[Attribute.SENSITIVE]:
        _destroy(session, label, ident)
        raise KeyManagerError("key_extractable")
    return _public_der(public)


def _read_public(session: pkcs11.Session, label: str, ident: bytes, key_id: str) -> bytes:
    wanted = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.LABEL: label, Attribute.ID: ident}
    found = list(session.get_objects(wanted))
    if not found:
        raise KeyManagerError("key_damaged", key_id)
    return _public_der(found[0])


def _public_der(public: Any) -> bytes:
    encode = encode_ec_public_key if public.key_type == pkcs11.KeyType.EC else encode_rsa_public_key
    return bytes(encode(public))


def _signed(key: Any, digest: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    if key.key_type == pkcs11.KeyType.RSA:
        return bytes(key.sign(_DIGEST_INFO[algorithm.name] + digest, mechanism=Mechanism.RSA_PKCS))
    # PKCS#11 section 6.3.1: r and s, each as long as the curve's order.
    made = bytes(key.sign(digest, mechanism=Mechanism.ECDSA))
    half = len(made) // 2
    return encode_dss_signature(int.from_bytes(made[:half]), int.from_bytes(made[half:]))
