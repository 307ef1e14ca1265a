"""What loading a model gives."""

from __future__ import annotations

from dataclasses import dataclass

from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with the tokenizer it was trained with."""

    config: ModelConfig
    model: Decoder
    tokenizer: Tokenizer
    digest: str  # identifies config and weights; see models.digest
    name: str  # short, for people
