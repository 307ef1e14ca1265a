"""What is public is exported, documented and there."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

import palmette
from palmette import errors
from palmette.errors import PalmetteError

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.md"


def test_the_reference_lists_every_public_name_once_and_no_other() -> None:
    text = REFERENCE.read_text(encoding="utf-8").split("## Beside the language")[0]
    listed = re.findall(r"^\| `(\w+)` \| \S", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(palmette.__all__)


def test_no_public_name_is_exported_twice() -> None:
    assert len(set(palmette.__all__)) == len(palmette.__all__)


@pytest.mark.parametrize("name", palmette.__all__)
def test_a_public_name_exists_and_says_what_it_is(name: str) -> None:
    thing = getattr(palmette, name)
    assert (inspect.getdoc(thing) or "").strip()
    assert not (inspect.getdoc(thing) or "").startswith(f"{name}("), "a dataclass without a docstring of its own"


def test_nothing_public_stands_beside_the_list() -> None:
    modules = {name for name, thing in vars(palmette).items() if inspect.ismodule(thing)}
    stray = {name for name in vars(palmette) if not name.startswith("_")} - set(palmette.__all__) - modules
    assert stray <= {"TYPE_CHECKING", "Any"}


def test_every_error_is_public_and_hangs_in_the_tree() -> None:
    classes = {
        name for name, thing in vars(errors).items() if inspect.isclass(thing) and issubclass(thing, PalmetteError)
    }
    assert classes == set(errors.__all__)
    drawn = re.findall(r"[|`]- +(\w+)", errors.__doc__ or "")
    assert {"PalmetteError", *drawn} == classes


def test_the_version_is_that_of_the_distribution() -> None:
    pyproject = (REFERENCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{palmette.__version__}"' in pyproject
