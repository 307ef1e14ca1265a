"""Which tests one worker of `pytest -n N` runs in one go, and which of them begin first.

A unit of work is a file, so that what its tests share is made once; or several files that are named together below; or,
where tests are long and share nothing, one test. Whatever takes long begins first: then no worker is left with it at
the end. Knows names of files and nothing of what the tests do; without workers nothing of this is used, and
`-n N --dist ...` with another mode takes that mode.
"""

from __future__ import annotations

from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

MAX_WORKERS = 4  # with more, "processes" is what the others wait for; and each takes up to 2 GB

TOGETHER = {
    # They start processes, kill them, and wait for what a clock does meanwhile: never two of them at once.
    "processes": (
        "tests/acceptance/test_server.py",
        "tests/interpreter/backends/test_http.py",
        "tests/runtime/parallel/",
        "tests/runtime/server/test_attacks.py",
        "tests/runtime/server/test_constraints.py",
        "tests/runtime/server/test_processes.py",
        "tests/runtime/test_driver.py",
    ),
    # Their oracle is the embedded model in transformers, which takes seconds to load.
    "transformers": (
        "tests/acceptance/test_foundation.py",
        "tests/model/test_embedded_model.py",
    ),
}  # by name of the unit: files, and folders with all below them

APART = (
    "tests/kernels/gpu/test_aot.py",
    "tests/runtime/server/test_simulation.py",
    "tests/test_bare_machines.py",
)  # each test is a unit of its own

FIRST = (
    "processes",
    "tests/test_bare_machines.py",
    "tests/kernels/gpu/test_aot.py",
    "tests/runtime/server/test_simulation.py",
    "transformers",
    "tests/kernels/cpu/test_sanitized.py",
    "tests/fsm/test_schema_data.py",
    "tests/fsm/test_native_sanitized.py",
    "tests/test_import_cost.py",
    "tests/fsm/test_bombs.py",
    "tests/runtime/server/openai/test_embedded.py",
    "tests/acceptance/test_constrained.py",
    "tests/acceptance/test_cpu_core.py",
    "tests/benchmarks/test_paper.py",
)  # then the others, those of many tests before those of few


def unit_of(nodeid: str) -> str:
    """The unit of work that a test belongs to: a name of TOGETHER, a file, or the test itself."""
    file = nodeid.split("::", 1)[0]
    if file in APART:
        return nodeid
    for name, places in TOGETHER.items():
        if any(file.startswith(place) if place.endswith("/") else file == place for place in places):
            return name
    return file


def rank(unit: str) -> int:
    """Units of a lower rank begin before those of a higher one."""
    name = unit.split("::", 1)[0]
    return FIRST.index(name) if name in FIRST else len(FIRST)


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """A worker that has next to nothing left gets the next unit, in the order of `rank`."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)  # of equals the first
        super()._assign_work_unit(node)
