"""`alpha` beside OpenAI's fields, as dual-head's own server takes it: moved to where vLLM keeps what it does not know.

    {"model": "both", "alpha": {"helpful": 0.8}}    ->    {..., "vllm_xargs": {"alpha": "helpful=0.8,harmless=0.0"}}
    {"model": "both:helpful"}                       ->    {..., "vllm_xargs": {"alpha": "helpful=1.0,harmless=0.0"}}

vLLM leaves out fields of other names without a word, so a strength would do nothing. `--middleware
dual_head_vllm.middleware.Alpha` puts this in front of its server. The reply's header `dual-head-alpha` repeats the
strengths, since vLLM's body has no room for them.
"""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from dual_head.errors import DualHeadError
from dual_head.serve.vllm import ServedGuides
from dual_head_vllm.strengths import guides_here, read_strengths

Message = MutableMapping[str, Any]
Receive, Send = Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]
BASE = "base"
HEADER = b"dual-head-alpha"
LARGEST = 2**26  # bytes of a body: it is read whole, and before vLLM has looked at the key


class Alpha:
    """ASGI, so that a client that leaves is noticed as without it. Errors: strengths that cannot be get 400."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app, self.guides = app, guides_here()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Rewrite the body of a POST to /v1; hand on anything else as it comes."""
        posts = scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/v1/")
        if self.guides is None or not posts:
            await self.app(scope, receive, send)
            return
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has left
                return
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > LARGEST:
                await _refuse(f"The body is larger than {LARGEST} bytes. Make it smaller.", send, 413, None)
                return
        body = b"".join(parts)
        try:
            changed, strengths = with_strengths(body, self.guides)
        except DualHeadError as error:
            await _refuse(str(error), send)
            return
        if changed is not body:
            headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
            scope = {**scope, "headers": [*headers, (b"content-length", str(len(changed)).encode())]}
        whole: list[Message] = [{"type": "http.request", "body": changed, "more_body": False}]

        async def received() -> Message:
            return whole.pop() if whole else await receive()

        async def sent(message: Message) -> None:
            if strengths and message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (HEADER, strengths.encode())]}
            await send(message)

        await self.app(scope, received, sent)


def with_strengths(body: bytes, guides: ServedGuides) -> tuple[bytes, str]:
    """The body with its strengths in vllm_xargs, and these; the same object and "" where it says none, or is not JSON.

    Errors: alpha in two places, see `read_strengths`.
    """
    try:
        values = json.loads(body)
    except ValueError:
        return body, ""  # vLLM says what is wrong with it
    if not isinstance(values, dict):
        return body, ""
    extra = values.get("vllm_xargs")
    inside = isinstance(extra, dict) and extra.get("alpha") is not None
    if "alpha" in values and inside:
        raise DualHeadError("alpha stands beside vllm_xargs and in it. Leave one out.")
    alpha = values.pop("alpha", None)
    if isinstance(alpha, str):
        raise DualHeadError(f"alpha is a number or a mapping of guides to numbers, not {alpha!r}.")
    if alpha is None and not inside:
        alpha = of_model(values.get("model"), guides)
    if alpha is None:
        return body, ""
    strengths = zip(guides.entries, read_strengths(alpha, guides), strict=True)
    text = ",".join(f"{name}={value!r}" for name, value in strengths)
    values["vllm_xargs"] = {**(extra if isinstance(extra, dict) else {}), "alpha": text}
    return json.dumps(values).encode(), text


def of_model(model: Any, guides: ServedGuides) -> dict[str, float] | None:
    """What a name of the model stands for: NAME:base is the backbone, NAME:GUIDE that guide alone; None for NAME."""
    name = model.rpartition(":")[2] if isinstance(model, str) and ":" in model else ""
    if name in guides.entries:
        return {name: guides.alpha[name] or 1.0}
    return dict.fromkeys(guides.entries, 0.0) if name == BASE else None


async def _refuse(message: str, send: Send, status: int = 400, param: str | None = "alpha") -> None:
    """Answer with OpenAI's error object."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
