"""The layer that asks for keys: who calls, and whether that is enough for what it calls."""

import base64
import binascii

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.api.exchange import exchange_of
from serve_app.api.parsing.body import close_unread
from serve_app.api.principal import NOBODY, Principal
from serve_app.api.problems import Problem
from serve_app.api.scopes import need_of
from serve_app.gateway.api_keys import Key, Keyring

_REALM = 'Bearer realm="darkroom"'


class Authentication:
    """Sets the exchange's principal before anything of the body is read.

    Answers 401 to callers without a good key, 403 to those whose key is not for this.
    """

    def __init__(self, app: ASGIApp, *, keys: Keyring) -> None:
        self.app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            exchange_of(scope).principal = self._authenticate(scope)
        except Problem as problem:
            problem.headers |= close_unread(Headers(scope=scope))
            await problem.response(exchange_of(scope).request_id)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _authenticate(self, scope: Scope) -> Principal:
        need = need_of(scope)
        if need == "nothing":
            return NOBODY
        key = self._key(Headers(scope=scope))
        if need != "key" and need not in key.scopes:
            headers = {"WWW-Authenticate": f'{_REALM}, error="insufficient_scope", scope="{need}"'}
            raise Problem(403, "insufficient_scope", f"this needs a key with the scope `{need}`", headers=headers)
        return Principal(key.tenant, key.scopes, key.priority, key.id, key.limits, key.training)

    def _key(self, headers: Headers) -> Key:
        given = given_keys(headers)
        if not given:
            message = "this needs a key, as `Authorization: Bearer <key>`, `X-API-Key: <key>` or HTTP Basic's password"
            raise Problem(401, "missing_api_key", message, headers={"WWW-Authenticate": _REALM})
        # Two different ones are a mistake, or somebody's try to have two servers see two callers.
        key = self._keys.find(given.pop()) if len(given) == 1 else None
        if key is None:
            headers_of_it = {"WWW-Authenticate": f'{_REALM}, error="invalid_token"'}
            raise Problem(401, "invalid_api_key", "this key is not known here", headers=headers_of_it)
        return key


def given_keys(headers: Headers) -> set[str]:
    """The keys that a request brings. HTTP Basic's password is one where there is no other: it may be a proxy's own."""
    given = set(headers.getlist("x-api-key"))
    passwords = set()
    for line in headers.getlist("authorization"):
        scheme, _, rest = line.strip().partition(" ")
        if scheme.lower() == "bearer":
            given.add(rest)
        elif scheme.lower() == "basic":
            passwords.add(_password_of(rest))
    return {key.strip() for key in given or passwords - {""}}


def _password_of(credentials: str) -> str:
    """Returns the password of HTTP Basic's credentials (RFC 7617); "" where there is none."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""
