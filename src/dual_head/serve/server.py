"""`dual-head serve` without its command line: a model behind OpenAI's routes, until a signal ends it."""

import errno
import gc
import json
import math
import shlex
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerBase

from dual_head.console.terminal import note, printable
from dual_head.errors import DualHeadError, require
from dual_head.model.aligned import AlignedModel
from dual_head.serve.settings import EngineSettings, ServerSettings, is_loopback

if TYPE_CHECKING:
    import uvicorn

    from dual_head.serve.host import RunningEngine
    from dual_head.serve.openai.app import Api

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "llguidance")
WAITING = 2048  # connections that the system keeps until they are taken


def require_server() -> None:
    """Refuse to go on without what the `serve` extra brings."""
    for package in PACKAGES:
        require(package, "serve")


def listen(settings: ServerSettings) -> socket.socket:
    """A socket at the address of the settings. Errors: a port that is in use, an address that is not this machine's."""
    place = f"{settings.host}:{settings.port}"
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family, backlog=WAITING)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DualHeadError(f"{place} is in use. Choose another --port, or stop what listens there.") from error
        raise DualHeadError(f"Cannot listen at {place}: {error.strerror}. Choose another --host or --port.") from error


def serve(
    model: AlignedModel,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    settings: ServerSettings,
    sizes: EngineSettings,
    listener: socket.socket,
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> None:
    """Answer requests at a socket until a signal comes; what runs then has `settings.drain` seconds to end.

    name: of the model in requests; sizes: of the engine; say: how the lines of the start are shown. Errors: a model
    that cannot be served or cannot generate at its own strengths, presets that cannot be.
    """
    from dual_head.serve.engine import Engine

    api = open_api(model, lambda model: Engine(model, tokenizer, sizes), tokenizer, name, settings)
    if not is_loopback(settings.host) and not settings.api_key:
        note("whoever reaches this address may use the server; with --api_key, only who has the key may")
    gc.freeze()  # what was loaded stays: a search for garbage among it would hold up every request
    try:
        web_server(api, lambda: _announce(api, listener, say)).run(sockets=[listener])
    finally:
        if api.host.engine.alive:  # the server ended before it began
            api.host.engine.stop(0.0)
    if api.host.refusal is not None:
        raise api.host.refusal


def open_api(
    model: AlignedModel,
    build: Callable[[AlignedModel], "RunningEngine"],
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    settings: ServerSettings,
) -> "Api":
    """What the routes need, with an engine that `build` makes and that has started. Errors: see `serve`."""
    from dual_head.serve.host import EngineHost
    from dual_head.serve.openai.app import Api

    host = EngineHost(model, build, max_queue=settings.max_queue, patience=settings.request_timeout)
    try:
        return Api(host, tokenizer, name, settings)
    except Exception:
        host.engine.stop(0.0)
        raise


def web_server(api: "Api", ready: Callable[[], None] = lambda: None) -> "uvicorn.Server":
    """The HTTP server around the routes, which ends by itself where the model cannot generate.

    ready: called when the engine has generated its first tokens.
    """
    import uvicorn

    from dual_head.serve.openai.app import build_app

    class Server(uvicorn.Server):
        async def on_tick(self, counter: int) -> bool:
            return await super().on_tick(counter) or api.host.refusal is not None

    config = uvicorn.Config(
        build_app(api, ready),
        log_config=None,
        log_level="warning",
        access_log=False,  # ours says more
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(api.settings.drain),
        backlog=WAITING,
    )
    return Server(config)


def _announce(api: "Api", listener: socket.socket, say: Callable[[str], None]) -> None:
    """Say where the server is, what it serves and how to ask it."""
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    alpha = api.host.model.config.alpha or {}
    body: dict = {"messages": [{"role": "user", "content": "how do i bake bread ?"}], "max_tokens": 64}
    if alpha:
        body["alpha"] = alpha if any(alpha.values()) else {next(iter(alpha)): 1.0}
    key = ' -H "Authorization: Bearer $DUAL_HEAD_API_KEY"' if api.settings.api_key else ""
    curl = f"curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d {shlex.quote(json.dumps(body))}"
    guides = ", ".join(f"{name} (alpha {value:g})" for name, value in alpha.items()) or "none: the plain model"
    lines = [f"ready    {url}/", f"models   {', '.join(api.models())}", f"guides   {guides}", f"try      {curl}"]
    with suppress(OSError):  # nobody reads, or a full disk
        say(printable("\n".join(lines)))
