"""`palmette doctor` says which code computes, and why not a faster one."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from palmette.cli import app
from palmette.doctor import examine


def told() -> dict[str, str]:
    return {finding.subject: str(finding) for finding in examine()}


def test_every_subject_is_told_once() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    for subject in ("palmette", "CPU decoder", "constraints", "GPU", "smollm2", "kept"):
        assert sum(line.startswith(subject) for line in result.output.splitlines()) == 1


def test_switched_off_code_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALMETTE_NATIVE", "0")
    found = told()
    # What was loaded before stays loaded; what is asked anew says why.
    assert "-> PALMETTE_NATIVE=0 is set" in found["constraints"]


def test_an_instruction_set_that_does_not_run_here_is_no_surprise_later(monkeypatch: pytest.MonkeyPatch) -> None:
    if "compiled" not in told()["CPU decoder"].split("than")[0]:
        pytest.skip("no compiled core here")
    monkeypatch.setenv("PALMETTE_CPU_KERNELS", "mmx")
    assert "models do not load" in told()["CPU decoder"]
    monkeypatch.setenv("PALMETTE_CPU_KERNELS", "torch")
    assert "PALMETTE_CPU_KERNELS=torch is set" in told()["CPU decoder"]


def test_what_is_kept_on_disk_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PALMETTE_CACHE", str(tmp_path))
    assert told()["kept"].split()[1:3] == ["0", "MB"]
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "x.tiles").write_bytes(bytes(3 << 20))
    assert told()["kept"].split()[1:3] == ["3", "MB"]
    assert str(tmp_path) in told()["kept"]
    monkeypatch.setenv("PALMETTE_CACHE", "0")
    assert "PALMETTE_CACHE=0" in told()["kept"]
