"""The routes: HTTP in, HTTP out. All that is refused comes as one line in the shape of OpenAI's errors.

POST /v1/chat/completions   /v1/completions   /mull/trace
GET  /v1/models   /v1/models/{id}   /health   /metrics   /   (the page, page/)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from mull.inference.serve.efforts import split_name
from mull.inference.serve.fields import parsed
from mull.inference.serve.guard import Guard
from mull.inference.serve.jobs import Job
from mull.inference.serve.limits import BODY_SECONDS, MAX_BODY, SEND_SECONDS, Limits
from mull.inference.serve.metrics import Metrics
from mull.inference.serve.page import files
from mull.inference.serve.protocol import Kind, asked
from mull.inference.serve.refusals import Refused
from mull.inference.serve.replies import DONE, Reply, chunk
from mull.inference.serve.schedule import Schedule
from mull.inference.serve.served import Served
from mull.inference.serve.tracing import picture, traced

Endpoint = Callable[[Request], Awaitable[Response]]


class Service:
    """Everything that the routes need.

    Args:
        models: by name.
        limits, guard: see there.
    """

    def __init__(self, models: Mapping[str, Served], limits: Limits, guard: Guard) -> None:
        self.models, self.limits, self.guard = models, limits, guard
        self.metrics = Metrics()
        self.schedule = Schedule(limits, self.metrics)
        self.ending = False
        self.tracing = asyncio.Semaphore(1)

    def application(self) -> Starlette:
        """The ASGI application; its schedule is started by whoever runs it."""
        routes = [
            self.route("/v1/chat/completions", self.chat, "POST"),
            self.route("/v1/completions", self.complete, "POST"),
            self.route("/v1/models", self.list_models, "GET"),
            self.route("/v1/models/{name:path}", self.one_model, "GET"),
            self.route("/mull/trace", self.trace, "POST"),
            self.route("/health", self.health, "GET"),
            self.route("/metrics", self.measure, "GET"),
            self.route("/", self.page, "GET"),
            self.route("/page/{name}", self.page, "GET"),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: no_route})

    def route(self, path: str, endpoint: Endpoint, method: str) -> Route:
        """A route whose requests are checked and counted."""

        async def guarded(request: Request) -> Response:
            status = 499  # the client went away
            try:
                self.guard.check(request)
                response = await endpoint(request)
                status = response.status_code
                return response
            except Refused as refusal:
                status = refusal.status
                return refused(refusal)
            except ClientDisconnect:
                return Response(status_code=status)
            finally:
                self.metrics.requests[path, status] += 1

        return Route(path, guarded, methods=[method])

    # Writing ----------------------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        return await self.answer(request, "chat.completion")

    async def complete(self, request: Request) -> Response:
        return await self.answer(request, "text_completion")

    async def answer(self, request: Request, kind: Kind) -> Response:
        """Read a request, and answer it whole or as it comes."""
        with self.place() as place:
            job = Job(
                asked(kind, parsed(await body_of(request)), self.models, self.limits), self.schedule, self.metrics
            )
            reply = Reply(job.asked)
            if not job.asked.stream:
                return await self.whole(request, job, reply)
            keep = place.pop_all()  # until the stream has ended
            headers = {"cache-control": "no-store"}
            return Streamed(self.streamed(job, reply, keep), job, keep, headers)

    @contextlib.contextmanager
    def place(self) -> Any:
        """A place among the requests in flight."""
        if self.ending or self.schedule.ending:
            raise Refused("the server is shutting down; ask again", status=503)
        if self.metrics.in_flight >= self.limits.max_requests:
            raise Refused(
                f"{self.metrics.in_flight} requests are in flight, the limit of this server; ask again", status=429
            )
        with contextlib.ExitStack() as stack:
            self.metrics.in_flight += 1
            stack.callback(self.leave)
            yield stack

    def leave(self) -> None:
        self.metrics.in_flight -= 1

    async def whole(self, request: Request, job: Job, reply: Reply) -> Response:
        """The answer in one piece; a client that goes away frees its rows."""

        async def collect() -> dict[str, Any]:
            async for event in job.events():
                reply.take(event)  # type: ignore[arg-type]  # those that failed are raised
            return reply.whole()

        work, gone = asyncio.create_task(collect()), asyncio.create_task(disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.metrics.cancelled += 1
                raise ClientDisconnect
            return JSONResponse(work.result())
        finally:
            job.cancel()
            for task in (work, gone):
                task.cancel()

    async def streamed(self, job: Job, reply: Reply, keep: contextlib.ExitStack) -> AsyncIterator[bytes]:
        """The answer as it comes."""
        try:
            for part in reply.opening():
                yield part
            async for event in job.events():
                reply.take(event)  # type: ignore[arg-type]
                yield reply.streamed(event)  # type: ignore[arg-type]
            for part in reply.closing():
                yield part
        except Refused as refusal:
            yield chunk(refusal.body)
            yield DONE
        finally:
            job.cancel()
            keep.close()

    # The others -------------------------------------------------------------------------------------------------------

    async def list_models(self, request: Request) -> Response:
        del request
        return JSONResponse({"object": "list", "data": [described(each, self.limits) for each in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        name, _ = split_name(request.path_params["name"], self.models)
        return JSONResponse(described(self.models[name], self.limits))

    async def trace(self, request: Request) -> Response:
        with self.place():
            asked_for = traced(parsed(await body_of(request)), self.models, self.limits)
            async with self.tracing:  # one at a time, beside the thread that writes
                text = await asyncio.to_thread(picture, asked_for)
            return Response(text, media_type="application/json")

    async def health(self, request: Request) -> Response:
        del request
        over = self.ending or self.schedule.ending
        return JSONResponse({"status": "ending" if over else "ok"}, status_code=503 if over else 200)

    async def measure(self, request: Request) -> Response:
        del request
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        found = files().get(request.path_params.get("name", "index.html"))
        if found is None:
            raise Refused("there is no such page; see /", status=404)
        policy = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        headers = {"content-security-policy": policy, "x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return FileResponse(found, headers=headers)


class Streamed(StreamingResponse):
    """A stream of server-sent events, whose rows are freed when its client goes away, before its first byte too."""

    def __init__(
        self, content: AsyncIterator[bytes], job: Job, keep: contextlib.ExitStack, headers: Mapping[str, str]
    ) -> None:
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self.job, self.keep = job, keep

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async def patiently(message: Any) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        work, gone = asyncio.create_task(self.stream_response(patiently)), asyncio.create_task(watch())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.job.metrics.cancelled += 1
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):  # a TimeoutError is one
                await work
        finally:
            self.job.cancel()
            self.keep.close()
            for task in (work, gone):
                task.cancel()


async def body_of(request: Request) -> bytes:
    """The body of a request, within its limits of bytes and seconds."""
    too_long = Refused(f"the body is longer than {MAX_BODY:,} bytes, the limit; send less", status=413)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > MAX_BODY:
        raise too_long
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > MAX_BODY:
                    raise too_long
    except TimeoutError:
        raise Refused(f"the body did not come within {BODY_SECONDS:g} seconds; send it at once", status=408) from None
    return b"".join(parts)


async def disconnected(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refused(refusal: Refused) -> Response:
    """What is sent of a refusal; what may still come of the request's body is not read, so the connection ends."""
    headers = {"connection": "close"} if refusal.status in (408, 413, 415, 421) else {}
    if refusal.status in (429, 503):
        headers["retry-after"] = "1"
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(refusal.body, status_code=refusal.status, headers=headers)


async def no_route(request: Request, error: Exception) -> Response:
    """A path or a method that there is not."""
    assert isinstance(error, HTTPException)
    known = "this server has /v1/chat/completions, /v1/completions, /v1/models, /mull/trace, /health, /metrics and /"
    what = f"{request.method[:20]} {request.url.path[:80]}"
    return refused(Refused(f"there is no {what}; {known}", status=error.status_code))


def described(served: Served, limits: Limits) -> dict[str, Any]:
    """A model as /v1/models lists it."""
    config = served.model.config
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "mull",
        "mull": {
            "model_type": config.model_type,
            "parameters": config.parameters,
            "max_length": config.max_length,
            "iterations": config.default_iterations,
            "max_iterations": limits.max_iterations if served.efforts else None,
            "max_tokens": limits.max_tokens,
            "efforts": served.efforts or None,
            "capacity": config.default_capacity,
            **served.facts,
        },
    }
