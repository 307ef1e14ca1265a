"""What loading a model gives."""

from __future__ import annotations

from dataclasses import dataclass

from palmette.runtime.models.compiled import CompiledDecoder
from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.parallel.model import ParallelModel
from palmette.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run, with the tokenizer it was trained with."""

    config: ModelConfig
    model: Decoder | CompiledDecoder | ParallelModel
    tokenizer: Tokenizer
    digest: str  # identifies config and weights; see models.digest
    name: str  # short, for people

    @property
    def decoder(self) -> Decoder:
        """The model, where torch computes it.

        Raises:
            TypeError: the compiled core does, or several processes do.
        """
        if isinstance(self.model, ParallelModel):
            raise TypeError(f"{self.name} is in several processes: load it with tensor_parallel=1")
        if not isinstance(self.model, Decoder):
            raise TypeError(f"{self.name} is held by the compiled core: load it with cpu_kernels='torch'")
        return self.model
