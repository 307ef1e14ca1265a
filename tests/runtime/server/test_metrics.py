"""/stats and /metrics tell what the server did: a real one, on the tiny model."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from palmette.runtime.config import CacheConfig, RuntimeConfig
from palmette.runtime.models.tiny import tiny_model
from palmette.runtime.server.app import build_app
from palmette.runtime.server.config import ServerConfig, ServerLimits
from palmette.runtime.server.metrics import CONTENT_TYPE, PREFIX
from palmette.runtime.server.service import Service
from palmette.runtime.server.stats import WINDOW
from tests.runtime.server.serving import Served, ThreadConstraints, serving

T = TypeVar("T")
OPERATORS = Path(__file__).parents[3] / "docs" / "operators.md"
KEYS = ("first-tenants-key", "second-tenants-key", "keys-of-the-admin")


@pytest.fixture(scope="module")
def measured() -> Iterator[Served]:
    """A server that also measures the optimum."""
    config = ServerConfig(RuntimeConfig(cache=CacheConfig(measure_optimum=True)))
    with serving(tiny_model(), config) as running:
        yield running


@pytest.fixture(scope="module")
def narrow() -> Iterator[Served]:
    """Two tenants and an admin; the engine takes one request at a time, the queue two of each tenant."""
    limits = ServerLimits(max_in_engine=1, max_waiting=4)
    with serving(tiny_model(), ServerConfig(api_keys=KEYS, admin_key=KEYS[2], limits=limits)) as running:
        yield running


class Scrape:
    """The samples of /metrics."""

    def __init__(self, client: httpx2.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == CONTENT_TYPE
        self.families = {family.name: family for family in text_string_to_metric_families(answer.text)}
        self._samples = {
            (sample.name.removeprefix(PREFIX), tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples[name, tuple(sorted(labels.items()))]

    def get(self, name: str, **labels: str) -> float:
        """0 where the label was never seen."""
        return self._samples.get((name, tuple(sorted(labels.items()))), 0.0)


def complete(client: httpx2.Client, **fields: Any) -> httpx2.Response:
    body = {"prompt": "Once", "max_tokens": 6, "ignore_eos": True, "temperature": 0, **fields}
    return client.post("/v1/completions", json=body)


def eventually(look: Callable[[], T | None]) -> T:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        found = look()
        if found is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come")


# -- /stats ----------------------------------------------------------------------------------------------------------


def test_stats_count_the_tokens_of_a_request(measured: Served) -> None:
    with measured.client() as client:
        before = client.get("/stats").json()
        usage = complete(client, prompt="A prompt of its own").json()["usage"]
        after = client.get("/stats").json()
    assert after["sampled_tokens"] - before["sampled_tokens"] == usage["completion_tokens"] == 6
    assert after["prompt_tokens"] - before["prompt_tokens"] == usage["prompt_tokens"]
    assert (after["status"], after["running"], after["waiting"]) == ("ok", 0, 0)
    assert after["kv_free"] + after["kv_evictable"] == after["kv_total"] > 0
    assert after["kv_evictable"] > before["kv_evictable"]
    assert 0 < after["uptime_seconds"] - before["uptime_seconds"] < 60


def test_stats_tell_hits_and_their_share_of_the_optimum(measured: Served) -> None:
    with measured.client() as client:
        for _ in range(2):
            complete(client, prompt="The same long beginning, twice")
        stats = client.get("/stats").json()
    assert stats["cached_tokens"] >= 29
    assert 0 < stats["hit_rate"] < 1
    assert stats["hit_rate"] == pytest.approx(1 - stats["computed_prompt_tokens"] / stats["prompt_tokens"])
    assert stats["share_of_optimum"] == pytest.approx(1.0)


def test_the_share_of_the_optimum_is_told_only_where_it_is_measured(served: Served) -> None:
    with served.client() as client:
        assert "share_of_optimum" not in client.get("/stats").json()
        assert "palmette:cache_share_of_optimum" not in Scrape(client).families


def test_tokens_a_second_are_those_of_the_last_seconds(measured: Served) -> None:
    with measured.client() as client:
        complete(client, max_tokens=40)
        stats = client.get("/stats").json()
    assert stats["tokens_per_second"] > 0
    assert stats["tokens_per_second"] <= stats["sampled_tokens"] / min(WINDOW, 0.01)


def test_admins_see_whose_requests_wait(narrow: Served) -> None:
    clients = [narrow.client(headers={"authorization": f"Bearer {key}"}) for key in KEYS]
    first, second, admin = clients
    with ExitStack() as stack:
        for each in clients:
            stack.enter_context(each)
        body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with first.stream("POST", "/v1/completions", json=body) as held:
            lines = held.iter_lines()  # closes the stream when it is dropped
            next(lines)  # the request is in the engine, which is full now
            threads = [threading.Thread(target=complete, args=(each,)) for each in (first, second, second)]
            for thread in threads:
                thread.start()

            def waiting() -> dict[str, Any] | None:
                stats: dict[str, Any] = admin.get("/stats").json()
                return stats if stats["waiting_at_gate"] == 3 else None

            stats = eventually(waiting)
            scrape = Scrape(second)
            assert "clients" not in second.get("/stats").json()
        for thread in threads:
            thread.join(20)
        names = [narrow.service.clients.find(f"Bearer {key}") for key in KEYS]
        assert stats["clients"] == {names[0].name: 1, names[1].name: 2}  # type: ignore[union-attr]
        assert (stats["waiting"], stats["running"]) == (3, 1)
        assert scrape("num_requests_waiting", place="gate") == 3
        assert scrape("num_requests_running") == 1
        assert scrape("num_used_tokens") > 0
        eventually(lambda: True if admin.get("/stats").json()["running"] == 0 else None)
        assert admin.get("/stats").json()["clients"] == {}


# -- /metrics --------------------------------------------------------------------------------------------------------


def test_a_streamed_request_is_measured(measured: Served) -> None:
    with measured.client() as client:
        before = Scrape(client)
        assert complete(client, stream=True).text.endswith("data: [DONE]\n\n")
        after = Scrape(client)

    def more(name: str, **labels: str) -> float:
        return after(name, **labels) - before.get(name, **labels)

    assert more("time_to_first_token_seconds_count") == 1
    assert 1 <= more("inter_token_latency_seconds_count") <= 5, "gaps between at most six tokens"
    assert more("e2e_request_latency_seconds_count") == 1
    assert more("request_queue_time_seconds_count") == 1
    assert more("e2e_request_latency_seconds_sum") >= more("time_to_first_token_seconds_sum")
    assert more("time_to_first_token_seconds_sum") >= more("request_queue_time_seconds_sum")
    assert more("request_generation_tokens_sum") == more("generation_tokens_total") == 6
    assert more("request_prompt_tokens_sum") == more("prompt_tokens_total") > 0
    assert more("num_requests_total", kind="GenerateRequest") == 1
    assert more("request_success_total", finished_reason="length") == 1
    model = measured.service.model
    assert after("engine_up") == 1
    assert after("model_info", model_name=model.name, digest=model.digest) == 1


def test_hits_are_counted(measured: Served) -> None:
    with measured.client() as client:
        complete(client, prompt="A beginning that will be cached")
        before = Scrape(client)
        cached = complete(client, prompt="A beginning that will be cached").json()["usage"]
        after = Scrape(client)
    told = cached["prompt_tokens_details"]["cached_tokens"]
    assert after("cached_tokens_total") - before("cached_tokens_total") == told > 0
    assert after("cache_hit_rate") > before("cache_hit_rate")
    assert after("num_evictable_tokens") > 0
    assert after("max_total_num_tokens") == measured.service.model.kv_tokens


def test_constraints_are_timed_and_what_they_force_is_counted(measured: Served) -> None:
    with measured.client() as client:
        before = Scrape(client)
        assert complete(client, regex="forced words [ab]", max_tokens=40, ignore_eos=False).status_code == 200
        assert complete(client, regex="(unclosed").status_code == 400
        after = Scrape(client)
    name = "grammar_compilation_time_seconds_count"
    assert after(name) - before(name) >= 1
    assert after("forced_tokens_total") - before("forced_tokens_total") >= 10


def test_what_did_not_end_well_is_counted_by_its_error(measured: Served) -> None:
    with measured.client() as client:
        before = Scrape(client)
        assert complete(client, max_tokens=2000, timeout=0.05).status_code == 504
        after = Scrape(client)
    assert (
        after("request_failure_total", error="HoleTimeout") - before.get("request_failure_total", error="HoleTimeout")
        == 1
    )
    assert after("e2e_request_latency_seconds_count") == before("e2e_request_latency_seconds_count")


def test_refusals_are_counted(narrow: Served) -> None:
    with narrow.client(headers={"authorization": f"Bearer {KEYS[0]}"}) as client:
        before = Scrape(client)
        body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as held:
            lines = held.iter_lines()
            next(lines)
            threads = [threading.Thread(target=complete, args=(client,)) for _ in range(2)]  # a tenant's half
            for thread in threads:
                thread.start()
            eventually(lambda: True if narrow.service.gate.num_waiting == 2 else None)
            assert complete(client).status_code == 429
            after = Scrape(client)
        for thread in threads:
            thread.join(20)
    assert after("num_refused_requests_total") - before("num_refused_requests_total") == 1
    assert (
        after("request_failure_total", error="Overloaded") - before.get("request_failure_total", error="Overloaded")
        == 1
    )


def test_a_server_without_an_engine_answers_all_the_same() -> None:
    tokenizer = tiny_model().tokenizer
    service = Service(ServerConfig(), tokenizer, tokenizer.chat_template, ThreadConstraints(tokenizer), time.monotonic)
    service.num_restarts = 3
    with TestClient(build_app(service), base_url="http://localhost") as client:
        stats, scrape = client.get("/stats").json(), Scrape(client)
    assert stats["status"] == "starting"
    assert (stats["running"], stats["waiting"], stats["kv_total"], stats["hit_rate"]) == (0, 0, None, None)
    assert scrape("engine_up") == 0
    assert scrape("engine_restarts_total") == 3
    assert "palmette:kv_cache_usage_perc" not in scrape.families


def test_two_servers_in_a_process_do_not_meet(measured: Served, served: Served) -> None:
    with measured.client() as one, served.client() as other:
        complete(one)
        before = [Scrape(client)("e2e_request_latency_seconds_count") for client in (one, other)]
        complete(one)
        after = [Scrape(client)("e2e_request_latency_seconds_count") for client in (one, other)]
    assert after == [before[0] + 1, before[1]]


def test_both_need_a_key_where_there_are_keys(narrow: Served) -> None:
    with narrow.client() as client:
        assert [client.get(path).status_code for path in ("/stats", "/metrics")] == [401, 401]


def test_the_page_for_operators_explains_each_metric_and_each_field(measured: Served) -> None:
    page = OPERATORS.read_text(encoding="utf-8")
    with measured.client() as client:
        complete(client)
        scrape, stats = Scrape(client), client.get("/stats").json()
    told = {name for name in scrape.families if name.startswith(PREFIX)}
    told = {name + "_total" if scrape.families[name].type == "counter" else name for name in told}
    explained = set(re.findall(r"`(palmette:\w+)`", page))
    assert explained == told | {"palmette:request_failure_total"}
    for field in (*stats, "clients"):
        assert f"`{field}`" in page, field
