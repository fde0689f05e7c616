"""What stands before every route: the name that is asked for, the key, and the size of the body.

Plain ASGI: behind a middleware that wraps requests and responses, a route never learns that its client has left.
"""

import asyncio
import hmac
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dual_head.serve.openai.errors import Refused
from dual_head.serve.settings import is_loopback

OPEN = ("/", "/health")  # and what the page at / consists of
ADMIN = "/v1/guides"
BODY_SECONDS, LINGER_SECONDS = 60.0, 5.0


class LocalNames:
    """Answers only as this machine: a page of elsewhere can point a name of its own at 127.0.0.1 (DNS rebinding)."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 403."""
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1") if scope["type"] == "http" else ""
        if host and not is_loopback(_name(host)):
            words = f"Without --api_key, this server answers only as localhost, not as '{host}'. Start it with a key."
            return await Refused(words, status=403).response()(scope, receive, send)
        return await self.app(scope, receive, send)


def _name(host: str) -> str:
    """A Host header without its port; "" for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


class Keys:
    """Lets in who has the key: that of administrators for changes of guides, the other one for the rest."""

    def __init__(self, app: ASGIApp, api_key: str | None, admin_key: str | None):
        self.app, self.api_key, self.admin_key = app, api_key, admin_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 401."""
        try:
            if scope["type"] == "http":
                self._require(scope["path"], dict(scope["headers"]))
        except Refused as error:
            return await error.response()(scope, receive, send)
        return await self.app(scope, receive, send)

    def _require(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        if path in OPEN or path.startswith("/playground/"):
            return
        key, admin = self.api_key, path == ADMIN or path.startswith(f"{ADMIN}/")
        if admin:
            key = self.admin_key
            if key is None:
                raise Refused("Guides cannot be changed: the server was started without --admin_key.", status=403)
        bearer = headers.get(b"authorization", b"")
        # Whatever is sent, the comparison takes as long.
        if key is not None and not hmac.compare_digest(bearer, f"Bearer {key}".encode()):
            words = "the key of --admin_key" if admin else "the server's key"
            message = f"The API key is missing or wrong. Send {words} as a bearer token."
            raise Refused(message, status=401, code="invalid_api_key")


class WholeBody:
    """Reads a body before the route runs, of at most so many bytes and for at most a minute."""

    def __init__(self, app: ASGIApp, most: int):
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with 413 or 408; a client that leaves first gets nothing."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await self._read(scope, receive)
        except Refused as error:
            return await self._close(error, scope, receive, send)
        except TimeoutError:
            late = Refused(f"The body had not come after {BODY_SECONDS:g} s.", status=408)
            return await self._close(late, scope, receive, send)
        if body is None:
            return None
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        return await self.app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.most:
            raise self._large()
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > self.most:
                raise self._large()
        return b"".join(parts)

    def _large(self) -> Refused:
        return Refused(f"The body is larger than {self.most} bytes. Send less, or raise --max_body_bytes.", status=413)

    async def _close(self, error: Refused, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, read on for a while, and end the connection: who is cut off while sending never sees the answer."""
        answer = error.response()
        answer.headers["Connection"] = "close"

        async def linger(message: Message) -> None:
            ends = message["type"] == "http.response.body"
            await send({**message, "more_body": True} if ends else message)
            if not ends:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while (await receive()).get("more_body"):
                        pass
            await send({"type": "http.response.body"})

        await answer(scope, receive, linger)
