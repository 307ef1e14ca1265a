"""Shared by all tests: the size of acceptance tests, the figures they leave, and how tests are dealt to workers."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers

from palmette.runtime.models.load import find_model

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated, so before any is imported

os.environ["PALMETTE_CACHE"] = "0"  # nothing of a test outlives it; what tests of the cache keep, they name

Figures = Callable[..., None]
_RESULTS = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="acceptance lines at full size; writes a dated JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RESULTS] = {}
    num_workers = getattr(config.option, "numprocesses", None)  # None also in a worker
    if num_workers:
        if config.getoption("--full"):
            raise pytest.UsageError("--full collects figures in one process: leave -n out")
        # Workers inherit it, and what they start. Threads of one that wait for those of another are slower than one.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _num_processors() // num_workers)))


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """What `-n auto` stands for, unless xdist's own variable says it."""
    from tests.distribution import MAX_WORKERS  # here and below, since it needs xdist

    return None if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") else min(MAX_WORKERS, _num_processors())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of our own, unless another mode was asked for with --dist."""
    from tests.distribution import UnitScheduling

    return UnitScheduling(config, log) if config.getoption("dist") == "load" else None


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether acceptance lines run at full size."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def hf_embedded() -> Any:
    """The embedded model in transformers, fp32: the oracle of our loader and our logits. Takes seconds to load.

    transformers reads the file twice and makes the table of names anew for each of 397 modules, 10 s in all; here each
    of them is made once.
    """
    import gguf  # here, since a machine that runs kernels alone has none

    transformers.logging.disable_progress_bar()
    path, _ = find_model("smollm2")
    with (
        warnings.catch_warnings(),
        patch.object(gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        patch.object(gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
    ):
        warnings.simplefilter("ignore")  # of transformers' own code
        return transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Keep what a test measured: figures(tokens=..., ties=...)."""
    results = request.config.stash[_RESULTS].setdefault(request.node.name, {})

    def keep(**values: Any) -> None:
        results.update(values)

    return keep


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" and item.name in item.config.stash[_RESULTS]:
        item.config.stash[_RESULTS][item.name]["outcome"] = report.outcome
        item.config.stash[_RESULTS][item.name]["seconds"] = round(report.duration, 2)
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    results = config.stash[_RESULTS]
    if not config.getoption("--full") or not results:
        return
    terminalreporter.section("acceptance")
    for name, values in results.items():
        outcome = values.get("outcome", "?")
        rest = ", ".join(f"{k}={v}" for k, v in values.items() if k != "outcome")
        terminalreporter.write_line(f"{outcome:>7}  {name}: {rest}")
    folder = Path(str(config.rootpath)) / "acceptance-results"
    folder.mkdir(exist_ok=True)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    file = folder / f"{stamp}.json"
    data = {"date": stamp, "python": platform.python_version(), "machine": platform.machine(), "lines": results}
    file.write_text(json.dumps(data, indent=1, default=str) + "\n")
    terminalreporter.write_line(f"written: {file.relative_to(config.rootpath)}")
