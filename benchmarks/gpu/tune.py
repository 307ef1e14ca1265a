"""Part "tune": the kernels under launch configurations beside their defaults, one table, so that a single call on a GPU
tells which defaults to change. Not run by default.

A row's number is microseconds; its error is against float64, or against what the default gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.attention import BF16_ERROR, TINY, Case, cascade_case, decode_case, extend_case, in_turn
from benchmarks.gpu.machine import Call, Machine, error, graph_seconds, worst_error
from benchmarks.gpu.products import expert_weights
from benchmarks.gpu.rows import Row
from benchmarks.gpu.tasks import Task
from palmette.kernels.gpu import moe
from palmette.kernels.gpu.extend_attention import CONFIGS, ExtendConfig, extend_attention
from palmette.kernels.gpu.gather_rows import gather_rows
from palmette.kernels.gpu.launch import num_processors
from palmette.kernels.gpu.merge_partials import merge_partials
from palmette.kernels.gpu.quant_linear import QuantConfig, choose_config, quant_linear, skinny_linear
from palmette.kernels.gpu.split_attention import SplitConfig, split_attention, split_config
from palmette.kernels.kv_store import KVLayer, quantize_rows
from palmette.kernels.linear import linear
from palmette.kernels.quant_linear import quantize_weight
from palmette.runtime.paged_plan import PagedLimits

_EQUAL = 1e-2  # two configurations round differently


def tasks(machine: Machine) -> Sequence[Task]:
    limits = PagedLimits() if machine.measures else TINY
    found = [
        Task(f"wide_cost, {rows} rows of {length}", partial(_wide_cost, machine, limits, rows, length))
        for rows, length in ((64, 4096), (1, 16384))
    ]
    for rows in (1, 64):
        found += [Task(f"cut {cut}, {rows} rows", partial(_cut, machine, limits, rows, cut)) for cut in _CUTS]
    for name, make in _SPLIT_CASES.items():
        for config in _split_configs(machine, name):
            what = f"split_attention, {name}: {_named(config)}"
            found.append(Task(what, partial(_split, machine, what, partial(make, machine, limits), config)))
    for name, gather_from in (("gathered", 17), ("paged", 1 << 30)):
        for extend in _extend_configs(machine, name):
            what = f"extend_attention, {name}: {_named(extend)}"
            found.append(Task(what, partial(_extend, machine, limits, what, gather_from, extend)))
    for rows in (1, 16, 64) if machine.measures else (1,):
        for kind in (torch.int8, torch.bfloat16) if machine.measures else (torch.int8,):
            for outputs, inputs in ((28672, 4096), (4096, 14336)) if machine.measures else ((48, 64),):
                what = f"linear {kind}, {rows} rows, {outputs} x {inputs}"
                found.append(Task(what, partial(_linear, machine, what, rows, kind, outputs, inputs)))
    for rows in (1, 16, 64, 512, 4096) if machine.measures else (3,):
        found.append(Task(f"experts, {rows} rows", partial(_experts, machine, rows)))
    return found


_CUTS = (128, 256, 512)


def _timed(machine: Machine, what: str, calls: Sequence[Call], wrong: float, allowed: float, note: str = "") -> Row:
    took = graph_seconds(machine, calls)
    value = took * 1e6 if machine.measures else None
    detail = {"": note} if note else {}
    return Row(f"tune {what}", "microseconds", value, None, wrong, allowed * machine.rounding, detail)


def _named(config: Any) -> str:
    if config is None:
        return "the default"
    return " ".join(f"{name} {getattr(config, name)}" for name in config.__slots__)


# -- what limits depend on ---------------------------------------------------------------------------------------------


def _wide_cost(machine: Machine, limits: PagedLimits, rows: int, length: int) -> Iterable[Row]:
    """The same items in tiles of more rows than they have: what PagedLimits.wide_cost is the ratio of."""
    cases = in_turn(machine, partial(decode_case, machine, limits, rows=rows, length=length))
    rows, length = cases[0].plan.page_table.shape
    narrow = None
    for block_m in (16, 64, 128) if machine.measures else (16, 32):
        wide = [_in_tiles(case, block_m) for case in cases]
        what = f"wide_cost, {rows} rows of {length}: block_m {block_m}"
        row = _timed(machine, what, [case.run for case in wide], wide[0].error(4), BF16_ERROR)
        narrow = narrow or row.value
        if row.value is not None and narrow is not None:
            row = replace(row, detail={"times block_m 16": row.value / narrow})
        yield row


def _in_tiles(case: Case, block_m: int) -> Case:
    splits = tuple(replace(split, block_m=block_m) for split in case.plan.splits)
    return replace(case, plan=replace(case.plan, splits=splits))


def _cut(machine: Machine, limits: PagedLimits, rows: int, cut: int) -> Iterable[Row]:
    """Decoding under another PagedLimits.cut, merge included."""
    cases = in_turn(machine, partial(decode_case, machine, replace(limits, cut=cut), rows=rows))
    rows, length = cases[0].plan.page_table.shape
    what = f"cut {cut}, {rows} rows of {length}"
    yield _timed(machine, what, [case.run for case in cases], cases[0].error(4), BF16_ERROR)


# -- attention ---------------------------------------------------------------------------------------------------------


def _with_codes(case: Case, kind: torch.dtype) -> Case:
    (keys, key_scales), (values, value_scales) = (quantize_rows(x, kind) for x in (case.kv.keys, case.kv.values))
    return replace(case, kv=KVLayer(keys, values, key_scales, value_scales))


_SPLIT_CASES: dict[str, Callable[[Machine, PagedLimits], Case]] = {
    "decode": decode_case,
    "decode, fp8 pool": lambda machine, limits: _with_codes(decode_case(machine, limits), torch.float8_e4m3fn),
    "cascade": cascade_case,
}


def _split_configs(machine: Machine, name: str) -> Sequence[SplitConfig | None]:
    """None is the default."""
    if not machine.measures:
        return (None, SplitConfig(32, 4, 3, 1))
    if name == "cascade":
        return (
            None,
            SplitConfig(64, 8, 5, 1),
            SplitConfig(64, 8, 3, 1),
            SplitConfig(64, 8, 3, 2),
            SplitConfig(128, 8, 3, 1),
            SplitConfig(32, 8, 5, 2),
            SplitConfig(64, 4, 5, 1),
            SplitConfig(64, 4, 3, 2),
        )
    return (
        None,
        SplitConfig(64, 4, 5, 3, 168),
        SplitConfig(64, 4, 5, 3),
        SplitConfig(64, 4, 5, 2),
        SplitConfig(64, 4, 3, 4, 128),
        SplitConfig(64, 4, 7, 2),
        SplitConfig(32, 4, 5, 4, 128),
        SplitConfig(32, 4, 7, 4, 128),
        SplitConfig(32, 2, 5, 6, 168),
        SplitConfig(128, 4, 3, 2),
        SplitConfig(128, 8, 5, 1),
        SplitConfig(64, 8, 5, 2),
    )


def _split(machine: Machine, what: str, make: Callable[[], Case], config: SplitConfig | None) -> Iterable[Row]:
    """A step's splits without the merge; the widest under the configuration, others under their default."""
    cases = in_turn(machine, make)
    case = cases[0]
    merge, (_, heads, dim) = case.plan.merge, case.q.shape
    assert merge is not None, "rows of one token are split"
    partials = torch.full((merge.num_partials, heads, dim), torch.nan, device=machine.device)
    lse = torch.full(partials.shape[:2], torch.nan, device=machine.device)

    def run(one: Case) -> None:
        *others, widest = one.plan.splits
        for work in others:
            split_attention(one.q, one.kv, one.plan, work, partials, lse, scale=dim**-0.5)
        split_attention(one.q, one.kv, one.plan, widest, partials, lse, scale=dim**-0.5, config=config)

    run(case)
    got = torch.empty_like(case.q)
    merge_partials(partials, lse, merge, got)
    note = ""
    if config is None:
        chosen = split_config(
            head_dim=dim,
            block_m=case.plan.splits[-1].block_m,
            cut=case.plan.cut,
            q_size=case.q.element_size(),
            pool_size=case.kv.keys.element_size(),
        )
        note = f"block_m {case.plan.splits[-1].block_m}: {_named(chosen)}"
    wrong = worst_error(got, case.run().view(got.shape))
    yield _timed(machine, what, [partial(run, one) for one in cases], wrong, _EQUAL, note)


def _extend_configs(machine: Machine, name: str) -> Sequence[ExtendConfig]:
    if not machine.measures:
        return (ExtendConfig(16, 4, 2),)
    more = (ExtendConfig(128, 4, 2), ExtendConfig(64, 4, 3), ExtendConfig(64, 8, 2), ExtendConfig(128, 8, 4))
    found = [*CONFIGS[128], *(config for config in more if config not in CONFIGS[128])]
    return [config for config in found if name == "gathered" or not config.bulk_copy]


def _extend(machine: Machine, limits: PagedLimits, what: str, gather_from: int, config: ExtendConfig) -> Iterable[Row]:
    """The tiles alone: what was gathered is there."""
    case = extend_case(machine, limits, gather_from=gather_from)
    [work] = case.plan.extends
    dim = case.heads.dim
    scratch = None
    if work.gathered is not None:
        shape = (case.heads.num_kv, work.scratch_len, dim)
        keys, values = (torch.empty(shape, dtype=case.q.dtype, device=machine.device) for _ in range(2))
        scratch = keys, values
        gather_rows(case.kv, case.plan, work, *scratch)
    out = torch.full_like(case.q, torch.nan)

    def run() -> None:
        extend_attention(case.q, case.kv, case.plan, work, out, scale=dim**-0.5, scratch=scratch, config=config)

    run()
    wrong = worst_error(out, case.run().view(out.shape))
    yield _timed(machine, what, [run], wrong, _EQUAL)
    if scratch is not None and config == CONFIGS[128][0]:
        gather = partial(gather_rows, case.kv, case.plan, work, *scratch)
        yield _timed(machine, "gather_rows before it", [gather], 0.0, 0.0)


# -- products ----------------------------------------------------------------------------------------------------------


def _linear(machine: Machine, what: str, rows: int, kind: torch.dtype, outputs: int, inputs: int) -> Iterable[Row]:
    dtype = torch.bfloat16 if machine.measures else torch.float32
    x = torch.randn(rows, inputs, device=machine.device, dtype=dtype)
    weights = [torch.randn(outputs, inputs, device=machine.device, dtype=dtype) * 0.02 for _ in range(6)]
    is_coded = kind != torch.bfloat16
    pairs = [quantize_weight(w, kind) if is_coded else (w, None) for w in weights]
    chosen = choose_config(
        rows,
        outputs,
        inputs,
        x_bytes=x.element_size(),
        code_bytes=kind.itemsize,
        processors=num_processors(machine.device),
    )
    for config in _quant_configs(chosen, rows) if machine.measures else [chosen, replace(chosen, block_n=16)]:

        def call(codes: Tensor, scales: Tensor | None, config: QuantConfig = config) -> Tensor:
            if scales is None:
                return skinny_linear(x, codes, config=config)
            return quant_linear(x, codes, scales, config=config)

        calls = [partial(call, *pair) for pair in pairs]
        note = "the default" if config == chosen else ""
        try:
            wrong = error(calls[0](), _by_default(x, pairs[0]))
            yield _timed(machine, f"{what}: {_named(config)}", calls, wrong, _EQUAL, note)
        except Exception as failure:  # noqa: BLE001 - one that does not fit leaves the others
            yield Row(f"tune {what}: {_named(config)}", "", None, failure=f"{type(failure).__name__}: {failure}"[:200])


def _by_default(x: Tensor, pair: tuple[Tensor, Tensor | None]) -> Tensor:
    codes, scales = pair
    return skinny_linear(x, codes) if scales is None else quant_linear(x, codes, scales)


def _quant_configs(chosen: QuantConfig, rows: int) -> list[QuantConfig]:
    """The default, and what differs from it in one thing."""
    found = [chosen]
    for name, values in (
        ("block_n", (chosen.block_n // 2, chosen.block_n * 2)),
        ("splits", (1, chosen.splits * 2, chosen.splits * 4)),
        ("num_stages", (chosen.num_stages - 1, chosen.num_stages + 1)),
        ("slice_k", (chosen.slice_k // 2, chosen.slice_k * 2)),
        ("slices", (1, 4) if chosen.slices > 1 else (4,)),
    ):
        for value in values:
            config = replace(chosen, **{name: value})
            if config not in found and config.block_n >= 16 and config.slice_k >= 16 and config.num_stages >= 1:
                found.append(config)
    return found


def _experts(machine: Machine, rows: int) -> Iterable[Row]:
    router, gate_up, down = expert_weights(machine)
    sets = [(gate_up, down), *(expert_weights(machine)[1:] for _ in range(2))]
    num, hidden, inner = down.shape
    top_k = 8 if machine.measures else 2
    x = torch.randn(rows, hidden, device=machine.device, dtype=down.dtype)
    logits = linear(x, router)
    chosen = moe.choose_tiles(
        rows * top_k, num, hidden=hidden, inner=inner, dtype=x.dtype, processors=num_processors(machine.device)
    )
    wanted = moe.moe(x, logits, gate_up, down, top_k=top_k, normalise=True)
    for tiles in _tiles(chosen) if machine.measures else [chosen]:
        calls = [partial(moe.moe, x, logits, *weights, top_k=top_k, normalise=True, tiles=tiles) for weights in sets]
        what = f"experts, {rows} rows: {_named(tiles[0])}; then {_named(tiles[1])}"
        try:
            wrong = error(calls[0](), wanted)
            yield _timed(machine, what, calls, wrong, _EQUAL, "the default" if tiles == chosen else "")
        except Exception as failure:  # noqa: BLE001 - see _linear
            yield Row(f"tune {what}", "", None, failure=f"{type(failure).__name__}: {failure}"[:200])


def _tiles(chosen: tuple[moe.Tiles, moe.Tiles]) -> list[tuple[moe.Tiles, moe.Tiles]]:
    """The default, and what differs from it in one thing in both products."""
    found = [chosen]
    block_m = chosen[0].block_m
    for changes in (
        {"width": chosen[0].width * 2},
        {"width": max(32, chosen[0].width // 2)},
        {"block_k": 64},
        {"block_k": 128},
        {"num_stages": 3},
        {"num_stages": 5},
        {"num_warps": 8 if chosen[0].num_warps == 4 else 4},
        {"block_m": block_m * 2},
        {"block_m": max(16, block_m // 2)},
    ):
        tiles = (replace(chosen[0], **changes), replace(chosen[1], **changes))
        if tiles not in found:
            found.append(tiles)
    return found
