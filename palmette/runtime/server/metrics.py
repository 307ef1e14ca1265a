"""GET /metrics: the same server for Prometheus, under the names that users of vLLM and SGLang know.

Histograms and outcomes are observed as requests end; everything else is read when somebody asks, from memory. The
registry belongs to one application: two of them in a process do not meet. docs/operators.md explains each metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from palmette import errors
from palmette.runtime.server.service import Observed, Service
from palmette.runtime.server.stats import Sampler
from palmette.types import GenerateRequest

PREFIX = "palmette:"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST_TOKEN = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)  # seconds
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 10)
_WHOLE_REQUEST = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 240, 600)
_QUEUE = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60, 120)
_COMPILING = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10)
_TOKENS = tuple(1 << n for n in range(18))
_ERRORS = frozenset(errors.__all__)  # the values that the label `error` may have, and "other"


class Metrics:
    """The metrics of one server. `observe` is told of every request, `text` is what Prometheus reads."""

    def __init__(self, sampler: Sampler) -> None:
        self._registry = CollectorRegistry(auto_describe=False)

        def histogram(name: str, what: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(PREFIX + name, what, registry=self._registry, buckets=tuple(buckets))

        def counter(name: str, what: str, label: str) -> Counter:
            return Counter(PREFIX + name, what, (label,), registry=self._registry)

        self._first_token = histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first event.", _FIRST_TOKEN
        )
        self._between_tokens = histogram(
            "inter_token_latency_seconds", "Between two events of a request that brought tokens.", _BETWEEN_TOKENS
        )
        self._whole = histogram(
            "e2e_request_latency_seconds", "From arrival to the end of requests that ended well.", _WHOLE_REQUEST
        )
        self._queue = histogram(
            "request_queue_time_seconds", "From arrival to the engine, the trial of a constraint included.", _QUEUE
        )
        self._prompt = histogram("request_prompt_tokens", "Prompt tokens of requests that ended well.", _TOKENS)
        self._generated = histogram(
            "request_generation_tokens", "Generated tokens of requests that ended well.", _TOKENS
        )
        self._compiling = histogram(
            "grammar_compilation_time_seconds",
            "What it took to try a constraint; one whose verdict is remembered is not tried.",
            _COMPILING,
        )
        self._requests = counter("num_requests", "Requests to the engine that have ended, by kind.", "kind")
        self._succeeded = counter("request_success", "Of these, those that ended well.", "finished_reason")
        self._failed = counter("request_failure", "Of these, those that did not, by class of the error.", "error")
        self._registry.register(_Scraped(sampler))
        ProcessCollector(registry=self._registry)

    def observe(self, seen: Observed) -> None:
        """One request to the engine has ended. A call over HTTP with n answers makes n of them."""
        self._requests.labels(seen.kind).inc()
        if seen.admitted is not None:
            self._queue.observe(seen.admitted - seen.arrived)
        if seen.first is not None and seen.kind == GenerateRequest.__name__:
            self._first_token.observe(seen.first - seen.arrived)
        for gap in seen.gaps:
            self._between_tokens.observe(gap)
        if seen.error is not None:
            name = type(seen.error).__name__
            self._failed.labels(name if name in _ERRORS else "other").inc()
            return
        self._succeeded.labels("stop" if seen.finish is None else seen.finish.reason.value).inc()
        self._whole.observe(seen.ended - seen.arrived)
        if seen.finish is not None:
            self._prompt.observe(seen.finish.usage.prompt_tokens)
            self._generated.observe(seen.finish.usage.completion_tokens)

    def observe_trial(self, seconds: float) -> None:
        """A constraint was tried."""
        self._compiling.observe(seconds)

    def text(self) -> bytes:
        """Everything, in Prometheus's text format."""
        return generate_latest(_WithoutBirths(self._registry))


def install(app: Starlette, service: Service) -> None:
    """Measure a service from now on; `app.state` holds what `/stats` and `/metrics` answer from."""
    sampler = Sampler(service)
    metrics = Metrics(sampler)
    service.observers.append(metrics.observe)
    service.trial_observers.append(metrics.observe_trial)
    app.state.sampler, app.state.metrics = sampler, metrics


async def scrape(request: Request) -> Response:
    found: Metrics = request.app.state.metrics
    return Response(found.text(), media_type=CONTENT_TYPE)


class _WithoutBirths(Collector):
    """What a registry holds, without the moment at which each series began: as many series again, of no use here."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Scraped(Collector):
    """What is read at the moment of a scrape. Numbers of an engine are missing while there is none."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def collect(self) -> Iterator[Metric]:
        sampler = self._sampler
        sampler.begin()
        sampler.sample()
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        service, totals = self._sampler.service, self._sampler.meter.totals
        yield _counter("prompt_tokens", "Prompt tokens of admitted requests.", totals.prompt_tokens)
        yield _counter("cached_tokens", "Prompt tokens read from the cache.", totals.cached_prompt_tokens)
        yield _counter(
            "computed_prompt_tokens",
            "Prompt tokens that went through the model, again after a retraction included.",
            totals.computed_prompt_tokens,
        )
        yield _counter("generation_tokens", "Tokens generated, sampled or forced.", totals.generated_tokens)
        yield _counter(
            "forced_tokens", "Of these, tokens put there by constraints without a decode step.", totals.forced_tokens
        )
        yield _counter(
            "num_retracted_requests", "Times a running request gave its KV tokens back, to resume.", totals.retractions
        )
        yield _counter("num_refused_requests", "Requests told to come back later (429).", service.gate.num_refused)
        yield _counter("engine_restarts", "Engine processes that were started anew.", service.num_restarts)

    def _gauges(self) -> Iterator[Metric]:
        sampler, service = self._sampler, self._sampler.service
        engine, card = service.stats(), service.card
        yield _gauge("engine_up", "1 if a request would be served now.", float(service.is_ready))
        if card is not None:
            info = GaugeMetricFamily(PREFIX + "model_info", "Which model is served.", labels=("model_name", "digest"))
            info.add_metric((card.name, card.digest), 1.0)
            yield info
        at_gate, behind = sampler.num_waiting
        waiting = GaugeMetricFamily(
            PREFIX + "num_requests_waiting", "Requests that wait for their turn.", labels=("place",)
        )
        waiting.add_metric(("gate",), at_gate)
        waiting.add_metric(("engine",), behind)
        yield waiting
        yield _gauge(
            "num_requests_running", "Requests that the engine computes.", 0 if engine is None else engine.running
        )
        yield _gauge("gen_throughput", "Generated tokens a second, lately.", sampler.meter.generated_rate)
        if engine is None:
            return
        used = engine.kv_total - engine.kv_free - engine.kv_evictable
        yield _gauge("max_total_num_tokens", "Slots of the KV pool.", engine.kv_total)
        yield _gauge("num_used_tokens", "Slots held by running requests.", used)
        yield _gauge("num_evictable_tokens", "Slots of cached prefixes that nobody uses.", engine.kv_evictable)
        yield _gauge("kv_cache_usage_perc", "Used slots; 1 = all of them.", used / max(1, engine.kv_total))
        yield _gauge(
            "cache_hit_rate", "Prompt tokens that were not computed; 1 = all, since the engine began.", engine.hit_rate
        )
        if engine.share_of_optimum is not None:
            yield _gauge(
                "cache_share_of_optimum", "Of what an infinite cache would have saved.", engine.share_of_optimum
            )


def _counter(name: str, what: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, what, value=value)


def _gauge(name: str, what: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, what, value=value)


ROUTES = (("/metrics", ("GET",), scrape),)
