"""Several processes compute what one process with the whole batch computes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from reweighting.bilevel.batches import QuestionStream, Share, ShuffledStream
from reweighting.system.processes import Processes
from tests.bilevel.test_ranking import ranked_samples, with_rivals
from tests.conftest import command
from tests.support.many_processes import distances, recorded, torchrun
from tests.training.test_training import assert_same_run, metrics_of, train, weights_of

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
    "fp16": "--precision fp16",
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
        command(data, folder / "run", *run, "--iteration_num", "6", "--resume"),
    ]
    (folder / "said").write_text(launched(folder, {"cycles": cycles, "runs": runs}))
    return folder


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_take_the_steps_of_one(data, together, tmp_path, name):
    argv = flags_of(data, tmp_path, SCENARIOS[name], 1, 4, "--iteration_num", "4")
    alone = recorded(argv, Processes(), double=True)
    first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in (0, 1))
    found = distances(first, alone)
    # Values for records of both signs cancel in a hypergradient, and norms compute in float32.
    assert found.pop("hypergradients") < 1e-5 and max(found.values()) < 1e-6
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
    alone, shared = train(data, tmp_path / "alone", *flags), together / "run"
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
    assert said.count("going on from step 3") == 1
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
            assert sum(parts, []) == batch
            if whole is stream:
                assert {len(part) for part in parts} == {3}
        drawn = next(iter(shares[-1]))
        assert drawn == shares[-1].part(next(iter(whole))) or not shares[-1].part(next(iter(whole)))
