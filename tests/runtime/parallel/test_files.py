"""Ranks read their parts from files: directories of safetensors, and GGUF, where rows stand in another order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from palmette.runtime.config import ModelOptions
from palmette.runtime.parallel.in_one import InOneRunner
from palmette.runtime.parallel.orders import StoredModel
from palmette.runtime.scheduled import ScheduledBatch, ScheduledRow
from tests.runtime.models.checkpoints import configs, random_model, reference_logits, write_gguf

IDS = tuple(range(3, 33))
TOLERANCE = 1e-4


def split_logits(path: Path) -> torch.Tensor:
    model = StoredModel(ModelOptions(str(path), dtype="float32", gpu_kernels="torch"))
    runner = InOneRunner(model, 2, num_slots=64, max_running_rows=1)
    try:
        row = ScheduledRow(0, IDS, 0, tuple(range(len(IDS))), logits_from=0)
        return runner.forward(ScheduledBatch((row,)))
    finally:
        runner.close()


@pytest.mark.parametrize("name", ["llama-biases", "qwen2", "gemma3", "qwen3_moe-some-dense"])
def test_a_directory_is_read_in_parts(name: str, tmp_path: Path) -> None:
    model = random_model(configs()[name])
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(split_logits(tmp_path), reference_logits(model, IDS), rtol=1e-4, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "architecture"), [("llama", "llama"), ("qwen3", "qwen3")])
def test_a_gguf_file_is_read_in_parts(name: str, architecture: str, tmp_path: Path) -> None:
    model = random_model(configs()[name])
    write_gguf(model, tmp_path / "model.gguf", architecture)
    found = split_logits(tmp_path / "model.gguf")
    torch.testing.assert_close(found, reference_logits(model, IDS), rtol=1e-4, atol=TOLERANCE)
