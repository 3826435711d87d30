"""The study in the world of overlapping sources."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.reproduce import __main__ as reproduce
from reweighting.reproduce import sources
from reweighting.reproduce.configs import DEMO
from reweighting.reproduce.sources import ROWS, outcome_records
from reweighting.reproduce.sources_tables import SourcesResults
from reweighting.reproduce.study import CommandFailed, Setup, Study
from reweighting.system.files import read_json, write_json, write_records
from tests.conftest import REPOSITORY

DATA = REPOSITORY / "data"
SETS = ("errors", "mix")


def test_a_meta_set_as_training_data_has_a_record_for_every_prefix(tmp_path):
    records = outcome_records(DATA / "meta.json", DATA)
    write_records(tmp_path / "train.json", records)
    train = load_train(RecordReader(str(tmp_path / "train.json"), str(DATA)))
    meta, _ = load_meta(RecordReader(str(DATA / "meta.json"), str(DATA)))
    read = iter(train)
    for chain in meta:
        for prompt in chain.prompts:
            sample = next(read)
            assert sample.prompts == [prompt] and sample.images == chain.images
            assert sample.accuracies == [float(chain.true_false)]
    assert next(read, None) is None


def test_a_seed_has_data_and_flags_of_its_own(tmp_path):
    commands = []
    setup = replace(DEMO, train=tmp_path / "world_{seed}" / "train.json")
    flags = {"vanilla PRM": ["--domain_weights", "{work}/world_{seed}/quality.json"]}
    study = Study(setup, tmp_path, flags, [3], run=lambda words: commands.append(words) or 1)
    with pytest.raises(Exception, match="vanilla_PRM_seed3"):
        study.train()
    assert str(tmp_path / "world_3" / "train.json") in commands[0]
    assert str(tmp_path / "world_3" / "quality.json") in commands[0]
    assert commands[0][-2:] == ["--domain_weights", str(tmp_path / "world_3" / "quality.json")]


@pytest.fixture
def results(tmp_path) -> SourcesResults:
    """Two pairs, three sources, four questions: vanilla takes half of them, ranking all."""

    def outcome(share: float, weights: dict | None) -> dict:
        by_size = {"1": [0.5] * 4, "8": [share, share, 1.0, 1.0]}
        methods = {name: by_size for name in ("mean_log_odds", "last", "one sample", "majority")}
        methods["oracle"] = {"1": [0.5] * 4, "8": [1.0] * 4}
        right = {name: methods for name in ("validation", *SETS)}
        curve = {"100": 0.5, "200": share}
        found = {"weights": weights, "seconds": 1.0, "curve": curve}
        return found | {"right": {"last": right, "best": right}}

    card = [
        {"name": "source_a", "quality": 1.0, "mean_label": 0.2},
        {"name": "source_b", "quality": 0.6, "mean_label": 0.9},
        {"name": "source_c", "quality": 0.1, "mean_label": 0.5},
    ]
    for seed in (1, 2):
        write_json(tmp_path / f"world_{seed}" / "sources" / "domains.json", card)
    right_order = {"source_a": 2.0, "source_b": 1.0, "source_c": 0.1}
    by_label = {"source_a": 0.1, "source_b": 2.0, "source_c": 1.0}
    outcomes = {
        "vanilla PRM": [outcome(0.0, None)] * 2,
        "ranking loss": [outcome(1.0, right_order)] * 2,
        "published loss": [outcome(0.0, by_label)],
    }
    return SourcesResults(outcomes, [tmp_path / "world_1", tmp_path / "world_2"], SETS)


def test_the_figures_are_those_that_the_page_shows(results, tmp_path):
    results.draw(tmp_path)
    for name in re.findall(r"\((\w+\.png)\)", results.text("a command")):
        assert (tmp_path / name).stat().st_size > 10_000


def test_worlds_are_compared_by_what_was_kept_of_them(results, tmp_path, capsys):
    for misled in (0.2, 0.4):
        folder = tmp_path / f"kept_{misled}"
        settings = asdict(sources.World(misled=misled)) | {"base": "b", "iterations": 6}
        write_json(folder / "settings.json", settings)
        for row, runs in results.outcomes.items():
            for seed, run in enumerate(runs, 1):
                write_records(folder / sources.file_name(row, seed), [run])
    command = ["--config", "sources", "--out", str(tmp_path / "out"), "--compare"]
    assert reproduce.main([*command, *map(str, sorted(tmp_path.glob("kept_*")))]) == 0
    lines = (tmp_path / "out" / "WORLDS.md").read_text().splitlines()
    assert lines[0].endswith("| published loss | ranking loss |")
    assert lines[2].startswith("| 20 % | 10 | 500 | 2 | 50.0 | +0.0") and "| +50.0" in lines[3]
    assert (tmp_path / "out" / "gain_by_misled.png").stat().st_size > 10_000
    assert not (tmp_path / "out" / "RESULTS.md").exists()
    assert reproduce.main([*command, str(tmp_path)]) == 2
    assert "settings.json" in capsys.readouterr().err


def test_the_gain_is_over_the_pairs_that_both_rows_have(results):
    assert results.gain("ranking loss", "best").tolist() == [[100.0, 100.0, 0, 0] * 2] * 2
    assert results.gain("published loss", "best").shape == (1, 8)
    table = "\n".join(results.accuracy("best"))
    assert "| vanilla PRM | 2 | 50.0 | 50.0 | 50.0 | 50.0" in table
    assert "+50.0 (+" in table and np.isclose(results.average("oracle", "last").mean(), 100)


def test_the_weights_are_compared_with_quality_and_with_mean_label(results):
    lines = results.weights()
    assert not any("vanilla" in line for line in lines)
    assert "| ranking loss | 1.00 | 1.00 | -0.50 | -0.50 | -0.50 |" in lines
    assert "| published loss | -0.50 | -0.50 | 1.00 | 1.00 | 1.00 |" in lines


def study_flags(folder: Path) -> list[str]:
    return ["--config", "sources", "--out", str(folder / "out"), "--work", str(folder / "work")]


def test_runs_of_other_settings_are_not_mixed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sources, "make_world", lambda *_: None)

    def no_run(*_):
        raise CommandFailed("nothing is trained here")

    monkeypatch.setattr(sources.Kept, "run", no_run)
    flags = study_flags(tmp_path)
    assert reproduce.main([*flags, "--misled", "0.2"]) == 1
    capsys.readouterr()
    assert reproduce.main([*flags, "--misled", "0.3"]) == 2
    assert "have misled 0.2, not 0.3" in capsys.readouterr().err
    kept = ["--kept", str(tmp_path / "work" / "kept"), "--work", str(tmp_path / "other")]
    assert reproduce.main([*flags, *kept, "--iterations", "5"]) == 2
    assert "kept/settings.json" in capsys.readouterr().err


def test_a_world_that_cannot_be_made_leaves_no_settings_behind(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)
    flags = study_flags(tmp_path)
    assert reproduce.main([*flags, "--meta_chains", "21"]) == 1
    assert "--meta_chains must be an even number" in capfd.readouterr().err
    assert not list((tmp_path / "work").rglob("settings.json"))


@pytest.mark.parametrize("flag", ["--seeds", "--iterations"])
def test_a_count_below_one_is_refused(tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        reproduce.main([flag, "0", "--out", str(tmp_path)])
    assert f"{flag}: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config", "sources", "--leave_out", "ORM"], "--leave_out is not for --config sources"),
        (["--misled", "0.3"], "--misled is for --config sources"),
        (["--same_quality"], "--same_quality is for --config sources"),
        (["--rows", "ORM"], "--rows is for --config sources"),
        (["--config", "sources", "--compare", "a", "--rows", "ORM"], "leave out --rows"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(tmp_path, capsys, flags, said):
    assert reproduce.main([*flags, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["nan", "-0.1", "1.5"])
def test_a_share_beyond_its_bounds_is_refused(tmp_path, capsys, value):
    with pytest.raises(SystemExit):
        reproduce.main(["--config", "sources", "--misled", value, "--out", str(tmp_path)])
    assert "--misled: must be at " in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--base", "--out"])
def test_a_place_that_cannot_be_used_is_named_before_anything_is_made(
    tmp_path, capsys, flag, monkeypatch
):
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "file").write_text("")
    bad = str(tmp_path / "file" / "within")
    flags = {"--out": str(tmp_path / "out"), "--work": str(tmp_path / "work"), flag: bad}
    words = [word for pair in flags.items() for word in pair]
    assert reproduce.main(["--config", "sources", *words]) == 2
    assert flag in capsys.readouterr().err and not (tmp_path / "work").exists()


@pytest.mark.slow
def test_the_study_keeps_its_outcomes_and_goes_on_from_them(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    full = sources.setup

    def shorter(file: Path) -> Path:
        """Ten of the questions of a set."""
        write_records(tmp_path / file.name, read_json(file)[:10])
        return tmp_path / file.name

    def small(*arguments) -> Setup:
        whole = full(*arguments)
        sets = {name: shorter(file) for name, file in whole.sets.items()}
        return replace(whole, sets=sets, validation=shorter(whole.validation))

    monkeypatch.setattr(sources, "setup", small)
    rows = ["ranking loss", "two stages", "meta set as training data"]
    flags = ["--config", "sources", "--seeds", "1", "--iterations", "6", "--rows", *rows]
    flags += ["--kept", str(tmp_path / "kept")]
    work = ["--work", str(tmp_path / "work")]
    assert reproduce.main([*flags, *work, "--out", str(tmp_path / "a")]) == 0
    text = (tmp_path / "a" / "RESULTS.md").read_text()
    for row in ("vanilla PRM", *rows):
        assert f"| {row} |" in text
    kept = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert len(kept) == 5 and set(rows) < set(ROWS)  # and settings.json
    [ranked] = read_json(tmp_path / "kept" / "ranking_loss_seed1.json")
    learned = ranked["weights"]
    assert len(set(learned.values())) > 1
    second = json.loads((tmp_path / "work" / "two_stages_seed1" / "arguments.json").read_text())
    assert read_json(Path(second["domain_weights"])) == learned

    # Elsewhere, with nothing but what was kept, nothing is trained again.
    work = ["--work", str(tmp_path / "elsewhere")]
    assert reproduce.main([*flags, *work, "--out", str(tmp_path / "b")]) == 0
    assert not list((tmp_path / "elsewhere").glob("*seed1/checkpoints"))
    tables = [(tmp_path / name / "RESULTS.md").read_text().split("\n", 3)[3] for name in "ab"]
    assert tables[0] == tables[1]
