"""The data-selection baselines keep what they say, and reach training."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

import main as program
from reweighting.records.samples import TrainSample
from reweighting.records.steps import record_prompt
from reweighting.records.subsets import balanced_information, choose
from tests.conftest import command
from tests.training.test_training import metrics_of, train


def samples(chains: int = 30) -> list[TrainSample]:
    """Chains of four steps; accuracies 0, fractional, fractional, 1; every third has long steps."""
    made = []
    for number in range(chains):
        word = "x" * (200 if number % 3 == 0 else 20)
        steps = [f"Step {k}: {word}" for k in range(1, 5)]
        for k, accuracy in enumerate((0.0, 0.25, 0.5, 1.0), start=1):
            prompt = record_prompt(f"Question {number}?", "\n".join(steps[:k]))
            made.append(TrainSample(len(made) + 1, [prompt], "i.png", "d", [accuracy], (number,)))
    return made


def steps_of(sample: TrainSample) -> int:
    return len(sample.prompts[-1].steps)


def test_all_is_all():
    made = samples()
    assert choose(made, "all", 5, (0, 1), 0) is made


def test_random_is_a_random_part_of_the_stated_size():
    made = samples()
    first = choose(made, "random", 40, (0, 1), 1)
    assert len(first) == 40 and first == sorted(first, key=lambda sample: sample.record)
    assert choose(made, "random", 40, (0, 1), 1) == first
    assert choose(made, "random", 40, (0, 1), 2) != first
    assert len(choose(made, "random", 1000, (0, 1), 1)) == len(made)


def test_outcome_keeps_the_last_prefix_of_every_chain():
    kept = choose(samples(), "outcome", 1, (0, 1), 0)
    assert len(kept) == 30 and {steps_of(sample) for sample in kept} == {4}


def test_outcome_keeps_every_chain_of_a_question():
    made = samples(4)
    for sample in made:
        sample.chain = ("one question",)
    for number, sample in enumerate(made):  # the chains of a question differ in their steps
        [prompt] = sample.prompts
        steps = [f"{number // 4} {step}" for step in prompt.steps]
        sample.prompts = [replace(prompt, question="Q", steps=tuple(steps))]
    kept = choose(made, "outcome", 1, (0, 1), 0)
    assert [sample.record for sample in kept] == [4, 8, 12, 16]


def test_s1_takes_middling_lengths_and_fractions_first():
    made = samples()
    kept = choose(made, "s1", 12, (10, 100), 0)
    assert all("x" * 21 not in sample.text for sample in kept)  # the long chains are left out
    by_step = Counter(steps_of(sample) for sample in kept)
    assert by_step == {1: 12, 2: 12, 3: 12, 4: 12}
    both = [sample for sample in made if steps_of(sample) == 2]
    for number, sample in enumerate(both):
        sample.accuracies = [(0.0, 1.0, 0.5, 0.0, 0.0)[number % 5]]
    kept = choose(both, "s1", 12, (10, 100), 0)
    counts = Counter(sample.accuracies[0] for sample in kept)
    short = [sample for sample in both if "x" * 21 not in sample.text]
    assert counts[0.5] == sum(sample.accuracies == [0.5] for sample in short)
    assert counts[1.0] + counts[0.0] == 12 - counts[0.5] and abs(counts[1.0] - counts[0.0]) <= 4


def test_bis_takes_balanced_and_sure_chains_of_every_domain():
    assert balanced_information([1.0, 0.5, 0.0, 0.0]) == pytest.approx(0.3 * 0.75)
    assert balanced_information([0.0, 0.0]) == pytest.approx(0.05)
    assert balanced_information([1.0, 1.0]) == pytest.approx(0.05)
    made = samples(20)
    for sample in made:
        sample.domain = "a" if sample.record <= 40 else "b"
        if sample.accuracies != [0.0] and (sample.record - 1) // 4 in (3, 7, 12, 19):
            sample.accuracies = [1.0]  # surer than the others
    kept = choose(made, "bis", 16, (0, 1), 0)
    assert [sample.record for sample in kept[::4]] == [13, 29, 49, 77] and len(kept) == 16
    assert choose(made, "bis", 1, (0, 1), 0) == kept[:4] + kept[8:12]  # one chain of each


@pytest.mark.parametrize(
    "flags", [["--train_subset", "random", "--subset_size", "20"], ["--train_subset", "outcome"]]
)
def test_a_subset_is_what_training_sees(dataset, tmp_path, flags, capsys):
    run = train(dataset, tmp_path / "run", "--baseline", *flags)
    assert " of " in capsys.readouterr().err
    whole = len(json.loads((dataset / "train.json").read_text()))
    assert metrics_of(run)[-1]["epoch"] > 6 * 3 / whole


def test_a_filter_that_keeps_nothing_is_an_error(dataset, tmp_path, capsys):
    flags = ["--train_subset", "s1", "--step_length", "9000", "9001"]
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 2
    assert "--train_subset s1 keeps none of" in capsys.readouterr().err


def test_without_the_aggregation_loss_the_weights_differ(dataset, tmp_path):
    chain = train(dataset, tmp_path / "chain")
    prefix = train(dataset, tmp_path / "prefix", "--meta_target", "prefix")
    assert metrics_of(chain)[1]["meta_loss"] != metrics_of(prefix)[1]["meta_loss"]
    assert metrics_of(chain)[-1]["weights"] != metrics_of(prefix)[-1]["weights"]
