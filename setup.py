"""The two optional shared libraries: everything else about the package is in pyproject.toml.

Plain C functions behind `ctypes` (see palmette/native.py), so that a C++17 compiler is all a build needs, not even
Python's headers. Without one, or with PALMETTE_BUILD_NATIVE=0, the package installs all the same and computes with
torch and Python; `palmette doctor` then says so.
"""

from __future__ import annotations

import os
import platform
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-pthread"]
# One file per instruction set, chosen between at run time. Nothing is compiled for the machine that builds.
INSTRUCTION_SETS = {
    "avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "avx512.cpp": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"],
}


class BuildLibraries(build_ext):
    """Libraries without a Python module's entry point, and flags by file."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".native"  # a name that nobody takes for a Python module

    def build_extensions(self) -> None:
        compile_one: Any = self.compiler._compile
        is_cross = "-arch arm64" in os.environ.get("ARCHFLAGS", "")
        is_x86 = platform.machine().lower() in ("x86_64", "amd64") and not is_cross

        def with_flags(obj: str, src: str, ext: str, cc_args: Any, extra: list[str], pp_opts: Any) -> None:
            flags = INSTRUCTION_SETS.get(os.path.basename(src), []) if is_x86 else []
            compile_one(obj, src, ext, cc_args, [*extra, *flags], pp_opts)

        self.compiler._compile = with_flags
        super().build_extensions()


def library(name: str, folder: str) -> Extension:
    """All the C++ of a folder."""
    return Extension(
        name,
        sources=sorted(glob(f"{folder}/*.cpp")),
        depends=sorted(glob(f"{folder}/*.h")),
        language="c++",
        extra_compile_args=FLAGS,
        extra_link_args=["-pthread"],
        optional=True,
    )


LIBRARIES = [
    library("palmette.kernels.cpu._core", "palmette/kernels/cpu"),
    library("palmette.fsm._automaton", "palmette/fsm"),
]

setup(
    ext_modules=[] if os.environ.get("PALMETTE_BUILD_NATIVE") == "0" else LIBRARIES,
    cmdclass={"build_ext": BuildLibraries},
)
