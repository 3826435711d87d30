"""Measures of scored steps: by hand, by another library, and where little or nothing is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from reweighting.evaluate.layouts import ALL, BY_SOURCES, BY_STEPS, StepRecord
from reweighting.evaluate.metrics import (
    Counts,
    auroc,
    average_precision,
    best_threshold,
    calibration_error,
    f1_scores,
    reliability,
)
from reweighting.evaluate.results import (
    RULES,
    always_right,
    choose_threshold,
    evaluate,
    first_below,
    format_table,
    measure,
    random_scores,
    scores_of,
)

VISUAL, PROCESS, PRM = (RULES[name] for name in ("visualprocessbench", "processbench", "prmbench"))


def counts(scores: list[float], right: list[bool]) -> Counts:
    return Counts.of(np.array(scores), np.array(right, dtype=bool))


def record(labels: list[bool | None], source: str = "a", number: int = 1) -> StepRecord:
    steps = [f"step {k}" for k in range(len(labels))]
    return StepRecord(number, source, "?", ["image.png"], [steps], [labels])


def values(records, scores, rules=VISUAL, threshold=0.5, resamples=20):
    """Measure -> value by place; every record has one chain with the scores given."""
    chains = [[np.array(chain)] for chain in scores]
    found = measure(records, chains, threshold, rules, resamples)
    return {place: {n: m["value"] for n, m in row.items()} for place, row in found.items()}


def test_measures_by_hand_with_equal_scores():
    few = counts([0.8, 0.1, 0.4, 0.4], [True, False, False, True])
    assert few.scores.tolist() == [0.1, 0.4, 0.8]
    assert auroc(few) == pytest.approx((2 + 1.5) / 4)
    assert average_precision(few) == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3)
    assert f1_scores(few, few.scores >= 0.5) == pytest.approx((2 / 3, 4 / 5))
    assert f1_scores(few, few.scores >= 0.25) == pytest.approx((4 / 5, 2 / 3))
    assert best_threshold(few) == pytest.approx(0.6)  # as good as 0.25, and nearer to 0.5
    assert np.allclose(reliability(few), [(0.1, 0, 1), (0.4, 0.5, 2), (0.8, 1, 1)])
    assert calibration_error(few) == pytest.approx((0.1 + 2 * 0.1 + 0.2) / 4)


def test_scores_at_the_ends_belong_to_the_outer_bins():
    found = reliability(counts([0.0, 1.0, 0.95], [False, True, False]))
    assert np.allclose(found, [(0, 0, 1), (0.975, 0.5, 2)])


@pytest.mark.parametrize("digits", [1, 8])
def test_the_auroc_is_that_of_a_rank_test(digits):
    rng = np.random.default_rng(digits)
    scores, right = rng.random(400).round(digits), rng.random(400) < 0.7
    expected = mannwhitneyu(scores[right], scores[~right]).statistic
    assert auroc(Counts.of(scores, right)) == pytest.approx(expected / right.sum() / (~right).sum())


def test_the_best_threshold_is_best_among_all():
    rng = np.random.default_rng(3)
    right = rng.random(60) < 0.6
    scores = np.clip(0.2 * rng.standard_normal(60) + 0.3 * right + 0.3, 0, 1)
    found = Counts.of(scores, right)
    macro = {t: sum(f1_scores(found, found.scores >= t)) for t in [0, *scores, *(scores + 1e-6)]}
    assert macro.get(0) < max(macro.values())
    best = best_threshold(found)
    assert sum(f1_scores(found, found.scores >= best)) == pytest.approx(max(macro.values()))


def test_counting_twice_is_having_twice():
    distinct, place = np.array([0.2, 0.6]), np.array([0, 1, 1])
    right = np.array([False, True, False])
    twice = Counts.at(distinct, place, right, np.array([2.0, 0.0, 1.0]))
    assert (twice.right.tolist(), twice.wrong.tolist()) == ([0, 0], [2, 1])


@pytest.mark.parametrize("right", [[True, True], [False, False], []])
def test_what_needs_both_kinds_is_undefined_without_one(right):
    one = counts([0.3, 0.7][: len(right)], right)
    f1_right, f1_wrong = f1_scores(one, one.scores >= 0.5)
    assert math.isnan(f1_right) == (True not in right)
    assert math.isnan(f1_wrong) == math.isnan(average_precision(one)) == (False not in right)
    assert math.isnan(auroc(one)) and math.isnan(calibration_error(one)) == (not right)
    with pytest.raises(ValueError, match="both right and wrong"):
        best_threshold(one)


def test_neutral_steps_count_for_nothing():
    some = [record([True, None, False, None])]
    found = values(some, [[0.9, 0.1, 0.2, 0.99]])[ALL]
    assert found["macro_f1"] == found["auroc"] == 1
    assert found["calibration_error"] == pytest.approx((0.1 + 0.2) / 2)
    nothing = evaluate([record([None, None])], [[np.array([0.1, 0.9])]], 0.5, VISUAL)
    assert all(m["value"] is None for m in nothing["rows"]["model"][ALL].values())
    assert nothing["reliability"] == [] and nothing["sizes"][ALL]["not judged"] == 2
    assert "-" in format_table(nothing, "macro_f1")
    odd = evaluate([record([True], "\x1b[2J" + "x" * 99)], [[np.array([0.1])]], 0.5, VISUAL)
    assert r"\x1b[2Jxxx" in format_table(odd, "macro_f1")


def test_one_record_and_a_source_without_wrong_steps():
    found = values([record([True, False])], [[0.9, 0.7]])
    assert found["a"] == found[ALL] == found[BY_STEPS] == found[BY_SOURCES]
    assert found["a"]["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    both = [record([True, False]), record([True, True], "b")]
    found = values(both, [[0.9, 0.2], [0.9, 0.2]])
    assert found["b"]["macro_f1"] is None and found["b"]["f1_right"] == pytest.approx(2 / 3)
    assert found[BY_STEPS]["macro_f1"] == found[BY_SOURCES]["macro_f1"] == 1  # only a has one
    assert found[ALL]["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_visualprocessbench_weighs_sources_by_their_judged_steps():
    records = [record([True, False]), record([True, False, True, False, None], "b")]
    found = values(records, [[0.9, 0.1], [0.9, 0.9, 0.1, 0.1, 0.1]])
    assert (found["a"]["macro_f1"], found["b"]["macro_f1"]) == (1, 0.5)
    assert found[BY_STEPS]["macro_f1"] == pytest.approx((2 * 1 + 4 * 0.5) / 6)
    assert found[BY_SOURCES]["macro_f1"] == pytest.approx(0.75)
    assert found[ALL]["macro_f1"] == pytest.approx(4 / 6)
    assert "first_error_f1" not in found[ALL]


def test_processbench_asks_for_the_first_wrong_step():
    records = [
        record([True, False, None], "gsm8k"),  # found
        record([True, False, None], "gsm8k"),  # step 1 is called wrong
        record([True, True], "gsm8k"),  # found to be right
        record([True, True], "gsm8k"),
        record([True, True], "gsm8k"),
        record([False], "math"),
        record([True], "math"),
    ]
    scores = [[0.5, 0.4, 0.9], [0.4, 0.1, 0.1], [0.9, 0.5], [0.9, 0.4], [0.4, 0.9], [0.1], [0.1]]
    found = values(records, scores, PROCESS)
    assert found["gsm8k"]["accuracy_wrong"] == 1 / 2
    assert found["gsm8k"]["accuracy_right"] == pytest.approx(1 / 3)
    assert found["gsm8k"]["first_error_f1"] == pytest.approx(2 * (1 / 2 * 1 / 3) / (5 / 6))
    assert found["math"]["accuracy_wrong"] == 1 and found["math"]["first_error_f1"] == 0
    assert found[BY_SOURCES]["first_error_f1"] == pytest.approx(0.2)
    assert [first_below(np.array(v)) for v in ([True, False, False], [True], [])] == [1, -1, -1]
    only_right = values([record([True])], [[0.9]], PROCESS)["a"]
    assert only_right["accuracy_wrong"] is None and only_right["first_error_f1"] is None


def test_prmbench_calls_a_step_right_above_the_threshold():
    records, scores = [record([True, False, True])], [[0.9, 0.5, 0.5]]
    assert values(records, scores, PRM)["a"]["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert values(records, scores, VISUAL)["a"]["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)


def test_baselines_by_hand():
    records = [record([True, True, True, False], str(n % 2), n) for n in range(600)]
    certain = values(records, [chain for [chain] in always_right(records)])[ALL]
    assert certain["macro_f1"] == pytest.approx(6 / 7 / 2)
    assert (certain["auroc"], certain["average_precision"]) == (0.5, 0.25)
    assert certain["calibration_error"] == pytest.approx(0.25)
    guessed = values(records, [chain for [chain] in random_scores(records)])[ALL]
    assert guessed["macro_f1"] == pytest.approx((2 * 0.375 / 1.25 + 2 * 0.125 / 0.75) / 2, abs=0.03)
    assert guessed["auroc"] == pytest.approx(0.5, abs=0.03)
    again = [chain.tolist() for [chain] in random_scores(records)]
    assert again == [chain.tolist() for [chain] in random_scores(records)]


def test_every_interval_holds_its_value():
    rng = np.random.default_rng(5)
    for size in (1, 2, 5, 40):
        records = [
            record([bool(x) for x in rng.random(4) < 0.6], "ab"[n % 2], n) for n in range(size)
        ]
        scores = [[rng.random(4)] for _ in records]
        found = measure(records, scores, 0.5, PROCESS, resamples=200)
        assert found == measure(records, scores, 0.5, PROCESS, resamples=200)
        for place in found.values():
            for ends in place.values():
                known = [ends[name] is not None for name in ("value", "low", "high")]
                assert all(known) or not any(known)
                assert not known[0] or 0 <= ends["low"] <= ends["value"] <= ends["high"] <= 1


def test_an_interval_has_the_width_of_the_standard_error():
    rng = np.random.default_rng(6)
    records = [record([True] if n % 2 else [False], "a", n) for n in range(800)]
    scores = [[rng.random(1)] for _ in records]
    found = measure(records, scores, 0.5, PROCESS, resamples=800)["a"]["accuracy_wrong"]
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * (0.25 / 400) ** 0.5, rel=0.15)


def test_a_record_is_drawn_as_a_whole():
    """Steps of one record that agree with each other are worth one record."""
    rng = np.random.default_rng(7)
    right = rng.random(200) < 0.5
    once = [record([bool(x)], "a", n) for n, x in enumerate(right)]
    many = [record([bool(x)] * 9, "a", n) for n, x in enumerate(right)]
    scores = rng.random(200)
    widths = []
    for records in (once, many):
        chains = [[np.full(len(r.labels[0]), s)] for r, s in zip(records, scores, strict=True)]
        found = measure(records, chains, 0.5, VISUAL, resamples=300)["a"]["macro_f1"]
        widths.append(found["high"] - found["low"])
    assert widths[0] == pytest.approx(widths[1])


def test_scores_are_sigmoids_and_a_threshold_needs_both_kinds():
    [[scores, empty]] = scores_of([[[0.0, 30.0, -math.log(3)], []]])
    assert scores.tolist() == pytest.approx([0.5, 1, 0.25]) and scores[1] < 1 and len(empty) == 0
    assert choose_threshold([record([False, True])], [[np.array([0.7, 0.8])]]) == 0.75
    with pytest.raises(ValueError):
        choose_threshold([record([True, None])], [[np.array([0.7, 0.8])]])
