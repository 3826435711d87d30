"""The study with one command."""

from __future__ import annotations

import pytest

from reweighting.reproduce import __main__ as reproduce
from reweighting.reproduce.tables import MAIN_METHODS


def test_the_papers_study_names_the_files_it_needs(tmp_path, capsys):
    assert reproduce.main(["--config", "paper", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    for name in ("train.json", "meta.json", "validation.json", "WeMath.json", "MMStar.json"):
        assert f"paper/{name}" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_without_the_program_is_named_in_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reproduce.main(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "main.py" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_demo_study_writes_every_table_and_is_not_repeated(tmp_path):
    flags = ["--seeds", "1", "--iterations", "4", "--work", str(tmp_path / "work")]
    assert reproduce.main([*flags, "--out", str(tmp_path / "a")]) == 0
    text = (tmp_path / "a" / "RESULTS.md").read_text()
    for method in MAIN_METHODS:
        assert f"| {method} |" in text
    assert "without aggregation loss" in text and "N = 4" in text and "| last |" in text
    for name in ("scaling.png", "weights_by_seed.png"):
        assert (tmp_path / "a" / name).stat().st_size > 5000
    finished = [p.stat().st_mtime for p in (tmp_path / "work").glob("*/seconds.json")]
    assert reproduce.main([*flags, "--out", str(tmp_path / "b")]) == 0
    assert finished == [p.stat().st_mtime for p in (tmp_path / "work").glob("*/seconds.json")]
