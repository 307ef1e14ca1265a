"""GET /stats: what the server does now, as JSON. Answered from memory.

The engine's numbers are those of its last sign of life. Totals are the server's, over every engine it had.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from palmette.runtime.server.http import client_of, json_response
from palmette.runtime.server.service import Service
from palmette.runtime.stats import Meter

PERIOD = 0.5  # seconds between two samples
WINDOW = 10.0  # seconds over which tokens a second are told


class Sampler:
    """Looks at a service's numbers now and then; what `/stats` and `/metrics` read."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.meter = Meter(WINDOW)
        self._started = service.clock()
        self._timer: asyncio.TimerHandle | None = None
        self.begin()

    def begin(self) -> None:
        """Sample from now on, by timers of the loop that runs. Does nothing the second time, or without a loop."""
        if self._timer is not None:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._tick(loop)

    def sample(self) -> None:
        """Look once."""
        service = self.service
        self.meter.take(service.clock(), service.stats(), service.num_restarts)

    @property
    def uptime(self) -> float:
        """Seconds."""
        return self.service.clock() - self._started

    @property
    def num_waiting(self) -> tuple[int, int]:
        """Requests that wait at the gate or in line to be read; and behind it, in the engine or for one to be there."""
        service = self.service
        stats = service.stats()
        at_gate = service.gate.num_waiting + len(service.turnstile)
        return at_gate, len(service.flights) if stats is None else stats.waiting

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sample()
        self._timer = loop.call_later(PERIOD, self._tick, loop)


async def show(request: Request) -> Response:
    return json_response(snapshot(request.app.state.sampler, with_clients=client_of(request).is_admin))


def snapshot(sampler: Sampler, *, with_clients: bool) -> dict[str, Any]:
    """What `/stats` tells. Numbers of KV tokens are null while there is no engine.

    Args:
        with_clients: also how many requests of each client wait.
    """
    sampler.begin()
    sampler.sample()
    service, meter = sampler.service, sampler.meter
    engine, totals = service.stats(), meter.totals
    at_gate, behind = sampler.num_waiting
    told: dict[str, Any] = {
        "status": status(service),
        "model": None if service.card is None else service.card.name,
        "uptime_seconds": round(sampler.uptime, 3),
        "running": 0 if engine is None else engine.running,
        "waiting": at_gate + behind,
        "waiting_at_gate": at_gate,
        "waiting_in_engine": behind,
        "kv_total": None if engine is None else engine.kv_total,
        "kv_free": None if engine is None else engine.kv_free,
        "kv_evictable": None if engine is None else engine.kv_evictable,
        "hit_rate": None if engine is None else engine.hit_rate,
        "tokens_per_second": round(meter.generated_rate, 3),
        "prompt_tokens_per_second": round(meter.prompt_rate, 3),
        "prompt_tokens": totals.prompt_tokens,
        "computed_prompt_tokens": totals.computed_prompt_tokens,
        "cached_tokens": totals.cached_prompt_tokens,
        "sampled_tokens": totals.sampled_tokens,
        "forced_tokens": totals.forced_tokens,
        "retractions": totals.retractions,
        "refused": service.gate.num_refused,
        "engine_restarts": service.num_restarts,
    }
    if engine is not None and engine.share_of_optimum is not None:
        told["share_of_optimum"] = engine.share_of_optimum
    if with_clients:
        told["clients"] = waiting_by_client(service)
    return told


def status(service: Service) -> str:
    """The word of `/health`: ok, starting, draining or stalled."""
    if service.is_ready:
        return "ok"
    return "draining" if service.is_draining else "stalled" if service.is_stalled else "starting"


def waiting_by_client(service: Service) -> dict[str, int]:
    """Requests at the gate by client's name; a client that has none may be missing."""
    return service.gate.waiting_by_client()


ROUTES = (("/stats", ("GET",), show),)
