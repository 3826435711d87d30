"""Does the method do in the demo world what it is for? And does the experiment measure it?"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import main as program
from benchmarks.commands import shown
from tests.conftest import REPOSITORY, TINY

DATA = REPOSITORY / "data"


def test_the_worst_domains_lose_weight(tmp_path):
    """A minute of training: both inverted domains end below every sound one."""
    flags = [
        *("--train_json_file", str(DATA / "train.json"), "--image_root", str(DATA)),
        *("--meta_json_file", str(DATA / "meta.json"), "--weights_path", str(tmp_path / "run")),
        *("--reward_model", str(TINY), "--device", "cpu", "--precision", "fp32"),
        *("--batch_by", "cot", "--batch_size", "8", "--meta_batch_size", "8"),
        *("--unroll_steps", "2", "--lr", "2e-4", "--meta_lr", "0.05", "--weight_decay", "0"),
        *("--iteration_num", "80", "--num_workers", "0"),
    ]
    assert program.main(flags) == 0
    weights = json.loads((tmp_path / "run" / "domain_weights.json").read_text())
    quality = {d["name"]: d["quality"] for d in json.loads((DATA / "domains.json").read_text())}
    sound = [weight for name, weight in weights.items() if quality[name] >= 0.85]
    assert weights["taller_bar"] < 0.8 and weights["polygon_sides"] < 0.8
    assert max(weights["taller_bar"], weights["polygon_sides"]) < min(sound)


def test_a_printed_command_is_what_a_shell_runs():
    command = ["-m", "reweighting.selection", "--candidates", "a b.json", *["long/name.json"] * 9]
    lines = shown([*command, "--weights_path", "run"]).splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) > 1
    typed = "\n".join(lines).replace("$ python", "printf '%s\\n'")
    words = subprocess.run(["sh", "-c", typed], check=True, capture_output=True, text=True).stdout
    assert words.splitlines() == [*command, "--weights_path", "run"]


@pytest.mark.slow
def test_the_demo_prints_every_command_that_it_runs(tmp_path):
    """Each command stands in the output as it can be typed; then come the tables."""
    command = [sys.executable, "-m", "benchmarks.demo", "--work", str(tmp_path / "demo")]
    command += ["--iterations", "2", "--sets", "errors"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for program_, count in (
        ("main.py --preset demo", 4),
        ("-m reweighting.selection", 2),
        ("-m reweighting.figures", 1),
        ("-m reweighting.report", 1),
    ):
        assert done.stdout.count(f"\n$ python {program_}") == count
    tables = done.stdout.split("$ python")[-4]
    seen = done.stdout.split("\n\n$ python")[-2].splitlines()[-3:]
    assert [line.split(":")[0] for line in seen[:2]] == ["published loss", "ranking loss"]
    assert seen[2].startswith("of the two sound sources")
    assert "| reweighted | 1 |" in tables and "| taller_bar | 0.10 |" in tables
    assert "| errors |" in tables and "- reweighted - vanilla:" in tables
    assert "Warning" not in done.stderr and "Loading weights" not in done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith(f"{tmp_path / 'demo' / 'report.html'}: 400 questions, 400 images")
    for name in ("small_world.png", "weights_over_time.png"):
        assert (tmp_path / "demo" / "figures" / name).stat().st_size > 10_000


@pytest.mark.slow
def test_the_experiment_reports_and_is_not_repeated(tmp_path):
    def run() -> str:
        command = [
            *(sys.executable, "-m", "benchmarks.small_world", "--seeds", "2", "--iterations", "4"),
            *("--variants", "vanilla", "reweighted", "--sets", "validation"),
            *("--work", str(tmp_path / "work"), "--output", str(tmp_path / "tables.md")),
            *("--figure", str(tmp_path / "figure.png")),
        ]
        subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
        return (tmp_path / "tables.md").read_text()

    text = run()
    assert "| reweighted | 2 |" in text and "| taller_bar | 0.10 |" in text
    assert "signal to noise" in text and "- reweighted - vanilla:" in text
    assert "reweighted, blank image" in text and (tmp_path / "figure.png").stat().st_size > 10_000
    finished = tmp_path / "work" / "reweighted_seed2" / "seconds.json"
    before = finished.stat().st_mtime
    assert run() == text and finished.stat().st_mtime == before
