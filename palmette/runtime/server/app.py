"""The application: every route of the server, behind the guard. Knows no endpoint's inside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from palmette.runtime.server import health, metrics, native, native_score, programs, stats
from palmette.runtime.server.guard import Guard
from palmette.runtime.server.http import HTTPError, answered, error_response
from palmette.runtime.server.openai import chat, completions, embeddings, models, responses, tokenize
from palmette.runtime.server.service import Service
from palmette.runtime.server.tracing import Tracing

Handler = Callable[[Request], Awaitable[Response]]
# (path, methods, handler), which each module with endpoints lists as ROUTES
Routes = Iterable[tuple[str, tuple[str, ...], Handler]]


def build_app(service: Service) -> Starlette:
    """The ASGI application on a service, which `app.state.service` holds."""
    listed: list[Routes] = [health.ROUTES, chat.ROUTES, completions.ROUTES, embeddings.ROUTES, models.ROUTES]
    listed += [responses.ROUTES, tokenize.ROUTES]
    listed += [stats.ROUTES, metrics.ROUTES]
    listed += [native.ROUTES, native_score.ROUTES, programs.ROUTES]
    routes = [
        Route(path, answered(handler), methods=list(methods)) for module in listed for path, methods, handler in module
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, service=service), Middleware(Tracing, service=service)],
        exception_handlers={404: _unknown, 405: _wrong_method},
    )
    app.state.service = service
    metrics.install(app, service)
    return app


async def _unknown(request: Request, error: Exception) -> Response:
    return error_response(HTTPError(404, f"there is no {request.url.path[:200]} here", code="not_found"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    return error_response(HTTPError(405, f"{request.url.path} does not take {request.method}"))
