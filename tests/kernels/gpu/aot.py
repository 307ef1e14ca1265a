"""Compiles every kernel for compute capability 9.0, with no GPU: python -m tests.kernels.gpu.aot [MODULE ...]

Run without TRITON_INTERPRET, in a process of its own: the interpreter changes triton for the whole process. Each
`tests/kernels/gpu/aot_*.py` lists its operation's cases; one JSON line a case comes out.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHARED_LIMIT = 227 * 1024  # bytes of shared memory that a block may have on compute capability 9.0
REGISTER_LIMIT = 255  # of a thread


@dataclass(frozen=True, slots=True)
class AotCase:
    """One compilation of a kernel.

    `types` names every argument's type in order: "*bf16", "*fp32", "*i32", "*i64", "*fp8e4nv", "*i8", "*u8", "i32",
    "fp32"; arguments that `constants` names need none. Pointers are taken as multiples of 16 bytes, which torch's are.
    """

    name: str
    kernel: Any  # the decorated function
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    may_spill: int = 0  # bytes of local memory a thread may use; say why where it is not 0
    wants: tuple[str, ...] = ()  # opcodes that the machine code must hold, such as "HGMMA"
    divisible: tuple[str, ...] = field(default=())  # integers that are multiples of 16


def compile_case(case: AotCase) -> dict[str, Any]:
    """Sizes of one compiled case, in bytes where not said; raises what triton raises."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    unknown = {*case.types, *case.constants} - set(names)
    missing = set(names) - {*case.types, *case.constants}
    assert not unknown | missing, f"{case.name}: unknown {sorted(unknown)}, missing {sorted(missing)}"
    signature = {n: "constexpr" if n in case.constants else case.types[n] for n in names}
    constants = {(i,): case.constants[n] for i, n in enumerate(names) if n in case.constants}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in case.divisible]
    source = ASTSource(case.kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    usage = _cuobjdump("-res-usage", compiled.asm["cubin"])
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}
    return {
        "name": case.name,
        "registers": numbers["REG"],
        "stack": numbers["STACK"],
        "local": numbers["LOCAL"],
        "shared": int(compiled.metadata.shared),
        "missing": [op for op in case.wants if op not in _cuobjdump("-sass", compiled.asm["cubin"])],
    }


def problems(case: AotCase, sizes: Mapping[str, Any]) -> list[str]:
    """What is wrong with a compiled case."""
    found = []
    if sizes["shared"] > SHARED_LIMIT:
        found.append(f"{sizes['shared']} bytes of shared memory")
    if sizes["registers"] > REGISTER_LIMIT:
        found.append(f"{sizes['registers']} registers")
    if sizes["stack"] + sizes["local"] > case.may_spill:
        found.append(f"spills: {sizes['stack']} bytes of stack, {sizes['local']} of local memory")
    found += [f"no {op} in the machine code" for op in sizes["missing"]]
    return found


def modules() -> list[str]:
    return sorted(f"tests.kernels.gpu.{file.stem}" for file in Path(__file__).parent.glob("aot_*.py"))


def run(names: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """This module in a process of its own, as tests start it."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    command = [sys.executable, "-m", "tests.kernels.gpu.aot", *names]
    root = Path(__file__).parents[3]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)


def main(names: Sequence[str]) -> int:
    failed = 0
    for name in names or modules():
        for case in importlib.import_module(name).CASES:
            try:
                sizes = compile_case(case)
                sizes["problems"] = problems(case, sizes)
            except Exception as error:  # noqa: BLE001 - one case is one row of the report
                sizes = {"name": case.name, "problems": [f"{type(error).__name__}: {error}"[-2000:]]}
            sizes["module"] = name
            failed += bool(sizes["problems"])
            print(json.dumps(sizes), flush=True)  # noqa: T201
    return 1 if failed else 0


def _cuobjdump(what: str, cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), what, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
