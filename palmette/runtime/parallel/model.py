"""A split model as this process holds it: rank 0's part, and the processes of the others."""

from __future__ import annotations

from dataclasses import dataclass

from palmette.runtime.models.config import ModelConfig
from palmette.runtime.models.decoder import Decoder
from palmette.runtime.parallel.team import Team
from palmette.runtime.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ParallelModel:
    """A model in several processes, which end with `team`."""

    config: ModelConfig  # of the whole model
    decoder: Decoder  # rank 0's part
    tokenizer: Tokenizer
    digest: str  # of rank 0's part, and so of the number of ranks too
    name: str
    team: Team
