"""Makes the clients' environments with venv and pip, and uses them again while their requirements are the same."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from tests.clients.groups import Group


class CannotInstall(Exception):
    """pip said no; its words are the message."""


def python_of(group: Group, cache: Path) -> Path:
    """The interpreter of a group's environment under `cache`, which is made where it is not there as wanted.

    Raises:
        CannotInstall
    """
    home = cache / group.name
    python = home / "bin" / "python"
    stamp, wanted = home / "requirements.sha256", fingerprint(group)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(home, with_pip=True, clear=True)
    _pip(python, "-r", str(group.requirements))
    if group.no_deps.exists():
        _pip(python, "--no-deps", "-r", str(group.no_deps))
    stamp.write_text(wanted)
    return python


def fingerprint(group: Group) -> str:
    """What an environment is made from: the requirements and the Python that makes it."""
    files = [f.read_bytes() for f in (group.requirements, group.no_deps) if f.exists()]
    return hashlib.sha256(b"\0".join([sys.version.encode(), *files])).hexdigest()


def _pip(python: Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotInstall(done.stderr.strip()[-2000:])
