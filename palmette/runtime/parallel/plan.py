"""How a decoder's weights are cut over several ranks: data, derived from what the config says of its dense layers.

A block reads the residual stream, computes inside, and adds to the stream. Two rules say how its matrices are cut:

    1. what leads from the stream into the block is cut by output features, what leads back by input features, so
       dense layers alternate and a block needs one sum over the ranks, where it writes to the stream;
    2. attention is such a block, whose inside is heads: queries, keys and values are cut by whole heads, the output
       projection by their features.

                   q k v (a rank's heads)  -> attention ->  out
    stream  ->                                                    -> sum over ranks -> stream
                   gate up (a rank's rows)   ->  act * ->   down

What no rule cuts is whole on every rank: embedding, norms, a router. The head leads out of the stream: its rows are
divided too, those of a tied one as a view of the embedding, and every step's logits are gathered. Reading a head of
128k tokens takes longer than gathering the logits of some hundred rows, and a vocabulary need not divide.

The rules are those of Redco (Tan et al. 2023, arXiv 2310.16355, section 3). Experts are MLPs; every rank has a part of
each. Knows names and shapes; reads no tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import gcd

from palmette.errors import InvalidOption
from palmette.runtime.models.config import ModelConfig


class Side(Enum):
    """Which way a dense layer leads."""

    INTO_BLOCK = "from the residual stream into a block"
    TO_STREAM = "from a block back to the residual stream"


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix, or one of every expert, between the residual stream and the inside of a block."""

    name: str  # as in models.weights, behind "layers.{i}."; an expert's without its number
    side: Side
    units: int  # what the inside consists of and what stays whole: heads, or single features
    unit_size: int  # features of a unit
    bias: bool


@dataclass(frozen=True, slots=True)
class Cut:
    """One tensor's axis that is divided among the ranks."""

    name: str
    axis: int  # counted from the end
    units: int  # along the axis
    unit_size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Every rank's part: rank r of `size` has the r-th of equal parts along the axis of each cut."""

    size: int
    cuts: tuple[Cut, ...]  # of all layers, which differ in the kind of their MLP at most

    def cut(self, name: str) -> Cut | None:
        """How a tensor is cut, named as in models.weights; None = whole on every rank."""
        if not name.startswith("layers."):
            return None
        part = name.split(".", 2)[2]
        if part.startswith("experts."):
            part = "experts." + part.split(".", 2)[2]
        return next((cut for cut in self.cuts if cut.name == part), None)

    def part(self, cut: Cut, rank: int) -> slice:
        """What rank has along the axis."""
        length = cut.units // self.size * cut.unit_size
        return slice(rank * length, (rank + 1) * length)


def dense_layers(config: ModelConfig) -> tuple[Dense, ...]:
    """The dense layers that the decoder's layers consist of."""
    into, back = Side.INTO_BLOCK, Side.TO_STREAM
    dim = config.head_dim
    found = [
        Dense("q", into, config.num_heads, dim, config.qkv_bias),
        Dense("k", into, config.num_kv_heads, dim, config.qkv_bias),
        Dense("v", into, config.num_kv_heads, dim, config.qkv_bias),
        Dense("out", back, config.num_heads, dim, config.out_bias),
    ]
    mlps = [("", config.intermediate_size, config.mlp_bias)] if any(not x.is_sparse for x in config.layers) else []
    if config.experts is not None:  # each is cut like an MLP, and every rank has a part of each
        mlps.append(("experts.", config.experts.intermediate_size, False))
    for at, inner, bias in mlps:
        found.append(Dense(at + "gate", into, inner, 1, bias))
        found.append(Dense(at + "up", into, inner, 1, bias))
        found.append(Dense(at + "down", back, inner, 1, bias))
    return tuple(found)


def make_plan(config: ModelConfig, size: int) -> Plan:
    """Cut a model over `size` ranks.

    Raises:
        InvalidOption: heads, KV heads or the intermediate size do not divide.
    """
    check_size(config, size)
    cuts: list[Cut] = []
    for dense in dense_layers(config):
        if dense.side is Side.TO_STREAM:  # its bias belongs to the sum, which every rank has
            cuts.append(Cut(dense.name, -1, dense.units, dense.unit_size))
            continue
        cuts.append(Cut(dense.name, -2, dense.units, dense.unit_size))
        if dense.bias:
            cuts.append(Cut(dense.name + ".bias", -1, dense.units, dense.unit_size))
    return Plan(size, tuple(cuts))


def check_size(config: ModelConfig, size: int) -> None:
    """
    Raises:
        InvalidOption: the model cannot be cut into so many parts; says into how many it can.
    """
    layers = dense_layers(config)
    most = gcd(*(dense.units for dense in layers))
    if size >= 1 and most % size == 0:
        return
    allowed = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
    inner = " and ".join(sorted({str(dense.units) for dense in layers if dense.unit_size == 1}))
    raise InvalidOption(
        "tensor_parallel",
        size,
        f"{allowed}: it must divide the model's {config.num_heads} heads, {config.num_kv_heads} KV heads and "
        f"intermediate size of {inner}",
    )


def head_part(vocab_size: int, *, size: int, rank: int) -> slice:
    """A rank's tokens. All have as many, but that the last ones may have fewer."""
    rows = -(-vocab_size // size)
    return slice(min(rank * rows, vocab_size), min((rank + 1) * rows, vocab_size))


def local_config(config: ModelConfig, size: int) -> ModelConfig:
    """What a rank's decoder looks like, its head aside."""
    experts = config.experts
    return replace(
        config,
        num_heads=config.num_heads // size,
        num_kv_heads=config.num_kv_heads // size,
        intermediate_size=config.intermediate_size // size,
        experts=experts and replace(experts, intermediate_size=experts.intermediate_size // size),
    )
