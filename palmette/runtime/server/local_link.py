"""The engine in a thread of this process, as a server's front sees it: for tests, and for serving from a notebook.

Events come on the engine's thread and are handed over to the loop, one call a step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from palmette.runtime.config import ENFORCED
from palmette.runtime.driver import EngineThread
from palmette.runtime.engine import build_engine
from palmette.runtime.models.loaded import LoadedModel
from palmette.runtime.server.service import ModelCard, Service
from palmette.runtime.stats import Stats
from palmette.types import Event, ProgramEvent, Request


class LocalLink:
    """An EngineThread that answers to a Service. Made and used on the service's loop."""

    def __init__(self, service: Service, loaded: LoadedModel) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        core = build_engine(loaded, service.config.runtime)
        self._thread = EngineThread(core)
        context_len, kv_tokens = core.config.model.context_len, core.config.cache.kv_tokens
        assert context_len is not None, "the engine's config is settled"
        assert kv_tokens is not None, "the engine's config is settled"
        name = service.config.served_model_name or loaded.name
        card = ModelCard(
            name, loaded.digest, context_len, loaded.config.vocab_size, kv_tokens, int(time.time()),
            ENFORCED[core.config.constraints.constraint_engine],
        )  # fmt: skip
        service.attach(self, card)

    def submit(self, request: Request) -> None:
        self._thread.submit(request, self._deliver)

    def cancel(self, request_id: str) -> None:
        self._thread.cancel(request_id)

    def notify(self, event: ProgramEvent) -> None:
        self._thread.notify(event)

    def flush_cache(self) -> None:
        self._thread.flush_cache()

    def stats(self) -> Stats | None:
        return self._thread.stats()

    def close(self) -> None:
        """Fail what is live and stop the thread."""
        self._service.detach("the server was closed")
        self._thread.close()

    def _deliver(self, events: Sequence[Event]) -> None:
        self._loop.call_soon_threadsafe(self._service.flights.take, events)
