# SPDX-License-Identifier: Apache-2.0
"""Keys in a PKCS#11 token when something is wrong: with the PIN, the session, the token, the module, the process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pkcs11
import pytest
from pkcs11 import Attribute, ObjectClass, TokenFlag

from firedoor.broker.errors import ConfigError
from firedoor.broker.keys.pkcs11 import Pkcs11KeyManager, check_flags, read_pin
from firedoor.broker.keys.pkcs11_module import Module
from firedoor.certs import KeyManagerAway, KeyManagerError, KeyType, PrivateKey, public_key_der
from firedoor.certs.keys import signing
from tests.softhsm import LABEL, PIN, Token, softhsm

NAME = "x509-CA-A"
# python-pkcs11 ends an operation of a dead session when it is collected, and says that it could not.
dead = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def token(tmp_path: Path) -> Iterator[Token]:
    with softhsm(tmp_path / "hsm") as made:
        yield made


@pytest.fixture
def keys(token: Token) -> Iterator[Pkcs11KeyManager]:
    made = Pkcs11KeyManager(token.rules, "owner")
    yield made
    made.close()


def why(act: object, *given: object) -> str:
    """Return the code of what keeps a token away."""
    with pytest.raises(KeyManagerAway) as caught:
        act(*given)  # type: ignore[operator]
    assert PIN not in str(caught.value)
    return caught.value.code


def test_keys_cannot_be_taken_out(token: Token, keys: Pkcs11KeyManager) -> None:
    keys.generate(NAME, KeyType.EC_P256)
    with keys._module.inside() as library:
        session = library.get_token(token_label=LABEL).open()
        (found,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
        assert found[Attribute.LABEL] == f"firedoor/owner/{NAME}"
        assert found[Attribute.TOKEN]
        assert found[Attribute.PRIVATE]
        assert found[Attribute.SENSITIVE]
        assert found[Attribute.ALWAYS_SENSITIVE]
        assert found[Attribute.NEVER_EXTRACTABLE]
        assert not found[Attribute.EXTRACTABLE]
        assert not found[Attribute.DECRYPT]
        with pytest.raises(pkcs11.PKCS11Error):
            found[Attribute.VALUE]


def test_only_one_key_of_a_name_is_left(token: Token, keys: Pkcs11KeyManager) -> None:
    for _ in range(3):
        made = keys.generate(NAME, KeyType.EC_P256)
    keys.generate("JWT-Signer-A", KeyType.EC_P256)
    with keys._module.inside() as library:
        session = library.get_token(token_label=LABEL).open()
        assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))) == 2
        assert len(list(session.get_objects({Attribute.CLASS: ObjectClass.PUBLIC_KEY}))) == 2
    assert same(keys.get(NAME), made)


def test_after_a_crash_between_making_and_destroying_the_older_key_counts(keys: Pkcs11KeyManager) -> None:
    first = keys.generate(NAME, KeyType.EC_P256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("firedoor.broker.keys.pkcs11._destroy", _crash)
        with pytest.raises(KeyboardInterrupt):
            keys.generate(NAME, KeyType.EC_P256)
    assert same(keys.get(NAME), first)
    last = keys.generate(NAME, KeyType.EC_P256)
    assert same(keys.get(NAME), last)


def _crash(*_: object) -> None:
    raise KeyboardInterrupt


def same(one: PrivateKey, other: PrivateKey) -> bool:
    return public_key_der(one.public_key()) == public_key_der(other.public_key())


@dead
def test_a_module_that_somebody_else_began_anew_is_logged_in_to_again(keys: Pkcs11KeyManager) -> None:
    key = keys.generate(NAME, KeyType.EC_P256)
    keys._module.restart(keys._module.generation)
    assert signing(key)(b"x")
    # C_Finalize behind our back: the session is dead though nothing told us.
    with keys._module.inside() as library:
        library.reinitialize()
    assert signing(key)(b"x")
    with keys._module.inside() as library:
        library.reinitialize()
    assert same(keys.get(NAME), key)


def test_two_managers_share_a_login(token: Token, keys: Pkcs11KeyManager) -> None:
    first = keys.generate(NAME, KeyType.EC_P256)
    other = Pkcs11KeyManager(token.rules, "other")
    second = other.generate(NAME, KeyType.EC_P256)
    assert not same(first, second)
    other.close()
    assert signing(first)(b"x")
    assert same(keys.get(NAME), first)


@dead
def test_a_token_that_is_away_has_not_lost_its_keys(token: Token, keys: Pkcs11KeyManager) -> None:
    key = keys.generate(NAME, KeyType.EC_P256)
    token.take_away()
    sign = signing(key)
    assert {why(sign, b"x"), why(keys.get, NAME), why(keys.delete, NAME)} <= {"device_failed", "no_module"}
    assert why(keys.connect) in {"device_failed", "no_module"}
    # A folder with no token in it: the module begins, and finds nothing.
    (token.folder / "tokens").mkdir()
    assert why(keys.connect) == "no_token"
    assert why(keys.get, NAME) == "no_token"
    assert why(sign, b"x") == "no_token"
    (token.folder / "tokens").rmdir()
    token.put_back()
    keys.connect()
    assert sign(b"x")
    assert same(keys.get(NAME), key)


def test_a_key_that_somebody_destroyed_is_said_to_be_gone(token: Token, keys: Pkcs11KeyManager) -> None:
    key = keys.generate(NAME, KeyType.EC_P256)
    another = Pkcs11KeyManager(token.rules, "owner")
    another.delete(NAME)
    another.close()
    assert why(signing(key), b"x") == "key_gone"
    with pytest.raises(KeyManagerError, match="holds no such key"):
        keys.get(NAME)


def test_a_wrong_pin_is_tried_once(token: Token, keys: Pkcs11KeyManager, monkeypatch: pytest.MonkeyPatch) -> None:
    file = token.rules.pin_file
    file.write_text("wrong\n")
    tries = _logins(monkeypatch)
    assert [why(keys.get, NAME) for _ in range(5)] == ["wrong_pin"] * 5
    assert [why(keys.connect) for _ in range(5)] == ["wrong_pin"] * 5
    assert len(tries) == 1
    keys.forgive()
    assert why(keys.connect) == "wrong_pin"
    assert len(tries) == 2
    file.write_text(f"{PIN}\n")
    keys.connect()
    assert len(tries) == 3
    keys.generate(NAME, KeyType.EC_P256)


def _logins(patch: pytest.MonkeyPatch) -> list[object]:
    """Return what grows with each PIN that is read to be tried."""
    seen: list[object] = []

    def counted(path: Path) -> str:
        seen.append(path)
        return read_pin(path)

    patch.setattr("firedoor.broker.keys.pkcs11.read_pin", counted)
    return seen


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        ("", 0o600, "does not hold one PIN"),
        ("1\n2\n", 0o600, "does not hold one PIN"),
        ("9" * 300, 0o600, "does not hold one PIN"),
        (PIN, 0o644, "open to others"),
        (None, 0, "cannot be read"),
    ],
    ids=["empty", "two lines", "too long", "open to others", "absent"],
)
def test_a_pin_file_that_is_none(
    token: Token, keys: Pkcs11KeyManager, content: str | None, mode: int, said: str
) -> None:
    file = token.rules.pin_file
    file.unlink()
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    with pytest.raises(KeyManagerAway, match=said) as caught:
        keys.connect()
    assert caught.value.code == "no_pin"
    with pytest.raises(ConfigError, match=said):
        token.rules.check()


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (TokenFlag.USER_PIN_LOCKED, "pin_locked"),
        (TokenFlag.USER_PIN_FINAL_TRY | TokenFlag.USER_PIN_COUNT_LOW, "last_try"),
    ],
    ids=["locked", "last try"],
)
def test_a_pin_that_is_nearly_locked_is_not_tried(flags: TokenFlag, code: str) -> None:
    assert why(check_flags, flags) == code


def test_a_few_wrong_pins_do_not_keep_the_right_one_out() -> None:
    check_flags(TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.LOGIN_REQUIRED)


def test_no_token_of_that_label(token: Token) -> None:
    keys = Pkcs11KeyManager(replace(token.rules, token="nobody"), "owner")
    assert why(keys.connect) == "no_token"
    keys.close()


def test_no_module(token: Token, tmp_path: Path) -> None:
    for path in (tmp_path / "absent.so", token.rules.pin_file):
        rules = replace(token.rules, module=path)
        keys = Pkcs11KeyManager(rules, "owner")
        assert why(keys.connect) == "no_module"
        keys.close()
    with pytest.raises(ConfigError, match="cannot be read"):
        replace(token.rules, module=tmp_path / "absent.so").check()


def test_two_tokens_of_one_label_are_not_guessed_between(token: Token) -> None:
    tool = shutil.which("softhsm2-util")
    assert tool is not None
    words = [tool, "--init-token", "--free", "--label", LABEL, "--so-pin", "12345678", "--pin", PIN]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    keys = Pkcs11KeyManager(token.rules, "owner")
    assert why(keys.connect) == "no_token"
    keys.close()


def test_a_forked_process_uses_no_key(keys: Pkcs11KeyManager) -> None:
    key = keys.generate(NAME, KeyType.EC_P256)
    child = os.fork()
    if child == 0:
        try:
            signing(key)(b"x")
        except KeyManagerAway as error:
            os._exit(0 if error.code == "forked" else 1)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert signing(key)(b"x")


def test_a_module_ends_with_its_last_user(token: Token) -> None:
    one, other = Pkcs11KeyManager(token.rules, "one"), Pkcs11KeyManager(token.rules, "other")
    module = one._module
    assert module is other._module
    one.connect()
    one.close()
    one.close()
    assert module.users == 1
    other.connect()
    other.close()
    assert str(token.rules.module) not in Module._known


@dead
def test_a_login_survives_many_sessions_lost(keys: Pkcs11KeyManager) -> None:
    key = keys.generate(NAME, KeyType.EC_P256)
    for _ in range(5):
        login = keys._login
        assert login is not None
        login.session.close()
        assert signing(key)(b"x")
