"""The embedded model as an fp32 checkpoint, made with transformers once: what vLLM reads.

    python -m benchmarks.peers.export MODEL.gguf FOLDER

Runs in an interpreter that has transformers, gguf and accelerate. The tokenizer is written beside the weights.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any


def export(source: Path, folder: Path) -> None:
    """Write `folder`; left alone where it is complete."""
    if folder.is_dir():
        return
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    where = {"pretrained_model_name_or_path": source.parent, "gguf_file": source.name}
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    read = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    config = type(read.config).from_dict({**read.config.to_dict(), "quantization_config": None})
    del config.quantization_config  # what was read from GGUF is not written back; a model of its own is
    plain = type(read)(config).to(torch.float32)
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(partial)
    transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    export(Path(sys.argv[1]), Path(sys.argv[2]))
