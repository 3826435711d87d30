"""How well scores tell right steps from wrong ones: with a threshold, and without.

Every measure here needs only two counts for each distinct score: how many right and how many wrong
steps have it. Counts may be fractions or zero, so that a bootstrap can count a record several times
or not at all. What is not defined, as the F1 of wrong steps where no step is wrong, is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 10  # of equal width, of the reliability diagram and its calibration error


@dataclass
class Counts:
    """Right and wrong steps by score.

    Args:
        scores: distinct scores V in [0, 1], ascending, ``[n]``.
        right, wrong: the number of right and of wrong steps with that score, ``[n]``.
    """

    scores: np.ndarray
    right: np.ndarray
    wrong: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, right: np.ndarray) -> Counts:
        """Count steps with ``scores`` ``[steps]``, of which some are ``right`` ``[steps]``."""
        distinct, place = np.unique(scores, return_inverse=True)
        return cls.at(distinct, place, right, np.ones(len(scores)))

    @classmethod
    def at(
        cls, distinct: np.ndarray, place: np.ndarray, right: np.ndarray, times: np.ndarray
    ) -> Counts:
        """Count steps whose distinct scores are already known.

        Args:
            distinct: ascending, ``[n]``.
            place: index into ``distinct`` of every step, ``[steps]``.
            right: whether a step is right, ``[steps]``.
            times: how often it counts, ``[steps]``.
        """
        size = len(distinct)
        all_steps = np.bincount(place, times, size)
        right_steps = np.bincount(place, times * right, size)
        return cls(distinct, right_steps, all_steps - right_steps)


def f1_scores(counts: Counts, called_right: np.ndarray) -> tuple[float, float]:
    """F1 of finding the right steps, and of finding the wrong ones.

    F1 = 2 TP / (2 TP + FP + FN); NaN if no step is of that kind.

    Args:
        called_right: the verdict on the steps with each score, ``[n]``.
    """
    right, wrong = counts.right.sum(), counts.wrong.sum()
    right_found = counts.right[called_right].sum()
    wrong_missed = counts.wrong[called_right].sum()
    wrong_found, right_missed = wrong - wrong_missed, right - right_found
    errors = wrong_missed + right_missed
    return (
        _ratio(2 * right_found, 2 * right_found + errors) if right else np.nan,
        _ratio(2 * wrong_found, 2 * wrong_found + errors) if wrong else np.nan,
    )


def auroc(counts: Counts) -> float:
    """Chance that a right step has a higher score than a wrong one; equal scores count half."""
    right_above = counts.right.sum() - counts.right.cumsum()
    pairs = (counts.wrong * (right_above + counts.right / 2)).sum()
    return _ratio(pairs, counts.right.sum() * counts.wrong.sum())


def average_precision(counts: Counts) -> float:
    """Average precision of finding wrong steps by low scores: Σ (gain of recall) · precision.

    Steps with equal scores are found together, so their order does not matter.
    """
    if not counts.wrong.sum():
        return np.nan
    found, wrong_found = (counts.right + counts.wrong).cumsum(), counts.wrong.cumsum()
    precision = wrong_found / np.maximum(found, 1e-300)  # nothing found: nothing gained either
    return float((counts.wrong * precision).sum() / counts.wrong.sum())


def reliability(counts: Counts) -> list[tuple[float, float, float]]:
    """The diagram: for every bin of scores that is not empty the mean score, the share of right
    steps and the number of steps."""
    steps = counts.right + counts.wrong
    bins = np.minimum((counts.scores * BINS).astype(int), BINS - 1)
    totals, rights, scores = (
        np.bincount(bins, values, BINS) for values in (steps, counts.right, steps * counts.scores)
    )
    return [
        (float(score / total), float(right / total), float(total))
        for score, right, total in zip(scores, rights, totals, strict=True)
        if total
    ]


def calibration_error(counts: Counts) -> float:
    """Expected calibration error: |mean score - share of right steps| over the bins, by steps."""
    diagram = reliability(counts)
    total = sum(steps for *_, steps in diagram)
    return _ratio(sum(abs(score - right) * steps for score, right, steps in diagram), total)


def best_threshold(counts: Counts) -> float:
    """The threshold with the largest mean of both F1, the one nearest to 0.5 among equals.

    Candidates are 0, which calls every step right, and the middle between neighbouring scores.

    Raises:
        ValueError: there is no right or no wrong step.
    """
    if not (counts.right.sum() and counts.wrong.sum()):
        raise ValueError("a threshold needs both right and wrong steps")
    middles = (counts.scores[1:] + counts.scores[:-1]) / 2
    thresholds = np.concatenate([[0.0], middles])
    right_missed = counts.right.cumsum() - counts.right  # below each score
    wrong_found = counts.wrong.cumsum() - counts.wrong
    right_found = counts.right.sum() - right_missed
    errors = right_missed + counts.wrong.sum() - wrong_found
    f1_right = 2 * right_found / (2 * right_found + errors)
    f1_wrong = 2 * wrong_found / np.maximum(2 * wrong_found + errors, 1e-300)
    macro = (f1_right + f1_wrong) / 2
    best = thresholds[macro >= macro.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan
