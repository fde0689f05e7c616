"""An HTTP client for the package openai whose requests end: in time, at one address, with a reply of limited size."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any
from urllib.parse import unquote, urlsplit

from dual_head.errors import DualHeadError

LARGEST = 4 * 2**20  # bytes of a reply, unpacked: no verdict is as long
_ENCODING = ("content-encoding", "content-length", "transfer-encoding")  # headers of how a body travels


def parted(address: str, noun: str) -> tuple[str, tuple[str, str] | None]:
    """Part http://USER:PASSWORD@HOST/PATH of a judge or a system into the address and who asks. Errors: no address."""
    try:
        parts = urlsplit(address)
        _ = parts.port
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError
    except ValueError:
        raise DualHeadError(
            f"The {noun}'s address cannot be read. Write it as http://127.0.0.1:8000/v1, with the signs / @ : # ? of a "
            "password as %2F %40 %3A %23 %3F."
        ) from None
    if "@" not in parts.netloc:
        return address, None
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return plain, (unquote(user), unquote(password))


def bounded_client(openai: Any, *, seconds: float, before: Callable[[], None], **options: Any) -> Any:
    """Make the HTTP client that the package `openai` asks with; `before` is called ahead of each request.

    A request that takes longer than `seconds` in all, however it is spread, is the client's own timeout, and tried
    again. A redirection is not followed, since its target would get the key and the questions. Errors:
    `openai.OpenAIError`, whose text says what happened: a reply of more than `LARGEST` bytes, or one that cannot be
    unpacked.
    """
    http: Any = sys.modules[openai.DefaultHttpxClient.__base__.__module__.partition(".")[0]]  # httpx, or its heir

    class Client(openai.DefaultHttpxClient):
        """The client's own, with limits."""

        def send(self, request: Any, *, stream: bool = False, **more: Any) -> Any:
            """Send, and read the whole reply."""
            del stream  # the whole is needed
            before()
            end = time.monotonic() + seconds
            # A socket's timeout is of one read, and a server may send a byte now and then for ever, headers too. So one
            # thread reads and this one waits; what is read too late is thrown away.
            reply: Future[Any] = Future()
            threading.Thread(
                target=_resolve, args=(reply, lambda: self._whole(request, end, more)), daemon=True
            ).start()
            try:
                return reply.result(seconds)
            except TimeoutError:
                raise http.ReadTimeout("The reply was not whole in time.", request=request) from None

        def _whole(self, request: Any, end: float, more: dict[str, Any]) -> Any:
            response = super().send(request, stream=True, **more)
            try:
                content = _read(response, end)
            except http.DecodingError as error:
                raise openai.OpenAIError(f"the reply cannot be unpacked ({error})") from error
            finally:
                response.close()
            headers = {name: value for name, value in response.headers.items() if name not in _ENCODING}
            # JSON is UTF-8; a server may name any other encoding, and one that Python cannot read text with.
            headers["content-type"] = headers.get("content-type", "").partition(";")[0]
            return type(response)(response.status_code, headers=headers, content=content, request=response.request)

    def _read(response: Any, end: float) -> bytes:
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > LARGEST:
                raise openai.OpenAIError(f"the reply has more than {LARGEST:,} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        return bytes(content)

    return Client(timeout=seconds, follow_redirects=False, **options)


def _resolve(reply: Future[Any], send: Callable[[], Any]) -> None:
    try:
        reply.set_result(send())
    except BaseException as error:  # `send`, which waits, raises it
        reply.set_exception(error)
