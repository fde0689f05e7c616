"""The routes: OpenAI's, Prometheus' and health, what sets guides, and the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from transformers import PreTrainedTokenizerBase

from dual_head import __version__
from dual_head.errors import DualHeadError
from dual_head.model.guide_set import require_guide_name
from dual_head.serve.host import EngineHost
from dual_head.serve.openai import protocol
from dual_head.serve.openai.alpha import Strength, alpha_json
from dual_head.serve.openai.bodies import ChatBody, CompletionBody, GuideBody, ScoreBody, TokenizeBody
from dual_head.serve.openai.errors import Refused, json_response, refuse
from dual_head.serve.openai.metrics import Metrics
from dual_head.serve.openai.middleware import Keys, LocalNames, WholeBody
from dual_head.serve.openai.models import BASE, model_card, read_presets, require_names, served_models
from dual_head.serve.openai.protocol import Limits
from dual_head.serve.openai.records import CLIENT_LEFT, RequestLog, RequestRecord, RequestRecords
from dual_head.serve.openai.replies import ChatForm, CompletionForm, Form, TokenTexts, ToolParser, usage
from dual_head.serve.openai.scores import Scorer, score_entries, score_rows_of, score_usage
from dual_head.serve.openai.streams import ClientLeft, EventStream, Heading, events, pieces, unless_left, whole_choices
from dual_head.serve.playground import add_page
from dual_head.serve.settings import ServerSettings, is_loopback

T = TypeVar("T")


class Api:
    """What every route needs: the engine's host, the tokenizer, the names of the model, the limits."""

    def __init__(self, host: EngineHost, tokenizer: PreTrainedTokenizerBase, name: str, settings: ServerSettings):
        self.host, self.tokenizer, self.name, self.settings = host, tokenizer, name, settings
        require_names(host.model.config)
        self.created = int(time.time())
        self.presets = read_presets(settings.presets, host.model.config) if settings.presets else {}
        self.texts = TokenTexts(tokenizer)
        self.metrics = Metrics(host)
        self.log = RequestLog(self.metrics.log_lines_unwritten)
        # Tokenizers keep settings while they work: one thread for all prompts, and the loop goes on meanwhile.
        self._writer = ThreadPoolExecutor(1, "prompts")
        self._scorer = Scorer(host, tokenizer, settings.request_timeout)

    @property
    def limits(self) -> Limits:
        """Limits of a request."""
        vocabulary = self.host.model.backbone.shape.vocab_size
        return Limits(self.host.engine.context_length, vocabulary, self.host.max_queue)

    def models(self) -> dict[str, dict[str, Strength]]:
        """Every name of the model with its strengths, by the guides that are attached now."""
        return served_models(self.name, self.host.model.config, self.presets)

    def cards(self) -> list[dict[str, Any]]:
        """The entries of /v1/models."""
        rest = (self.name, self.host.model.config, self.limits.context, self.created)
        return [model_card(model, alpha, *rest) for model, alpha in self.models().items()]

    async def prompts(self, body: ChatBody | CompletionBody | TokenizeBody) -> list[list[int]]:
        """Token ids of the prompts of a body. Errors: see `protocol.encode_prompts_of`."""
        return await self._written(protocol.encode_prompts_of, body, self.tokenizer)

    async def _written(self, encode: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, encode, *arguments)

    # ---- generation ------------------------------------------------------------------------------------

    async def answer(self, body: ChatBody | CompletionBody | ScoreBody, request: Request) -> Response:
        """A whole reply, a stream of it, or scores; nothing for a client that has left."""
        record: RequestRecord = request.scope["state"]["record"]
        async with AsyncExitStack() as stack:
            try:
                if isinstance(body, ScoreBody):
                    return await self._scores(body, request, record, stack)
                return await self._reply(body, request, record, stack)
            except ClientLeft:
                return PlainTextResponse("", CLIENT_LEFT)

    async def _scores(
        self, body: ScoreBody, request: Request, record: RequestRecord, stack: AsyncExitStack
    ) -> Response:
        protocol.require_model(body.model, self.models())
        protocol.require_rows(len(body.replies), "replies", "replies", self.limits)
        stack.enter_context(self.host.reserve_rows(len(body.replies)))
        work = self._written(score_rows_of, body, self.tokenizer, self.limits)
        rows = await unless_left(request.receive, work)
        await unless_left(request.receive, stack.enter_async_context(self.host.hold_engine()))
        model, alpha = protocol.request_alpha(body, self.models(), self.host.model.config)
        record.admitted(model, alpha, [[*prompt, *reply] for prompt, reply in rows])
        scores = await self._scorer(rows, alpha, record, request.receive)
        record.finish_reasons += ["scored"] * len(scores)
        entries = score_entries(scores, self.texts, tokens=bool(body.tokens))
        head = {"id": f"score-{record.id}", "object": "list", "created": int(time.time()), "model": model}
        return json_response({**head, "data": entries, "usage": score_usage(rows), "alpha": alpha_json(alpha)})

    async def _reply(
        self, body: ChatBody | CompletionBody, request: Request, record: RequestRecord, stack: AsyncExitStack
    ) -> Response:
        protocol.require_model(body.model, self.models())
        count = len(body.prompt) if isinstance(body, CompletionBody) and _several(body.prompt) else 1
        rows = protocol.require_choices(body, count, self.limits)
        stack.enter_context(self.host.reserve_rows(rows))
        prompts = await unless_left(request.receive, self.prompts(body))
        protocol.require_tokens(prompts, self.limits)
        engine = await unless_left(request.receive, stack.enter_async_context(self.host.hold_engine()))
        model, alpha = protocol.request_alpha(body, self.models(), self.host.model.config)
        requests = protocol.generation_requests(body, prompts, alpha, self.limits)
        record.admitted(model, alpha, prompts)
        form = self._form(body, prompts)
        run = pieces(engine, requests, record, self.settings.request_timeout)
        stack.push_async_callback(run.aclose)
        head = {"id": f"{form.prefix}-{record.id}", "created": int(time.time()), "model": model}
        echo = {"alpha": alpha_json(alpha)}
        prompt_tokens = record.prompt_tokens
        if body.stream:
            # The first piece before the status: what the engine refuses is refused with a status of its own.
            first = await unless_left(request.receive, anext(run))  # type: ignore[arg-type]
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            heading = Heading({**head, "object": form.part}, echo, prompt_tokens, include_usage)
            chunks = events(_from(first, run), rows, form, heading)
            return EventStream(chunks, stack.pop_all(), self.settings.request_timeout)
        replies = await unless_left(request.receive, whole_choices(run, rows))
        choices = [form.choice(i, piece) for i, piece in enumerate(replies)]
        counts = usage(prompt_tokens, sum(len(piece.tokens) for piece in replies))
        return json_response({**head, "object": form.whole, "choices": choices, "usage": counts, **echo})

    def _form(self, body: ChatBody | CompletionBody, prompts: Sequence[Sequence[int]]) -> Form:
        if isinstance(body, CompletionBody):
            return CompletionForm(self.texts, body.logprobs is not None or bool(body.trace))
        calls = body.tools and body.tool_choice != "none" and getattr(self.tokenizer, "response_template", None)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or ()]
        parser = ToolParser(self.tokenizer, prompts[0], tools) if calls else None
        return ChatForm(self.texts, bool(body.logprobs or body.trace), parser)


def _several(prompt: Any) -> bool:
    return isinstance(prompt, list) and not isinstance(prompt[0], int)


async def _from(first: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for item in rest:
        yield item


# ---- routes ----------------------------------------------------------------------------------------------


def build_app(api: Api, ready: Callable[[], None] = lambda: None) -> FastAPI:
    """The application of a server; ready: called when the engine has generated its first tokens."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        del app
        api.log.start()
        api.host.start(ready)
        yield
        await api.host.stop()
        api.log.stop()

    errors: Mapping[Any, Any] = {"4XX": {"description": "Refused."}, "5XX": {"description": "The server cannot."}}
    app = FastAPI(
        title="dual-head",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # a page that loads its parts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # to wherever the Host header says
        responses=dict(errors),
        exception_handlers=dict.fromkeys((Refused, RequestValidationError, HTTPException, Exception), refuse),
    )
    _add_generation(app, api)
    _add_models(app, api)
    _add_operations(app, api)
    add_page(app)
    app.add_middleware(WholeBody, most=api.settings.max_body_bytes)
    app.add_middleware(Keys, api_key=api.settings.api_key, admin_key=api.settings.admin_key)
    if is_loopback(api.settings.host) and not api.settings.api_key:
        app.add_middleware(LocalNames)
    app.add_middleware(RequestRecords, metrics=api.metrics, log=api.log)
    if api.settings.allow_origin:
        headers = ["Authorization", "Content-Type"]
        app.add_middleware(
            CORSMiddleware, allow_origins=api.settings.allow_origin, allow_methods=["*"], allow_headers=headers
        )
    return app


STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}  # beside JSON


def _add_generation(app: FastAPI, api: Api) -> None:
    @app.post("/v1/chat/completions", responses=STREAMED)
    async def chat_completions(body: ChatBody, request: Request) -> Response:
        return await api.answer(body, request)

    @app.post("/v1/completions", responses=STREAMED)
    async def completions(body: CompletionBody, request: Request) -> Response:
        return await api.answer(body, request)

    @app.post("/v1/score")
    async def score(body: ScoreBody, request: Request) -> Response:
        return await api.answer(body, request)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        protocol.require_model(body.model, api.models())
        if (body.prompt is None) == (body.messages is None):
            raise Refused("Give either a prompt or messages.", "prompt")
        (tokens,) = await api.prompts(body)
        return json_response({"tokens": tokens, "count": len(tokens), "max_model_len": api.limits.context})


def _add_models(app: FastAPI, api: Api) -> None:
    @app.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": api.cards()})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        name = protocol.require_model(model, api.models())
        return json_response(next(card for card in api.cards() if card["id"] == name))

    @app.post("/v1/guides")
    async def attach(body: GuideBody) -> Response:
        if body.name in (BASE, *api.presets):
            raise Refused(f"'{body.name}' is the name of a model. Choose another name.", "name")
        try:
            require_guide_name(body.name)
        except DualHeadError as error:
            raise Refused(str(error), "name") from error
        try:
            await api.host.attach(body.name, body.source, body.source_name, body.alpha)
        except DualHeadError as error:
            raise Refused(str(error), "source") from error
        return json_response({"object": "list", "data": api.cards()})

    @app.delete("/v1/guides/{name}")
    async def detach(name: str) -> Response:
        await api.host.detach(name)
        return json_response({"object": "list", "data": api.cards()})


def _add_operations(app: FastAPI, api: Api) -> None:
    @app.get("/health")
    async def health() -> Response:
        state = api.host.state
        return json_response({"status": state}, 200 if state == "ready" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(api.metrics.text(), media_type="text/plain; version=0.0.4")
