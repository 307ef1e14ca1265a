"""Does the server serve? Answered from memory: never waits, never queues work, `/health_generate` excepted.

/live     200 while this process answers
/health   200 if a request would be served now, else 503
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from palmette.errors import EngineDied
from palmette.runtime.server.http import client_of, json_response, service_of, until_gone
from palmette.types import GenerateRequest, SamplingParams

_GENERATE_TIMEOUT = 20.0  # seconds


async def live(request: Request) -> Response:
    return json_response({"status": "ok"})


async def health(request: Request) -> Response:
    service = service_of(request)
    if service.is_ready:
        return json_response({"status": "ok"})
    reason = "draining" if service.is_draining else "stalled" if service.is_stalled else "starting"
    return json_response({"status": reason}, 503, {"retry-after": "2"})


async def health_generate(request: Request) -> Response:
    """One token, through everything."""
    service = service_of(request)
    if not service.is_ready:
        raise EngineDied("the engine does not serve now")
    tokens = service.tokenizer.begin_ids() or await service.encode_plain("a")
    probe = GenerateRequest(
        service.new_id("health-"), tuple(tokens), SamplingParams(max_new_tokens=1, temperature=0.0),
        timeout=_GENERATE_TIMEOUT, priority=1 << 20, namespace="health",
    )  # fmt: skip
    await until_gone(request, service.collect(client_of(request), probe))
    return json_response({"status": "ok"})


ROUTES = (
    ("/live", ("GET",), live),
    ("/ping", ("GET", "POST"), health),
    ("/health", ("GET",), health),
    ("/health_generate", ("GET",), health_generate),
)
