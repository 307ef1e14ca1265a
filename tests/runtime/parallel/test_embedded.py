"""The embedded model on three ranks: it has nine heads over three KV heads, and its file holds quantised blocks."""

from __future__ import annotations

import pytest

from palmette.runtime.config import ModelOptions
from palmette.runtime.model_runner import ModelRunner
from palmette.runtime.models.load import load_model
from palmette.runtime.parallel.orders import StoredModel
from palmette.runtime.parallel.runner import ParallelRunner
from palmette.runtime.parallel.start import start_parallel
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow

pytestmark = pytest.mark.model

NUM_TOKENS = 6
NEAR_TIE = 1e-3  # of logits, which lie around 15
TOLERANCE = 2e-3


def test_three_ranks_write_what_one_writes() -> None:
    model = start_parallel(StoredModel(ModelOptions("smollm2")), 3)
    try:
        assert model.decoder.config.num_heads == 3
        assert model.decoder.config.num_kv_heads == 1
        assert model.config.num_heads == 9
        split = ParallelRunner(model, num_slots=64, max_running_rows=1)
        whole = ModelRunner(load_model("smollm2").decoder, num_slots=64, max_running_rows=1)
        ids = model.tokenizer.encode("The capital of France is")
        start = 0
        for _ in range(NUM_TOKENS):
            new = tuple(ids[start:])
            slots = tuple(range(start, len(ids)))
            batch = ScheduledBatch((ScheduledRow(0, new, start, slots, logits_from=len(new) - 1),))
            found, wanted = split.forward(batch)[0], whole.forward(batch)[0]
            assert (found - wanted).abs().max() < TOLERANCE
            best = wanted.topk(2)
            if best.values[0] - best.values[1] > NEAR_TIE:
                assert found.argmax() == best.indices[0]
            start = len(ids)
            ids.append(int(best.indices[0]))
        assert " Paris" in model.tokenizer.decode(ids)
    finally:
        model.team.close()
