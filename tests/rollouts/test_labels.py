"""Schedules, estimates of the accuracy, the limit per domain, the meta set."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from reweighting.rollouts import __main__ as rollouts
from reweighting.rollouts.chains import meta_records
from reweighting.rollouts.labels import limit_per_domain, posterior_accuracies
from reweighting.rollouts.schedules import Adaptive, Published, half_width


def test_adaptive_rounds_stop_where_one_by_one_would():
    rng = random.Random(0)
    for _ in range(300):
        schedule = Adaptive(rng.randint(1, 6), rng.randint(6, 40), rng.choice([0.05, 0.1, 0.15]))
        outcomes = [rng.random() < rng.choice([0.02, 0.3, 0.95]) for _ in range(40)]
        single = next(n for n in range(1, 41) if schedule.enough(sum(outcomes[:n]), n))
        times = 0
        while more := schedule.wanted(sum(outcomes[:times]), times, times):
            times += more
        assert times == single


def test_half_width_is_the_deviation_of_the_posterior():
    draws = np.random.default_rng(0).beta(3.5, 5.5, 200_000)
    assert half_width(3, 8) == pytest.approx(draws.std(), rel=0.01)
    assert half_width(0, 5) < Adaptive().tolerance < half_width(8, 15)


def test_published_rule_by_hand():
    rule = Published(max_rollouts=10)
    # The own chain is the first rollout. Three more are wanted, and all ten if they are mixed.
    assert [rule.wanted(score, 1, 0) for score in (0, 1)] == [3, 3]
    assert rule.wanted(4, 4, 3) == rule.wanted(0, 4, 3) == 0
    assert rule.wanted(1, 4, 3) == 6
    assert rule.wanted(2, 3, 9) == 0  # a short completion did not count, but was asked for
    assert not rule.counts("too short", last_step=False)
    assert rule.counts("Final answer: B", last_step=True)


def test_posterior_accuracies_are_closer_to_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.choice([0.05, 0.2, 0.8, 0.95], 600)
    times = rng.choice([4, 8, 16], 600)
    scores = rng.binomial(times, truth)
    found = np.array(posterior_accuracies(scores, times))
    assert abs(found - truth).mean() < 0.85 * abs(scores / times - truth).mean()
    order = np.argsort(scores[times == 8])
    assert (np.diff(found[times == 8][order]) >= 0).all()


def test_selection_takes_fractions_first_then_balances():
    def record(domain: str, score: int, times: int = 8) -> dict:
        return {"dataset": domain, "score": score, "times": times, "accuracy": score / times}

    a = [record("a", s) for s in (0, 8, 3, 8, 8, 5, 0, 8, 8)]
    b = [record("b", s) for s in (8, 8, 0)]
    kept = limit_per_domain(a + b, 6, seed=0)
    scores = [r["score"] for r in kept if r["dataset"] == "a"]
    assert sorted(scores) == [0, 0, 3, 5, 8, 8]
    assert [r["score"] for r in kept if r["dataset"] == "b"] == [8, 8, 0]
    assert kept == [r for r in a + b if any(r is k for k in kept)]  # order of the file
    assert limit_per_domain(a + b, 6, seed=0) == kept
    few = limit_per_domain(a, 1, seed=0)
    assert [0 < r["accuracy"] < 1 for r in few] == [True]


def test_meta_set_cannot_be_told_by_its_form():
    def chain(length: int, answer: str, steps: bool = True) -> str:
        opening = "Step 1: " if steps else ""
        return f"{opening}{'x' * length}\nFinal answer: {answer}"

    candidates = [chain(50, "red"), chain(10, "blue"), chain(45, "blue"), chain(9, "b", False)]
    record = {"question": "Q", "image_path": "i.png", "dataset": "d", "candidates": candidates}
    pure = {**record, "candidates": candidates[:1], "true_false": [True]}
    record["true_false"] = [True, False, False, False]
    meta = meta_records([record, pure, record])
    assert [m["true_false"] for m in meta] == [False, True, True, False]
    assert meta[0]["input"] == f"Q\n\n{candidates[2]}"  # the most alike in length
    assert meta[1]["input"] == f"Q\n\n{candidates[0]}"


@pytest.mark.parametrize("images", [None, ["images/0.png", "images/1.png"]])
def test_chains_that_are_labelled_have_one_image(dataset, tmp_path, capsys, images):
    """The reasoner is shown one, so labels of other chains would be those of another question."""
    record = {"question": "Q", "image_path": images, "dataset": "d", "answer": "red"}
    candidates = tmp_path / "candidates.json"
    candidates.write_text(json.dumps([record | {"candidates": ["Step 1: x\nFinal answer: red"]}]))
    argv = ["label", "--candidates", str(candidates), "--output", str(tmp_path / "out.json")]
    assert rollouts.main([*argv, "--image_root", str(dataset), "--model", "m"]) == 2
    said = f"record 1: field 'image_path': must name one image, names {len(images or [])}"
    assert said in capsys.readouterr().err
