"""The data-selection baselines keep what they say, and reach training."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

import main as program
from reweighting.records import subsets
from reweighting.records.clusters import cluster
from reweighting.records.reader import RecordReader, load_train
from reweighting.records.samples import TrainSample
from reweighting.records.steps import record_prompt
from reweighting.records.subsets import balanced_information
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


@pytest.fixture
def choose(tmp_path):
    """``subsets.choose`` on a file of samples; what it keeps, as a list."""
    Image.new("RGB", (56, 56)).save(tmp_path / "i.png")

    def chosen(made: list[TrainSample | dict], *how, **more) -> list[TrainSample]:
        path = tmp_path / "train.json"
        path.write_text(json.dumps([as_record(sample) for sample in made]))
        records = load_train(RecordReader(str(path), str(tmp_path)))
        kept = subsets.choose(records, *how, **more)
        assert (kept is records) == (how[0] == "all" and not more)
        return list(kept)

    return chosen


def as_record(sample: TrainSample | dict) -> dict:
    if isinstance(sample, dict):
        return sample
    [prompt], [accuracy] = sample.prompts, sample.accuracies
    about = {"dataset": sample.domain, "image_path": "i.png", "accuracy": accuracy}
    return {"input": prompt.question, "add": "".join(prompt.steps), **about}


def steps_of(sample: TrainSample) -> int:
    return len(sample.prompts[-1].steps)


def test_all_is_all(choose):
    assert len(choose(samples(), "all", 5, (0, 1), 0)) == 120


def test_random_is_a_random_part_of_the_stated_size(choose):
    made = samples()
    first = choose(made, "random", 40, (0, 1), 1)
    assert len(first) == 40 and first == sorted(first, key=lambda sample: sample.record)
    assert choose(made, "random", 40, (0, 1), 1) == first
    assert choose(made, "random", 40, (0, 1), 2) != first
    assert len(choose(made, "random", 1000, (0, 1), 1)) == len(made)


def test_outcome_keeps_the_last_prefix_of_every_chain(choose):
    kept = choose(samples(), "outcome", 1, (0, 1), 0)
    assert len(kept) == 30 and {steps_of(sample) for sample in kept} == {4}


def test_outcome_keeps_every_chain_of_a_question(choose):
    made = samples(4)
    for number, sample in enumerate(made):  # the chains of a question differ in their steps
        [prompt] = sample.prompts
        steps = tuple(step.replace("x", "stuv"[number // 4]) for step in prompt.steps)
        sample.prompts = [replace(prompt, question="Q", steps=steps)]
    kept = choose(made, "outcome", 1, (0, 1), 0)
    assert [sample.record for sample in kept] == [4, 8, 12, 16]


def test_s1_takes_middling_lengths_and_fractions_first(choose):
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


def test_bis_takes_balanced_and_sure_chains_of_every_domain(choose):
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


def test_a_share_stands_for_a_number(choose):
    made = samples(20)
    for rule, size in (("random", 8), ("bis", 8), ("random_chains", 8), ("car", 8), ("s1", 2)):
        # 8 of 80 records, or 2 of the 20 with each step index
        assert choose(made, rule, None, (0, 1000), 3, 0.1) == choose(made, rule, size, (0, 1000), 3)
    assert len(choose(made, "bis", None, (0, 1), 0, 1.0)) == len(made)


def test_random_chains_are_whole_and_from_every_domain(choose):
    made = samples(40)
    for sample in made:
        sample.domain = "a" if sample.record <= 120 else "b"  # 30 and 10 chains
    kept = choose(made, "random_chains", None, (0, 1), 1, 0.2)
    chains = Counter((sample.record - 1) // 4 for sample in kept)
    assert set(chains.values()) == {4}
    assert sum(number < 30 for number in chains) == 6 and len(chains) == 8
    assert choose(made, "random_chains", None, (0, 1), 1, 0.2) == kept
    assert choose(made, "random_chains", None, (0, 1), 2, 0.2) != kept
    assert len(choose(made, "random_chains", 1, (0, 1), 1)) == 8  # one chain of each domain


QUESTIONS = (  # two kinds of question, which share no word, with the labels of one chain each
    ("Which colour has the round apple?", [1.0, 1.0]),  # 0.05
    ("Which colour has the small apple?", [1.0, 0.0]),  # (1/4 + 0.05) * 1 = 0.3
    ("Which colour has the large apple?", [0.5, 0.0]),  # (1/4 + 0.05) * 0.5 = 0.15
    ("Which colour has the green apple?", [0.5, 0.5]),  # 0.05 * 0.5 = 0.025
    ("How many sides are drawn on board 1?", [1.0, 1.0]),  # 0.05
    ("How many sides are drawn on board 2?", [0.5, 0.5]),  # 0.025
    ("How many sides are drawn on board 3?", [0.2, 0.2]),  # 0.01
    ("How many sides are drawn on board 4?", [0.0, 0.0]),  # 0.05, later in the file
)


def asked(questions=QUESTIONS) -> list[TrainSample]:
    """One chain of two steps for each question."""
    made = []
    for question, accuracies in questions:
        for k, accuracy in enumerate(accuracies, start=1):
            prompt = record_prompt(question, "\n".join(f"Step {i}: x" for i in range(1, k + 1)))
            sample = TrainSample(len(made) + 1, [prompt], "i.png", "d", [accuracy], ("d", question))
            made.append(sample)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_car_takes_the_best_of_every_cluster_and_then_the_best_of_all(choose, seed):
    made = asked()  # 8 questions: √(8 / 2) = 2 clusters

    def kept(size: int) -> list[int]:
        return [sample.record for sample in choose(made, "car", size, (0, 1), seed)]

    assert kept(2) == kept(3) == [3, 4]  # the best question of the better cluster, and whole
    assert kept(4) == [3, 4, 9, 10]  # the best of each
    assert kept(6) == [3, 4, 5, 6, 9, 10]  # and the best of the others
    assert kept(100) == list(range(1, 17))
    assert kept(1) == [3, 4]  # at least one question


def test_car_keeps_all_chains_of_a_question_and_ranks_by_their_mean(choose):
    first, second = "Which colour is it?", "Which colour was it?"
    made = asked([(first, [1.0, 0.0]), (second, [1.0, 0.5])])
    for sample in asked([(first, [1.0, 1.0])]):  # another chain of it: (0.3 + 0.05) / 2
        [prompt] = sample.prompts
        steps = tuple(step.replace("x", "y") for step in prompt.steps)
        prompts = [replace(prompt, steps=steps)]
        made.append(replace(sample, record=len(made) + 1, prompts=prompts))
    kept = choose(made, "car", 4, (0, 1), 0)
    assert [sample.record for sample in kept] == [1, 2, 5, 6]


def test_similar_questions_cluster_together_whatever_their_number():
    texts = [f"{kind} {n}" for n in range(40) for kind in ("how many red cubes", "who is taller")]
    labels = cluster(texts, 2, random.Random(0))
    assert len({*labels[::2]}) == len({*labels[1::2]}) == 1 and labels[0] != labels[1]
    assert set(cluster(["same"] * 9, 4, random.Random(0))) == {0}
    assert len(cluster(["", "?", "a word"], 3, random.Random(0))) == 3


def test_wrong_records_are_repeated_where_they_stand(choose):
    made = samples(2)  # accuracies 0, fractional, fractional, 1
    kept = choose(made, "all", None, (0, 1), 0, wrong_times=3)
    assert [sample.record for sample in kept] == [1, 1, 1, 2, 3, 4, 5, 5, 5, 6, 7, 8]
    kept = choose(made, "bis", 4, (0, 1), 0, wrong_times=2)
    assert [sample.record for sample in kept] == [1, 1, 2, 3, 4]
    turns = [("human", "Q"), ("human", "Step 1: a"), ("gpt", "-"), ("human", "b"), ("gpt", "+")]
    talk = {
        "image": "i.png",
        "conversations": [{"from": who, "value": what} for who, what in turns],
    }
    assert len(choose([talk], "all", None, (0, 1), 0, wrong_times=2)) == 2
    [last] = choose([talk], "outcome", None, (0, 1), 0, wrong_times=2)  # it ends right
    assert last.accuracies == [1.0]


@pytest.mark.parametrize("by", ["record", "cot"])
def test_repeated_records_train(dataset, tmp_path, by, capsys):
    flags = ["--upsample_wrong", "3", "--batch_by", by]
    run = train(dataset, tmp_path / "run", *flags)
    records = json.loads((dataset / "train.json").read_text())
    wrong = sum(record["accuracy"] == 0 for record in records)
    said = f"--upsample_wrong 3: {len(records) + 2 * wrong:,} records an epoch, not {len(records)}"
    assert said in capsys.readouterr().err and wrong
    plain = train(dataset, tmp_path / "plain", *flags[2:])
    assert metrics_of(run)[-1]["loss"] != metrics_of(plain)[-1]["loss"]
    if by == "record":  # a longer epoch; chains stay as many as they were
        assert metrics_of(run)[-1]["epoch"] < metrics_of(plain)[-1]["epoch"]
    argv = command(dataset, tmp_path / "table", *flags, "--reweighting", "instance_table")
    with pytest.raises(SystemExit):  # a record would have several weights
        program.main(argv)
    assert "--upsample_wrong is not for instance_table" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--train_subset", "bis", "--subset_size", "9", "--subset_share", "0.1"],
            "give one of them",
        ),
        (["--subset_share", "0.1"], "--subset_share is for --train_subset random, random_chains"),
        (["--train_subset", "outcome", "--subset_share", "0.1"], "--subset_share is for"),
        (["--train_subset", "bis", "--subset_share", "1.5"], "must be at most 1"),
        (["--train_subset", "bis", "--subset_share", "0"], "must be above 0"),
    ],
)
def test_shares_that_make_no_sense_are_refused(dataset, tmp_path, capsys, flags, said):
    with pytest.raises(SystemExit) as stopped:
        program.main(command(dataset, tmp_path / "run", *flags))
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--train_subset", "random", "--subset_size", "20"],
        ["--train_subset", "car", "--subset_share", "0.5"],
        ["--train_subset", "outcome"],
    ],
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
