"""What `palmette doctor` tells: which code computes here, and why not a faster one. Loads nothing heavy but numpy."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib import metadata, util

from palmette import __version__
from palmette.errors import InvalidOption, ModelNotFound
from palmette.native import NotBuilt

_PACKAGES = ("torch", "numpy", "tokenizers", "triton", "llguidance", "transformers")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    state: str
    advice: str = ""  # what would make it better; empty when nothing is amiss

    def __str__(self) -> str:
        return f"{self.subject:<14} {self.state}" + (f"\n{'':<14} -> {self.advice}" if self.advice else "")


def examine() -> list[Finding]:
    """Look at this installation; changes nothing."""
    return [
        Finding("palmette", f"{__version__} on Python {platform.python_version()}, {platform.machine()}"),
        Finding("packages", ", ".join(_versions())),
        Finding("CPU threads", str(_usable_cpus())),
        _cpu_core(),
        _automaton(),
        _gpu(),
        _embedded_model(),
        _kept(),
    ]


def _versions() -> list[str]:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_core() -> Finding:
    from palmette.kernels.cpu.library import choose_instruction_set, library

    subject, slower = "CPU decoder", "torch in float32, several times slower than the compiled core"
    try:
        chosen = choose_instruction_set("auto")
    except NotBuilt as error:
        return Finding(subject, slower, str(error))
    except InvalidOption as error:
        return Finding(subject, "none: models do not load", str(error))
    return Finding(subject, f"compiled, {chosen} (this CPU runs {', '.join(library().instruction_sets)})")


def _automaton() -> Finding:
    from palmette.fsm.native import why_not_native

    reason = why_not_native()
    if reason is None:
        return Finding("constraints", "compiled")
    return Finding("constraints", "Python, slower at the first visit of a state than the compiled walk", reason)


def _gpu() -> Finding:
    if util.find_spec("torch") is None:
        return Finding("GPU", "unknown, torch is missing", "install torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("GPU", "none that torch can use")
    name = torch.cuda.get_device_name()
    if util.find_spec("triton") is None:
        return Finding("GPU", f"{name}, by torch, many times slower than Triton's kernels", "install triton")
    return Finding("GPU", f'{name}, by Triton\'s kernels; device="cpu" leaves it alone')


def _embedded_model() -> Finding:
    from palmette.runtime.models.load import EMBEDDED, find_model

    try:
        path, _ = find_model(EMBEDDED)
    except ModelNotFound as error:
        return Finding("smollm2", "not installed", str(error))
    return Finding("smollm2", f"installed ({path.name})")


def _kept() -> Finding:
    from palmette.runtime.models.tile_cache import cache_folder

    folder = cache_folder()
    if folder is None:
        return Finding("kept", "nothing: PALMETTE_CACHE=0 is set, or there is no home")
    size = sum(file.stat().st_size for file in folder.glob("tiles/*.tiles"))
    return Finding("kept", f"{size >> 20} MB of packed weights in {folder / 'tiles'}, which may be removed")
