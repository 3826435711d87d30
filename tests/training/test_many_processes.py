"""Several processes compute what one process with the whole batch computes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from reweighting.bilevel.batches import QuestionStream, Share, ShuffledStream
from reweighting.system.processes import Processes
from tests.bilevel.test_ranking import ranked_samples, with_rivals
from tests.conftest import command
from tests.support.many_processes import distances, recorded, torchrun
from tests.training.test_training import metrics_of, train, weights_of

# What differs from the usual run, with 2 train records and 2 meta chains a process.
SCENARIOS = {
    "domains": "--max_grad_norm 0.01 --gradient_accumulation 2 --cold_start_iterations 2",
    "records": "--reweighting instance_table --batch_by cot --meta_loss bce",
    "net": "--reweighting instance_net --hypergradient_batches all --meta_target prefix",
    "rank": "--meta_loss rank",
}
LONGER = {  # with 20 bilevel cycles
    **SCENARIOS,
    "plus_minus": "--score_head plus_minus --loss mse --batch_by cot",
    "darts": "--hypergradient darts --meta_max_grad_norm 1e-6",
    "own_features": "--reweighting instance_net --no_detach_features --lora_rank 4",
}


def flags_of(data: Path, folder: Path, scenario: str, processes: int, whole: int, *more: str):
    """The arguments of a run in which so many processes share ``whole`` records and chains."""
    size = str(whole // processes)
    strategy = ["--strategy", "distributed"] if processes > 1 else []
    if "rank" in scenario:
        more = ("--meta_json_file", str(data / "rivals.json"), *more)
    return command(
        *(data, folder / "run", *strategy, "--batch_size", size, "--meta_batch_size", size),
        *(*scenario.split(), "--meta_lr", "0.1", *more),
    )


def launched(folder: Path, plan: dict, processes: int = 2) -> str:
    """What a plan of tests/support/many_processes.py prints in several processes."""
    (folder / "plan.json").write_text(json.dumps(plan))
    words = ("-m", "tests.support.many_processes", str(folder / "plan.json"), str(folder))
    started = torchrun(processes, *words)
    said, _ = started.communicate(timeout=1500)
    assert started.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def data(dataset) -> Path:
    with_rivals(dataset, dataset / "rivals.json")
    return dataset


@pytest.fixture(scope="module")
def together(data, tmp_path_factory) -> Path:
    """Recorded steps of all scenarios in two processes, and a run that is interrupted."""
    folder = tmp_path_factory.mktemp("together")
    cycles = {
        name: (flags_of(data, folder, flags, 2, 4, "--iteration_num", "4"), True)
        for name, flags in SCENARIOS.items()
    }
    run = ["--strategy", "distributed", "--batch_size", "2", "--meta_batch_size", "1"]
    runs = [
        command(data, folder / "run", *run, "--iteration_num", "3"),
        command(data, folder / "run", *run, "--iteration_num", "6", "--resume", "--dry_run"),
        command(data, folder / "run", *run, "--iteration_num", "6", "--resume"),
    ]
    (folder / "said").write_text(launched(folder, {"cycles": cycles, "runs": runs}))
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_take_the_steps_of_one(data, together, tmp_path, name):
    argv = flags_of(data, tmp_path, SCENARIOS[name], 1, 4, "--iteration_num", "4")
    alone = recorded(argv, Processes(), double=True)
    first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in (0, 1))
    assert max(distances(first, alone).values()) < 1e-6  # losses are told in float32
    assert first["lost"] == second["lost"] == alone["lost"]
    for part in ("parameters", "weights", "hypergradients", "losses"):
        assert first[part].equal(second[part])
    assert alone["hypergradients"].norm() > 0 and all(c == (0, 0) for c in alone["communicated"])


def test_a_step_sums_its_gradients_once_and_an_upper_step_v_and_the_hypergradient(together):
    """In float64 the losses are a sum of their own, because a bucket has one type."""
    found = torch.load(together / "rank-0.pt")
    parameters, domains = 8 * len(found["parameters"]), 4 * len(found["weights"])
    losses, one_loss = 4 * 2, 4  # of the micro-batch and whether to stop; of the meta batch
    lower = (2, parameters + losses)
    both = (4, 2 * parameters + losses + domains + one_loss)
    assert found["communicated"] == [lower, both, lower, both]


def test_a_run_of_two_processes_is_that_of_one_with_the_whole_batch(data, together, tmp_path):
    """It was interrupted after three steps; one process with the whole batch was not."""
    flags = ("--batch_size", "4", "--meta_batch_size", "2", "--iteration_num", "6")
    alone = train(data, tmp_path / "alone", *flags)
    shared = shutil.copytree(together / "run", tmp_path / "shared", symlinks=True)
    ours, theirs = weights_of(shared), weights_of(alone)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    for line, other in zip(metrics_of(shared), metrics_of(alone), strict=True):
        assert 0 <= line.pop("communicating") <= 1
        assert line.keys() == other.keys() and line["epoch"] == other["epoch"]
        assert line["domain_loss"] == pytest.approx(other["domain_loss"], rel=1e-4)
        assert line["weights"] == pytest.approx(other["weights"], rel=1e-4)
    said = (together / "said").read_text()
    assert said.count("6 of 6 lower steps done") == 1  # by one process
    assert said.count("going on from step 3") == 2  # by the plan, and by the run
    assert said.count("4 train records and 2 meta chains, shared by 2 processes") == 1
    # One process goes on where two have stopped, with the same records.
    train(data, shared, *flags[:-1], "8", "--resume")
    train(data, alone, *flags[:-1], "8", "--resume")
    assert metrics_of(shared)[-1]["loss"] == pytest.approx(metrics_of(alone)[-1]["loss"], rel=1e-4)


def test_another_batch_of_all_processes_is_refused(data, together, tmp_path, capsys):
    import main as program

    argv = command(data, together / "run", "--batch_size", "2", "--resume", "--dry_run")
    assert program.main(argv) == 2
    said = "--batch_size was 2 on each of 2 processes, is 2 on each of 1; the product must be"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shares_are_successive_and_make_up_every_batch(data, tmp_path, count):
    stream = ShuffledStream(23, 3 * count, seed=1)
    samples = ranked_samples(data, tmp_path / "meta.json")
    for whole in (stream, QuestionStream(samples, 2 * count + 2, seed=1)):
        shares = [Share(whole, rank, count) for rank in range(count)]
        for _, batch in zip(range(20), whole, strict=False):
            parts = [share.part(batch) for share in shares]
            assert list(itertools.chain(*parts)) == batch
            if whole is stream:
                assert {len(part) for part in parts} == {3}
        drawn = next(iter(shares[-1]))
        assert drawn == shares[-1].part(next(iter(whole))) or not shares[-1].part(next(iter(whole)))


def test_a_launcher_needs_the_strategy_and_gives_out_the_devices(
    data, tmp_path, capsys, monkeypatch
):
    from reweighting.training.arguments import parse_arguments

    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    argv = command(data, tmp_path / "run")
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert "has started 2 processes: --strategy distributed" in capsys.readouterr().err
    argv += ["--strategy", "distributed", "--device", "cuda"]
    assert parse_arguments([*argv, "--dry_run"]).device == "cuda:1"
    with pytest.raises(SystemExit):
        parse_arguments([*argv, "--local_rank", "3"])
    assert "the launcher gives every process a device" in capsys.readouterr().err


def workers(launcher) -> dict[int, int]:
    """The processes that torchrun has started, by rank."""
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    ranks = {}
    for process in map(int, found.stdout.split()):
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        ranks |= {int(e[5:]): process for e in environment if e.startswith(b"RANK=")}
    return ranks


def started(data: Path, run: Path, *flags: str, launcher: tuple[str, ...] = ()):
    """A run of two processes that has taken a few steps."""
    strategy = ("--strategy", "distributed", "--save_every_iterations", "2")
    process = torchrun(2, *launcher, "main.py", *command(data, run, *strategy, *flags))
    metrics, end = run / "metrics.jsonl", time.monotonic() + 300
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 4:
        assert time.monotonic() < end and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    return process


@pytest.mark.slow
def test_a_signal_to_one_process_saves_once_and_ends_all(data, tmp_path):
    process = started(data, tmp_path / "run", "--iteration_num", "1000")
    os.kill(workers(process)[1], signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert said.count("saved in") == 1 and "exitcode  : 143" in said
    done = int(re.search(r"(\d+) of 1,000 lower steps done", said)[1])
    assert len(metrics_of(tmp_path / "run")) == done
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{done:08d}"]


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again_and_the_run_ends_as_if_nothing_was(data, tmp_path):
    flags = ("--iteration_num", "10")
    quiet = started(data, tmp_path / "quiet", *flags)
    said, _ = quiet.communicate(timeout=300)
    assert quiet.returncode == 0, said
    # --resume is there for the restart: at first there is nothing to resume.
    restarts = ("--max_restarts=2",)
    process = started(data, tmp_path / "killed", *flags, "--resume", launcher=restarts)
    os.kill(workers(process)[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "going on from step" in said, said
    ours, theirs = weights_of(tmp_path / "killed"), weights_of(tmp_path / "quiet")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message", "code"),
    [
        (["--train_json_file", "missing.json"], "error: missing.json: No such file", 2),
        (["--lr", "1e30"], "error: the lower loss is nan for records [", 1),
    ],
)
def test_an_error_is_told_once_and_ends_all(data, tmp_path, flags, message, code):
    argv = command(data, tmp_path / "run", "--strategy", "distributed", *flags)
    process = torchrun(2, "main.py", *argv)
    said, _ = process.communicate(timeout=300)
    assert said.count(message) == said.count("error: ") == 1, said
    assert f"exitcode  : {code}" in said


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_twenty_cycles_are_those_of_one_process(data, tmp_path, processes):
    cycles = {
        name: (flags_of(data, tmp_path, flags, processes, 4, "--iteration_num", "40"), True)
        for name, flags in LONGER.items()
    }
    launched(tmp_path, {"cycles": cycles}, processes)
    for name in cycles:
        argv = flags_of(data, tmp_path, LONGER[name], 1, 4, "--iteration_num", "40")
        alone = recorded(argv, Processes(), double=True)
        assert max(distances(torch.load(tmp_path / f"{name}-0.pt"), alone).values()) < 1e-6, name
