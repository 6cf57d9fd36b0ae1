"""The HTTP application: routes, and what every one of them shares.

Invariants: whatever is answered that is not a success is JSON in the shape of
the API that was asked; what a route does before the engine runs is done off
the event loop. Left out: pages of documentation (they would load scripts from
elsewhere); /openapi.json describes the routes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from openk2.chat.codec import Codec
from openk2.serve import anthropic_answers as anthropic
from openk2.serve import openai_answers as openai
from openk2.serve.anthropic_requests import CountRequest, MessagesRequest
from openk2.serve.errors import ApiError, validation_error
from openk2.serve.guard import Counted, Guard
from openk2.serve.openai_requests import ChatRequest, CompletionRequest, TokenizeRequest, WeightsRequest
from openk2.serve.page import FILES, Page
from openk2.serve.service import Service
from openk2.serve.settings import ServeSettings
from openk2.serve.tools import CallRequest, Toolbox
from openk2.serve.wire import EventStream, JsonResponse
from openk2.serve.worker import StepEngine
from openk2.version import __version__

_ERROR = {
    "type": "object",
    "properties": {"error": {"type": "object", "properties": {"message": {"type": "string"}}}},
    "required": ["error"],
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "What was wrong with the request.", "content": {"application/json": {"schema": _ERROR}}}
}


def create_app(
    engine: StepEngine,
    codec: Codec,
    settings: ServeSettings,
    *,
    api_key: str = "",
    say: Callable[[str], None] = print,
) -> FastAPI:
    """The application; its `state.service` is what it serves. The engine's thread runs while the application does."""
    service = Service(engine, codec, settings, say)
    toolbox = Toolbox(settings.tools, timeout=settings.tool_timeout)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start(asyncio.get_running_loop())
        yield
        await run_in_threadpool(service.worker.stop)
        await run_in_threadpool(toolbox.close)

    app = FastAPI(
        title="openk2", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=_RESPONSES
    )
    app.state.service = service
    _add_openai(app, service)
    _add_anthropic(app, service)
    _add_tools(app, toolbox)
    _add_state(app, service)
    _add_errors(app)
    # The last one added is the first to see a request.
    app.add_middleware(Guard, settings=settings, key=api_key)
    if settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Page)
    app.add_middleware(Counted, metrics=service.metrics, files=FILES)
    return app


def _add_openai(app: FastAPI, service: Service) -> None:
    model, tokenizer = service.settings.model_name, service.codec.tokenizer

    async def answered(
        body: Any, request: Request, what: str, jobs_of: Callable[[Any], Any], chunks_of: Any, whole: Any
    ) -> Response:
        exchange, _ = await service.open(jobs_of, body, request.receive, what)
        chunks = chunks_of(exchange, body, model, tokenizer)
        if body.stream:
            return _stream(service, exchange.close, openai.events(chunks, body), openai.KEEP_ALIVE)
        with closing(exchange):
            return JsonResponse(await whole(chunks))

    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An assistant's turn."""
        of = (service.turn_jobs, openai.chat_chunks, openai.whole_chat)
        return await answered(body, request, "a chat completion", *of)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Text that goes on from a prompt."""
        of = (service.text_jobs, openai.text_chunks, openai.whole_text)
        return await answered(body, request, "a completion", *of)

    _add_models(app, service)


def _add_models(app: FastAPI, service: Service) -> None:
    created = int(time.time())
    described = {
        "id": service.settings.model_name,
        "object": "model",
        "created": created,
        "owned_by": "openk2",
        "max_model_len": service.context,
    }

    @app.get("/v1/models")
    async def models() -> Response:
        """What is served: one model."""
        return JsonResponse({"object": "list", "data": [described]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        """The model, by its name."""
        service.check_model(name)
        return JsonResponse(described)

    @app.post("/v1/weights")
    async def weights(body: WeightsRequest) -> Response:
        """Have the model take over new weights; off unless the server was started with a folder for them."""
        return JsonResponse({"sha256": await service.load_weights(body)})

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a dialogue's prompt."""
        ids = await run_in_threadpool(service.tokenize, body)
        return JsonResponse({"ids": ids, "count": len(ids)})


def _add_anthropic(app: FastAPI, service: Service) -> None:
    @app.post("/v1/messages")
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """An assistant's turn, as Anthropic's clients ask for it."""
        exchange, jobs = await service.open(service.turn_jobs, body, request.receive, "a message")
        found = anthropic.message_events(exchange, service.settings.model_name, len(jobs[0].prompt))
        if body.stream:
            return _stream(service, exchange.close, anthropic.stream_events(found), anthropic.KEEP_ALIVE)
        with closing(exchange):
            return JsonResponse(await anthropic.whole_message(found))

    @app.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> Response:
        """How many tokens a dialogue's prompt has."""
        ids = await run_in_threadpool(service.turn_ids, body)
        return JsonResponse({"input_tokens": len(ids)})


def _add_tools(app: FastAPI, toolbox: Toolbox) -> None:
    @app.get("/v1/tools")
    async def tools() -> Response:
        """Declarations of the tools that this server runs, each with its origin."""
        return JsonResponse({"object": "list", "data": toolbox.listed()})

    @app.post("/v1/tools/call")
    async def call_tool(body: CallRequest) -> Response:
        """A tool's result; what the tool refuses is an error of the code `tool_refused`, for the model to read."""
        return JsonResponse({"content": await toolbox.call(body)})


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """200 while requests are taken, else 503."""
        if not service.ready:
            raise ApiError(503, service.worker.failure or "the server is stopping")
        return JsonResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts, in Prometheus' text format."""
        text = service.metrics.render(service.worker.usage, service.worker.num_queued)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _stream(
    service: Service, close: Callable[[], None], events: AsyncGenerator[bytes, None], keep_alive: bytes
) -> EventStream:
    limit = service.settings.request_timeout + service.settings.receive_timeout  # the latter for slow readers
    return EventStream(events, close=close, keep_alive=keep_alive, limit=limit)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error.response(request.scope["path"])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return validation_error(error.errors(), error.body).response(request.scope["path"])

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        known = {404: "path: saw one that does not exist; see /openapi.json", 405: "method: not allowed on this path"}
        message = known.get(error.status_code, str(error.detail))
        return ApiError(error.status_code, message, headers=error.headers).response(request.scope["path"])

    @app.exception_handler(Exception)
    async def broken(request: Request, _: Exception) -> Response:
        # What is raised further ends the connection, and a client has to know.
        mistake = ApiError(500, "the server made a mistake; its log has the details", headers={"connection": "close"})
        return mistake.response(request.scope["path"])
