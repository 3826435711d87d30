"""The measures of scored records: by source and over all, with intervals, beside baselines.

A row of results is a judge: the model, uniformly random scores, or the verdict that every step is
right. A place is a source, or one of the three ways to look at all sources at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..reward_model.aggregation import LogOdds
from ..selection.best_of_n import RESAMPLES
from ..system.terminal import printable
from . import metrics
from .layouts import ALL, BY_SOURCES, BY_STEPS, StepRecord
from .metrics import Counts

DEFAULT_THRESHOLD = 0.5
MAX_NAME = 40  # characters of a source's name in the table and in the figure
Scores = list[np.ndarray]  # V after every step, for every chain of a record
Measures = dict[str, dict[str, dict[str, float | None]]]  # place -> measure -> value, low, high


@dataclass(frozen=True)
class Rules:
    """What a benchmark's authors define beside the labels.

    Args:
        is_right: a step is called right if this holds of its score and the threshold.
        first_error: whether chains are judged by their first wrong step too (ProcessBench).
        main: the measure that they report.
        published: macro-F1 in per cent by model, and where they stand.
    """

    is_right: Callable[[np.ndarray, float], np.ndarray] = operator.ge
    first_error: bool = False
    main: str = "macro_f1"
    published: tuple[str, dict[str, float]] = ("", {})


RULES = {
    "visualprocessbench": Rules(
        published=(
            "macro-F1, VisualPRM paper, arXiv 2503.10291; their thresholds differ",
            {"random": 50.0, "GPT-4o": 60.3, "VisualPRM-8B": 62.0},
        )
    ),
    "processbench": Rules(first_error=True, main="first_error_f1"),
    "prmbench": Rules(is_right=operator.gt),
    "candidates": Rules(),
}


def scores_of(log_odds: Sequence[LogOdds]) -> list[Scores]:
    """V = σ(z) of every step, in float64, from the log-odds z of every record."""
    return [[1 / (1 + np.exp(-np.array(z, dtype=float))) for z in chains] for chains in log_odds]


def random_scores(records: Sequence[StepRecord], seed: int = 0) -> list[Scores]:
    """Uniform scores in [0, 1) for every step."""
    rng = np.random.default_rng(seed)
    return [[rng.random(len(labels)) for labels in record.labels] for record in records]


def always_right(records: Sequence[StepRecord]) -> list[Scores]:
    """The score 1 for every step."""
    return [[np.ones(len(labels)) for labels in record.labels] for record in records]


def first_below(called_right: np.ndarray) -> int:
    """Index of the first step of a chain ``[steps]`` that is not called right; -1 if none is."""
    return int(called_right.argmin()) if not called_right.all() else -1


class Part:
    """The judged steps of some records, ready to be measured again and again.

    Args:
        records: ``[records]``; their steps without a label are left out.
        scores: V of all steps of every record.
        threshold: of the score of a right step.
    """

    def __init__(
        self,
        records: Sequence[StepRecord],
        scores: Sequence[Scores],
        threshold: float,
        rules: Rules,
    ) -> None:
        steps, chains = [], []
        for owner, (record, values) in enumerate(zip(records, scores, strict=True)):
            for labels, chain in zip(record.labels, values, strict=True):
                pairs = list(zip(labels, chain.tolist(), strict=True))
                steps += [(owner, label, score) for label, score in pairs if label is not None]
                wrong = labels.index(False) if False in labels else -1
                verdicts = rules.is_right(chain, threshold)
                chains.append((owner, wrong >= 0, wrong == first_below(verdicts)))
        owners, labels, values = np.array(steps, dtype=float).reshape(-1, 3).T
        self._owners, self._right = owners.astype(int), labels
        self._distinct, self._place = np.unique(values, return_inverse=True)
        self._called_right = rules.is_right(self._distinct, threshold)
        self._chains = np.array(chains, dtype=int).reshape(-1, 3).T
        self._first_error = rules.first_error

    def counts(self, times: np.ndarray) -> Counts:
        """Steps by score, the steps of every record counted ``times`` ``[records]``."""
        return Counts.at(self._distinct, self._place, self._right, times[self._owners])

    def measures(self, times: np.ndarray) -> dict[str, float]:
        """All measures with every record counted ``times`` ``[records]``; NaN is undefined.

        ``steps`` is the number of judged steps.
        """
        counts = self.counts(times)
        f1_right, f1_wrong = metrics.f1_scores(counts, self._called_right)
        found = {
            "macro_f1": (f1_right + f1_wrong) / 2,
            "f1_right": f1_right,
            "f1_wrong": f1_wrong,
            "auroc": metrics.auroc(counts),
            "average_precision": metrics.average_precision(counts),
            "calibration_error": metrics.calibration_error(counts),
        }
        if self._first_error:
            found |= self._first_errors(times)
        return found | {"steps": float((counts.right + counts.wrong).sum())}

    def _first_errors(self, times: np.ndarray) -> dict[str, float]:
        """Share of wrong and of right chains whose first wrong step is found (for a right chain:
        that there is none), and their harmonic mean (ProcessBench)."""
        owner, is_wrong, is_found = self._chains
        weight = times[owner]

        def share(chosen: np.ndarray) -> float:
            total = (weight * chosen).sum()
            return float((weight * chosen * is_found).sum() / total) if total else np.nan

        wrong, right = share(is_wrong), share(1 - is_wrong)
        mean = 2 * wrong * right / (wrong + right) if wrong + right else 0.0
        return {"accuracy_wrong": wrong, "accuracy_right": right, "first_error_f1": mean}


def measure(
    records: Sequence[StepRecord],
    scores: Sequence[Scores],
    threshold: float,
    rules: Rules,
    resamples: int = RESAMPLES,
) -> Measures:
    """Every measure at every place, with its 95 % bootstrap interval.

    The bootstrap draws the records of every source anew, as many as there are. Its interval is that
    of the resamples' deviations from their median, around the value of all data: drawing with
    repetition alone raises some measures, such as the calibration error. A resample in which a
    measure is not defined does not count; a value that is not defined is None.

    Args:
        records: at least one.
        scores: V of all steps of every record.
        threshold: a step is called right if its score is not below it (for PRMBench: above it).
    """
    names = np.array([record.source for record in records])
    sources = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    parts = {
        name: Part([records[i] for i in rows], [scores[i] for i in rows], threshold, rules)
        for name, rows in ((name, rows.tolist()) for name, rows in sources.items())
    }
    whole = Part(records, scores, threshold, rules)

    def everywhere(times: np.ndarray) -> dict[str, dict[str, float]]:
        found = {name: parts[name].measures(times[rows]) for name, rows in sources.items()}
        return found | {
            ALL: whole.measures(times),
            BY_STEPS: _mean(found, lambda measures: measures["steps"]),
            BY_SOURCES: _mean(found, lambda measures: 1.0),
        }

    rng = np.random.default_rng(0)
    values = everywhere(np.ones(len(records)))
    drawn = []
    for _ in range(resamples):
        times = np.zeros(len(records))
        for rows in sources.values():
            times[rows] = np.bincount(rng.integers(0, len(rows), len(rows)), minlength=len(rows))
        drawn.append([list(at_place.values()) for at_place in everywhere(times).values()])
    ends = _around(np.array([list(at_place.values()) for at_place in values.values()]),
                   np.array(drawn))  # fmt: skip
    return {
        place: {
            name: dict(zip(("value", "low", "high"), map(_number, (value, *ends[:, i, k])),
                           strict=True))
            for k, (name, value) in enumerate(at_place.items())
            if name != "steps"
        }
        for i, (place, at_place) in enumerate(values.items())
    }  # fmt: skip


def _mean(
    by_source: dict[str, dict[str, float]], weight: Callable[[dict[str, float]], float]
) -> dict[str, float]:
    """The weighted mean over the sources in which a measure is defined."""
    found = {}
    for name in next(iter(by_source.values())):
        known = [(m[name], weight(m)) for m in by_source.values() if not np.isnan(m[name])]
        total = sum(w for _, w in known)
        found[name] = sum(value * w for value, w in known) / total if total else np.nan
    return found


def _around(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Ends of the intervals around ``values`` ``[...]`` from ``drawn`` ``[resamples, ...]``."""
    # Where nothing is defined, NaN stands for the interval, without numpy's warning.
    known = np.where(np.isnan(drawn).all(0), 0.0, drawn)
    low, middle, high = np.nanpercentile(known, (2.5, 50, 97.5), axis=0)
    return np.clip(np.stack([values + low - middle, values + high - middle]), 0, 1)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def sizes(records: Sequence[StepRecord]) -> dict[str, dict[str, int]]:
    """By source and over all: the number of records, and of right, wrong and unjudged steps."""
    found: dict[str, dict[str, int]] = {}
    names = {True: "right", False: "wrong", None: "not judged"}
    for record in records:
        for place in (record.source, ALL):
            row = found.setdefault(place, {"records": 0, **dict.fromkeys(names.values(), 0)})
            row["records"] += 1
            for label in (label for labels in record.labels for label in labels):
                row[names[label]] += 1
    return found


def evaluate(
    records: Sequence[StepRecord], scores: Sequence[Scores], threshold: float, rules: Rules
) -> dict:
    """What is written: sizes, the measures of every row, and the model's reliability diagram."""
    whole = Part(records, scores, threshold, rules)
    diagram = metrics.reliability(whole.counts(np.ones(len(records))))
    return {
        "sizes": sizes(records),
        "rows": {
            "model": measure(records, scores, threshold, rules),
            # A threshold chosen for the model means nothing to other scores.
            "random": measure(records, random_scores(records), DEFAULT_THRESHOLD, rules),
            "always right": measure(records, always_right(records), DEFAULT_THRESHOLD, rules),
        },
        "reliability": [
            {"mean_score": score, "right": right, "steps": int(steps)}
            for score, right, steps in diagram
        ],
    }


def at_a_glance(
    records: Sequence[StepRecord], scores: Sequence[Scores], rules: Rules
) -> dict[str, float | None]:
    """The measures of all steps pooled, at :data:`DEFAULT_THRESHOLD` and without intervals.

    ``steps`` is the number of judged steps; what is not defined is None.
    """
    whole = Part(records, scores, DEFAULT_THRESHOLD, rules)
    return {name: _number(value) for name, value in whole.measures(np.ones(len(records))).items()}


def choose_threshold(records: Sequence[StepRecord], scores: Sequence[Scores]) -> float:
    """The threshold that maximises macro-F1 over all judged steps of a validation file.

    Raises:
        ValueError: its steps are all right or all wrong.
    """
    part = Part(records, scores, DEFAULT_THRESHOLD, Rules())
    return metrics.best_threshold(part.counts(np.ones(len(records))))


def format_table(results: dict, main: str) -> str:
    """Measures in per cent: the model by source and over all, the baselines over all.

    Args:
        main: the measure that is shown first, with its interval.
    """
    rows, sizes = results["rows"], results["sizes"]
    places = list(rows["model"])
    others = [name for name in rows["model"][ALL] if name != main]
    names = {place: printable(place, MAX_NAME) for place in places}
    width = max(22, *(len(title) + 2 for title in names.values()))
    titles = [main, "interval", *others]
    cells = [max(len(title), 11) + 2 for title in titles]
    head = "".join(f"{title:>{cell}}" for title, cell in zip(titles, cells, strict=True))
    lines = [f"{'':<{width}}{'steps':>8}{'% wrong':>9}{head}"]
    for name, by_place in rows.items():
        lines.append(name)
        for place in places if name == "model" else (ALL, BY_STEPS, BY_SOURCES):
            size = sizes.get(place, sizes[ALL])
            steps = size["right"] + size["wrong"]
            share = _percent(size["wrong"] / steps if steps else None)
            found = by_place[place]
            between = [_percent(found[main][end]) for end in ("low", "high")]
            texts = [_percent(found[main]["value"]), f"[{', '.join(between)}]"]
            texts += [_percent(found[other]["value"]) for other in others]
            row = "".join(f"{text:>{cell}}" for text, cell in zip(texts, cells, strict=True))
            lines.append(f"  {names[place]:<{width - 2}}{steps:>8,}{share:>9}{row}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
