# SPDX-License-Identifier: Apache-2.0
"""Vault's HTTP API, as far as a CA is asked for: log in, keep the token, call.

TLS 1.3, the server's name, and the CAs that the configuration names and no others. No redirect is followed: a token
would go wherever it leads. A token is renewed when a third of its life is left; one that ends, or that Vault takes no
more, is replaced by another login.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Final

import aiohttp

from firedoor.broker.errors import AuthorityError, ConfigError
from firedoor.broker.upstream.vault_login import SECRET, ClientCertificate, Login, TokenFile
from firedoor.certs.strict_json import refuse_constant, unique_members
from firedoor.cluster.sockets import Sockets

_log = logging.getLogger("firedoor.broker.upstream")
# For all of one call.
_SECONDS: Final = 10.0
# Seven certificates in PEM, twice, are 40 KiB.
_MAX_ANSWER: Final = 256 * 1024
_MAX_SAID: Final = 200
_OK: Final = 200
# Who is to blame is the client, says HTTP.
_REFUSALS: Final = range(400, 500)
_FORBIDDEN: Final = 403
# While the token cannot be renewed it is tried as often.
_RETRY_SECONDS: Final = 30.0
_HEADERS: Final = {"Accept-Encoding": "identity", "User-Agent": "firedoor", "X-Vault-Request": "true"}


class Refused(AuthorityError):
    """Vault answers that the fault is ours: with 400 to 499."""


class Forbidden(Refused):
    """Vault does not take the token, or does not allow what was asked."""


@dataclass(slots=True)
class _Token:
    """Moments are the monotonic clock's."""

    value: str
    ends: float
    renew_at: float

    @classmethod
    def of(cls, value: object, seconds: object, renewable: object) -> _Token:
        """Read what Vault says of a token. Raise ValueError."""
        if not isinstance(value, str) or not SECRET.fullmatch(value):
            raise ValueError("token")
        if type(seconds) is not int or seconds < 0:
            raise ValueError("lease")
        now = monotonic()
        # A token without a lease has no end.
        ends = now + seconds if seconds else math.inf
        return cls(value, ends, now + seconds * 2 / 3 if seconds and renewable is True else math.inf)

    def __repr__(self) -> str:
        return "_Token()"


class VaultClient:
    """Calls a Vault as whoever the login makes us. Not for two threads at once."""

    def __init__(self, address: str, ca: Path, namespace: str, login: Login) -> None:
        self._address, self._ca, self._namespace, self._login = address, ca, namespace, login
        self._held: _Token | None = None

    def write(self, path: str, body: Mapping[str, str | bool]) -> Mapping[str, Any]:
        """Write to a path and return the answer's `data`. Raise AuthorityError or ConfigError."""
        if self._held is not None and monotonic() < self._held.ends:
            try:
                return self._data(path, body, self._held.value)
            except Forbidden:
                # Revoked, or ended by a clock that is not ours. What is not allowed to the next one is not allowed.
                self._held = None
        self._held = self._logged_in()
        try:
            return self._data(path, body, self._held.value)
        except Forbidden as error:
            where = "where upstream.vault.mount and upstream.vault.namespace say"
            raise AuthorityError(f"{error}; the login's policy must allow `update` there, {where}") from None

    def keep(self) -> None:
        """Renew the token if it is time. Raise AuthorityError, and then it is tried again later."""
        token = self._held
        if token is None or monotonic() < token.renew_at:
            return
        if monotonic() >= token.ends:
            self._held = None
            return
        token.renew_at = monotonic() + _RETRY_SECONDS
        try:
            self._held = self._auth(self._call("POST", "auth/token/renew-self", {}, token.value))
        except Forbidden:
            self._held = None
            raise
        if self._held.ends <= token.ends + 1:
            # It has come near the longest life that it may have: it serves until then, and the next call logs in.
            self._held.renew_at = math.inf

    def forget(self) -> None:
        """Log in again at the next call."""
        self._held = None

    def _logged_in(self) -> _Token:
        try:
            if isinstance(self._login, TokenFile):
                return self._looked_up(self._login.token())
            asked = self._login.asked()
            return self._auth(self._call("POST", asked.path, asked.body, secrets=asked.secrets))
        except Refused as error:
            raise AuthorityError(
                f"the login upstream is refused: {error}; see {self._login.settings} (upstream.vault)"
            ) from None

    def _looked_up(self, token: str) -> _Token:
        data = self._call("GET", "auth/token/lookup-self", None, token).get("data")
        try:
            if not isinstance(data, dict):
                raise ValueError("data")
            return _Token.of(token, data.get("ttl"), data.get("renewable"))
        except ValueError:
            raise self._wrong("says nothing that can be read about the token") from None

    def _auth(self, answer: Mapping[str, Any]) -> _Token:
        auth = answer.get("auth")
        try:
            if not isinstance(auth, dict):
                raise ValueError("auth")
            return _Token.of(auth.get("client_token"), auth.get("lease_duration"), auth.get("renewable"))
        except ValueError:
            raise self._wrong("answers a login without a token") from None

    def _data(self, path: str, body: Mapping[str, str | bool], token: str) -> Mapping[str, Any]:
        data = self._call("POST", path, body, token).get("data")
        if not isinstance(data, dict):
            raise self._wrong("answers without data")
        return data

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, str | bool] | None,
        token: str = "",
        secrets: tuple[str, ...] = (),
    ) -> Mapping[str, Any]:
        try:
            status, text = asyncio.run(self._asked(method, path, body, token))
        except TimeoutError:
            raise self._wrong(f"does not answer within {_SECONDS:.0f} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._wrong(f"cannot be asked: {_unsaid(str(error), (token, *secrets))}") from None
        answer = self._read(status, text)
        if status == _OK:
            return answer
        said = _unsaid(_first_error(answer), (token, *secrets))
        kind = Forbidden if status == _FORBIDDEN else Refused if status in _REFUSALS else AuthorityError
        raise kind(f"the Vault at {self._address} answers {status} to {path}{': ' if said else ''}{said}")

    def _read(self, status: int, text: bytes) -> Mapping[str, Any]:
        try:
            answer = json.loads(text, object_pairs_hook=unique_members, parse_constant=refuse_constant)
        except (ValueError, RecursionError):
            answer = None
        if isinstance(answer, dict):
            return answer
        if status == _OK:
            raise self._wrong("answers what is no JSON object")
        return {}

    async def _asked(
        self, method: str, path: str, body: Mapping[str, str | bool] | None, token: str
    ) -> tuple[int, bytes]:
        headers = dict(_HEADERS)
        if token:
            headers["X-Vault-Token"] = token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        sockets = Sockets()
        try:
            async with (
                asyncio.timeout(_SECONDS),
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(ssl=self._context(), socket_factory=sockets),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    headers=headers,
                ) as session,
                session.request(method, f"{self._address}/v1/{path}", json=body, allow_redirects=False) as response,
            ):
                return response.status, await self._bounded(response.content)
        finally:
            await sockets.end()

    def _context(self) -> ssl.SSLContext:
        """Return what verifies the server. The files are read at each call. Raise ConfigError."""
        context = web_context(self._ca)
        if isinstance(self._login, ClientCertificate):
            self._login.show(context)
        return context

    async def _bounded(self, content: aiohttp.StreamReader) -> bytes:
        data = bytearray()
        async for chunk in content.iter_chunked(65536):
            data += chunk
            if len(data) > _MAX_ANSWER:
                raise self._wrong(f"answers more than {_MAX_ANSWER // 1024} KiB")
        return bytes(data)

    def _wrong(self, what: str) -> AuthorityError:
        return AuthorityError(f"the Vault at {self._address} {what}")


def web_context(ca: Path) -> ssl.SSLContext:
    """Return what takes servers that these CAs vouch for, and no others. Raise ConfigError."""
    try:
        context = ssl.create_default_context(cafile=str(ca))
    except (OSError, ssl.SSLError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it holds no certificate in PEM"
        raise ConfigError(f"upstream.vault.ca: {ca} cannot be read: {why}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _first_error(answer: Mapping[str, Any]) -> str:
    errors = answer.get("errors")
    return errors[0] if isinstance(errors, list) and errors and isinstance(errors[0], str) else ""


def _unsaid(text: str, secrets: tuple[str, ...]) -> str:
    """Return what a server said as one short line, without what we told it in confidence."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "...")
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())[:_MAX_SAID]
