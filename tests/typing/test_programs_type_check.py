"""The programs beside this file exist to be read by mypy (strict), which `make types` runs over the whole repository.

A `type: ignore[code]` in them is a check too: strict mypy reports it as unused once the mistake is accepted.
"""

from __future__ import annotations

import importlib

import pytest


@pytest.mark.parametrize("name", ["programs", "mistakes"])
def test_a_program_that_type_checks_can_also_be_imported(name: str) -> None:
    importlib.import_module(f"tests.typing.{name}")
