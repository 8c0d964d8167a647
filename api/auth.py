"""Who may call: a key of the right scope once there are keys, and always beyond loopback."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Coroutine
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers

from api.codes import AccessError, ForbiddenError
from api.keys import KeyFile, KeyScope
from api.settings import Settings
from indexer.errors import ArgumentError

_BEARER = HTTPBearer(auto_error=False, description='a key from "clinrag keys add"')


class Gate:
    """Decides on a request. Beyond loopback a key is always needed; on loopback, from the first key on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = KeyFile(settings.home)

    def check_start(self) -> None:
        """Refuse to serve beyond loopback without a working key.

        Raises:
            ArgumentError: there is none.
        """
        if not self._settings.loopback and self._settings.api_key is None and not self._keys.working():
            raise ArgumentError(
                "host",
                "is reachable from other machines, and there is no key yet; make one with "
                '"clinrag keys add NAME --scope read", or serve on 127.0.0.1',
            )

    def admit(self, secret: str | None, scopes: tuple[KeyScope, ...]) -> str | None:
        """Return the id of the key that lets a request in, or ``None`` where none is needed.

        Raises:
            AccessError: there is no key, or it does not work.
            ForbiddenError: the key has none of the scopes.
        """
        own = self._settings.api_key
        if self._settings.loopback and own is None and not self._keys.exists():
            return None
        if secret is None:
            raise AccessError("send a key: Authorization: Bearer KEY")
        if own is not None and hmac.compare_digest(own.encode(), secret.encode()):
            return "environment"
        key = self._keys.find(secret)
        if key is None:
            raise AccessError('the key is unknown or revoked; "clinrag keys add NAME --scope read" makes one')
        if not set(scopes) & set(key.scopes):
            raise ForbiddenError(f"the key's scope is {', '.join(key.scopes)}; this needs {' or '.join(scopes)}")
        return key.key_id


def bearer(headers: Headers) -> str | None:
    """Return the key of a request's ``Authorization: Bearer`` header, or ``None``."""
    kind, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() or None if kind.lower() == "bearer" else None


def _needs(*scopes: KeyScope) -> Callable[..., Coroutine[None, None, None]]:
    # `_BEARER` is there for the OpenAPI page; the header is read the same way as at the edge.
    # It waits for nothing but a look at a file: in the loop, it needs no thread, of which floods leave none.
    async def check(request: Request, _shown: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        gate: Gate = request.app.state.clinrag.gate
        key_id = gate.admit(bearer(request.headers), scopes)
        if key_id is not None:
            request.scope["clinrag.key_id"] = key_id

    return check


def may_read(request: Request) -> bool:
    """Return whether whoever calls may see what is stored."""
    gate: Gate = request.app.state.clinrag.gate
    try:
        gate.admit(bearer(request.headers), (KeyScope.READ,))
    except AccessError:
        return False
    return True


READ = Depends(_needs(KeyScope.READ))
WRITE = Depends(_needs(KeyScope.WRITE))
ANY = Depends(_needs(KeyScope.READ, KeyScope.WRITE))
