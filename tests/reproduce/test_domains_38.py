"""The recipe from published files to a judged benchmark, on the demo's world in their layouts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import main as program
from data.make_demo import DOMAINS
from reweighting.evaluate import __main__ as evaluation
from reweighting.evaluate import results
from reweighting.exchange import __main__ as exchange
from reweighting.reproduce import __main__ as reproduce
from reweighting.reproduce import domains_38
from reweighting.reproduce.study import run_quietly
from reweighting.system.files import read_json
from reweighting.system.record_files import read_records
from tests.conftest import REPOSITORY
from tests.support.published_world import write_benchmark, write_raw

PROGRAMS = {
    "main.py": program.main,
    "reweighting.exchange": exchange.main,
    "reweighting.evaluate": evaluation.main,
}
QUICK = "--preset demo --num_workers 0 --lr 5e-4 --batch_size 4 --meta_batch_size 2 --eval_every 8"


def files(folder: Path, questions: int, domains, judged: int) -> list[str]:
    """Flags that name published files, written into a folder."""
    return [
        *("--config", "domains_38", "--out", str(folder / "out"), "--work", str(folder / "work")),
        *("--annotations", str(write_raw(folder / "raw", questions, domains))),
        *("--train_images", str(folder / "raw"), "--device", "cpu", "--seeds", "1"),
        *("--benchmark", str(write_benchmark(folder / "bench", judged))),
        *("--benchmark_images", str(folder / "bench")),
    ]


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """What the recipe has run, in this process, which saves the imports of nine others."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(results.measure, "__defaults__", (20,))
    done: list[list[str]] = []

    def run(words: Sequence[str]) -> int:
        words = [word for word in words if word != "-m"]
        done.append(words)
        return PROGRAMS[words[0]](words[1:])

    monkeypatch.setattr(domains_38.reproduce, "__defaults__", (run,))
    return done


def auroc_of(folder: Path) -> dict[str, float]:
    """Of all steps of the benchmark, by the name of the run."""
    found = folder.glob("work/*/judged/results.json")
    return {
        file.parts[-3]: read_json(file)["rows"]["model"]["all steps"]["auroc"]["value"]
        for file in found
    }


def test_converted_files_teach_which_steps_are_right(tmp_path, commands, capsys):
    flags = files(tmp_path, 3, DOMAINS[:5], judged=20)
    flags += ["--held_out", "12", "--iterations", "8", "--train_flags", QUICK]
    assert reproduce.main(flags) == 0
    assert len(commands) == 1 + 4 + 4
    auroc = auroc_of(tmp_path)
    assert auroc["all_data_seed1"] > 0.9 and auroc["DreamPRM_seed1"] > 0.9
    text = (tmp_path / "out" / "RESULTS.md").read_text()
    for row in (*domains_38.ROWS, "random", "always right"):
        assert f"\n| {row} |" in text
    assert "| row | MMMU | MathVision |" in text and "VisualPRM-8B 62.0" in text
    weights = read_json(tmp_path / "work" / "DreamPRM_seed1" / "domain_weights.json")
    assert len(set(weights.values())) > 2
    assert all(f"\n| {name} | {weight:.2f} |" in text for name, weight in weights.items())
    assert f"| {100 * auroc['DreamPRM_seed1']:.1f} (" in text

    # Every row has its part of the data, and its threshold from the held-out file.
    own = {name: (tmp_path / "work" / name) for name in auroc}
    arguments = {name: read_json(run / "arguments.json") for name, run in own.items()}
    assert arguments["BIS_10_%_seed1"]["train_subset"] == "bis"
    assert arguments["random_10_%_seed1"]["subset_share"] == 0.1
    assert {a["learn_weights"] for n, a in arguments.items() if "Dream" not in n} == {False}
    assert arguments["DreamPRM_seed1"]["learn_weights"]
    validation = str(tmp_path / "work" / "data" / "train_validation.jsonl")
    judged = [read_json(run / "judged" / "results.json") for run in own.values()]
    assert {found["threshold_from"] for found in judged} == {validation}
    assert len({found["threshold"] for found in judged}) > 1
    questions = [
        {record["input"] for record in read_records(tmp_path / "work" / "data" / name)}
        for name in ("train.jsonl", "train_meta.jsonl")
    ]
    questions.append({record["question"] for record in read_records(validation)})
    assert all(questions) and not set.intersection(*questions)

    # What is done is not done again; what is missing is.
    commands.clear()
    (own["BIS_10_%_seed1"] / "judged" / "results.json").unlink()
    assert reproduce.main(flags) == 0
    assert [words[0] for words in commands] == ["reweighting.evaluate"]
    capsys.readouterr()
    assert reproduce.main([*flags, "--held_out", "14"]) == 2
    assert "the runs here have held_out 12, not 14" in capsys.readouterr().err


def test_without_mixed_questions_there_is_no_threshold_and_nothing_is_trained(
    tmp_path, commands, capsys
):
    flags = files(tmp_path, 8, DOMAINS[:1], judged=1)
    rows = (tmp_path / "raw" / "annotations" / "colour_cell.jsonl").read_text().splitlines()
    one = [json.loads(row) for row in rows][::4]  # a chain a question
    path = tmp_path / "raw" / "annotations" / "colour_cell.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in one))
    assert reproduce.main([*flags, "--held_out", "2"]) == 1
    assert "no validation set to choose thresholds on" in capsys.readouterr().err
    assert [words[0] for words in commands] == ["reweighting.exchange"]


def test_an_interrupted_training_goes_on(tmp_path, commands, monkeypatch):
    monkeypatch.setattr(domains_38, "ROWS", {"DreamPRM": []})
    flags = files(tmp_path, 3, DOMAINS[:2], judged=4)
    flags += ["--held_out", "4", "--iterations", "4"]
    flags += ["--train_flags", f"{QUICK} --save_every_iterations 2"]
    assert reproduce.main(flags) == 0
    run = tmp_path / "work" / "DreamPRM_seed1"
    (run / "seconds.json").unlink()  # as if it had been killed before its end
    commands.clear()
    assert reproduce.main(flags) == 0
    [words] = commands
    assert words[0] == "main.py" and words[-1] == "--resume"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--benchmark", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--train_flags", "--lr '1e-3"], "--train_flags: No closing quotation"),
        (["--misled", "0.2"], "--misled is for --config sources"),
        (["--leave_out", "ORM"], "--leave_out is not for --config domains_38"),
        (["--config", "demo"], "--annotations is for --config domains_38"),
        (["--config", "sources"], "--annotations is for --config domains_38"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(tmp_path, commands, capsys, change, said):
    assert reproduce.main([*files(tmp_path, 1, DOMAINS[:1], judged=1), *change]) == 2
    assert said in capsys.readouterr().err and not commands
    assert not (tmp_path / "out").exists() and not (tmp_path / "work").exists()


def test_the_files_that_are_needed_are_named(tmp_path, commands, capsys):
    assert reproduce.main(["--config", "domains_38", "--out", str(tmp_path / "out")]) == 2
    needed = "--annotations, --train_images, --benchmark, --benchmark_images"
    assert f"--config domains_38 needs {needed}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_recipe_learns_from_spoiled_sources_in_processes_of_its_own(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(REPOSITORY)
    assert domains_38.reproduce.__defaults__ == (run_quietly,)
    flags = files(tmp_path, 40, DOMAINS, judged=100)
    flags += ["--held_out", "60", "--iterations", "60"]
    flags += ["--train_flags", "--preset demo --num_workers 1"]
    assert reproduce.main(flags) == 0
    auroc = auroc_of(tmp_path)
    assert len(auroc) == 4 and auroc["DreamPRM_seed1"] > 0.9
    weights = read_json(tmp_path / "work" / "DreamPRM_seed1" / "domain_weights.json")
    sound = [weights[domain.name] for domain in DOMAINS if domain.share == 0]
    spoiled = [weights[domain.name] for domain in DOMAINS if domain.share > 0.5]
    assert sum(sound) / len(sound) > sum(spoiled) / len(spoiled)
