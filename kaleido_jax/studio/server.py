"""The studio's server: one page, its files, and requests that become jobs.

No path comes from a request: the files are those of static/, read when the server starts, and recipes hold no paths.
"""

import json
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from kaleido_jax.errors import UserError
from kaleido_jax.sampling.recipe import load_recipe
from kaleido_jax.studio import requests
from kaleido_jax.studio.engine import Engine
from kaleido_jax.studio.guard import Guard
from kaleido_jax.studio.jobs import Busy, Job, Jobs, OtherModel

STATIC = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
WEIGHTS = "Kaleido-Weights"  # header of a POST: those of the model that the page shows
SESSION = re.compile(r"[A-Za-z0-9_-]{32}")


class TooLarge(Exception):
    """A body of more bytes than allowed."""


def create_app(engine: Engine) -> Starlette:
    """The studio as an ASGI application; its worker thread runs from now on, and `engine.load()` is its first work."""
    return Studio(engine).app


class Studio:
    """Routes, and the state behind them: the jobs of each session."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._jobs = Jobs(engine.work, prepare=engine.load)
        self._files = {path.name: path.read_bytes() for path in STATIC.iterdir() if path.suffix in TYPES}
        routes = [
            Route("/", self._page),
            Route("/static/{name}", self._file),
            Route("/api/model", self._model),
            Route("/api/recipe", self._recipe, methods=["POST"]),
            Route("/api/jobs/{job_id}", self._cancel, methods=["DELETE"]),
            Route("/api/jobs/{job_id}/events", self._events),
            *(Route(f"/api/{name}", self._add, methods=["POST"], name=name) for name in requests.PARSERS),
        ]
        handlers = {
            OtherModel: lambda _, error: _message(409, str(error)),
            UserError: lambda _, error: _message(422, str(error)),
            Busy: lambda _, error: _message(429, str(error)),
            TooLarge: lambda _, error: _message(413, str(error)),
            ClientDisconnect: lambda *_: Response(status_code=400),
            404: lambda *_: _message(404, "nothing here"),
            405: lambda *_: _message(405, "another method is expected here"),
            500: lambda *_: _message(500, "an error inside; see the terminal"),
        }
        self.app = Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Guard)])
        self._jobs.start()

    async def _page(self, request: Request) -> Response:
        return self._answer(request, Response(self._files["index.html"], media_type="text/html"))

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return _message(404, "nothing here")
        return Response(self._files[name], media_type=TYPES[Path(name).suffix])

    async def _model(self, request: Request) -> Response:
        return self._answer(request, JSONResponse(self._engine.describe()))

    async def _add(self, request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return _message(415, "a body of another type; expected application/json")
        parsed = requests.parse(name, await _body(request, requests.LIMITS["request_bytes"]))
        weights = request.headers.get(WEIGHTS, "")
        self._engine.check_weights(weights)
        session = _session(request) or secrets.token_urlsafe(24)
        job = self._jobs.add(session, parsed, weights)
        return _with_session(request, JSONResponse({"job": job.id}, 202), session)

    async def _recipe(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/octet-stream":
            return _message(415, "a body of another type; expected application/octet-stream")
        content = await _body(request, requests.LIMITS["recipe_bytes"])
        self._engine.check_weights(request.headers.get(WEIGHTS, ""))
        return JSONResponse({"recipe": load_recipe(content)})

    async def _cancel(self, request: Request) -> Response:
        job = self._job(request)
        if job is None:
            return _message(404, "no such job in this session")
        self._jobs.cancel(job)
        return JSONResponse({})

    async def _events(self, request: Request) -> Response:
        job = self._job(request)
        if job is None:
            return _message(404, "no such job in this session")
        return StreamingResponse(_stream(job), media_type="text/event-stream")

    def _job(self, request: Request) -> Job | None:
        session = _session(request)
        return session and self._jobs.get(session, request.path_params["job_id"])

    def _answer(self, request: Request, response: Response) -> Response:
        return _with_session(request, response, _session(request) or secrets.token_urlsafe(24))


async def _stream(job: Job) -> AsyncIterator[str]:
    async for kind, data in job.news():
        yield f"event: {kind}\ndata: {json.dumps(data)}\n\n"


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit.

    Raises:
      TooLarge: there is more.
    """
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > limit:
            raise TooLarge(f"a body of more than {limit:,} bytes; shorten it")
    return bytes(content)


def _session(request: Request) -> str | None:
    value = request.cookies.get(_cookie(request), "")
    return value if SESSION.fullmatch(value) else None


def _with_session(request: Request, response: Response, session: str) -> Response:
    response.set_cookie(_cookie(request), session, httponly=True, samesite="strict", path="/")
    return response


def _cookie(request: Request) -> str:
    return f"kaleido_{request.url.port or 80}"  # cookies do not tell ports apart


def _message(status: int, message: str) -> JSONResponse:
    return JSONResponse({"message": message}, status)
