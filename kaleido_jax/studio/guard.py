"""What stands before every request: who may ask, how much, and what a browser may do with the answer."""

import urllib.parse
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECTIONS = 128  # requests that are answered at the same time; event streams stay open
HEADERS = {
    # Nothing from elsewhere, nothing inline; previews are data: URLs.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: only this machine, only the page itself, no more at once than CONNECTIONS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._open = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a foreign request by itself, and passes the others on."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = refuse(Headers(scope=scope), scope["path"])
        if refusal is None and not scope["query_string"].isascii():
            refusal = 400, "a query of other characters than ASCII; expected them as %XX; use the studio's own page"
        if refusal is None and self._open >= CONNECTIONS:
            refusal = 503, "busy: too many requests at once; try again in a moment"
        if refusal is not None:
            status, message = refusal
            return await JSONResponse({"message": message}, status)(scope, receive, with_headers)
        self._open += 1
        try:
            return await self._app(scope, receive, with_headers)
        finally:
            self._open -= 1


def refuse(headers: Mapping[str, str], path: str) -> tuple[int, str] | None:
    """Why a request is not answered, by its headers; None if it is.

    A name of another host that resolves to this machine (DNS rebinding) has that name in Host; a page of another site
    has that site in Origin, and the browser tells so in Sec-Fetch-Site. Another port of this machine is allowed in
    Host, for ports that are forwarded.
    """
    host = headers.get("host", "")
    if _hostname(f"http://{host}") not in LOOPBACK:
        return 403, f"Host {host[:60]!r}; expected 127.0.0.1 or localhost; open the address that the terminal shows"
    origin = headers.get("origin")
    if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
        return 403, f"Origin {origin[:60]!r}; expected http://{host}; use the studio's own page"
    if path.startswith("/api/") and headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return 403, "a request from another site; expected the studio's own page"
    return None


def _hostname(url: str) -> str | None:
    try:
        return urllib.parse.urlsplit(url).hostname
    except ValueError:
        return None
