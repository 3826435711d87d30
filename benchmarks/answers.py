"""How well final answers are compared, on notations that the rules were not written for.

    python -m benchmarks.answers                      # the comparison, as results/…-answers.md
    python -m benchmarks.answers --votes              # majority of 8 on the demo sets, old and new

:mod:`benchmarks.notations` draws the pairs. The rules were tuned on seed 1; seed 2 is reported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.notations import Generator, Pair
from reweighting.records.answers import comparison as answers
from reweighting.selection import best_of_n

ROOT = Path(__file__).resolve().parents[1]
OLD = "30d997c"  # the last revision with the rules before


def old_rules(revision: str = OLD) -> types.ModuleType:
    """``reweighting/answers.py`` as it was, with what it used, in a package of another name."""
    command = ["git", "-C", str(ROOT), "archive", revision, "reweighting"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        (Path(folder) / "reweighting").rename(Path(folder) / "reweighting_before")
        sys.path.insert(0, folder)
        try:
            return importlib.import_module("reweighting_before.answers")
        finally:
            sys.path.remove(folder)


def math_verify_alone() -> Callable[[str, str, list[str] | None], bool]:
    """A comparison that leaves everything to math-verify, with letters as its strings."""
    from math_verify import (
        ExprExtractionConfig,
        LatexExtractionConfig,
        StringExtractionConfig,
        parse,
        verify,
    )

    logging.disable(logging.WARNING)
    strings = StringExtractionConfig(strings=tuple("ABCDEFGHIJ"))
    rules = [LatexExtractionConfig(), ExprExtractionConfig(), strings]

    def same(predicted: str, true: str, choices: list[str] | None) -> bool:
        marked = [t if "$" in t or "\\boxed" in t else f"${t}$" for t in (true, predicted)]
        return bool(verify(*(parse(text, rules) for text in marked)))

    return same


class Score(NamedTuple):
    """How well one comparison did on one list of pairs; times are in seconds."""

    precision: float
    recall: float
    median: float
    longest: float
    mistakes: list[Pair]


def score(same: Callable, pairs: list[Pair]) -> Score:
    """How far ``same(predicted, true, choices)`` agrees with how the pairs were made."""
    counts: dict[tuple[bool, bool], int] = defaultdict(int)
    times, mistakes = [], []
    for pair in pairs:
        start = time.perf_counter()
        try:
            said = same(pair.predicted, pair.true, pair.choices)
        except Exception:  # other rules may raise one, ours never do
            if same is answers.same:
                raise
            said = False
        times.append(time.perf_counter() - start)
        counts[said, pair.same] += 1
        if said != pair.same:
            mistakes.append(pair)
    right = counts[True, True]
    return Score(
        right / max(1, right + counts[True, False]),
        right / max(1, right + counts[False, True]),
        statistics.median(times),
        max(times),
        mistakes,
    )


def report(seed: int, count: int) -> str:
    """The comparison as a Markdown table."""
    pairs = Generator(seed).pairs(count)
    answers.same("x^2", "x \\cdot x")  # starts the helper process
    rules = {
        "these rules": answers.same,
        "math-verify alone": math_verify_alone(),
        f"the rules before ({OLD})": old_rules().same,
    }
    scores = {name: score(same, pairs) for name, same in rules.items()}
    lines = [
        f"{count} pairs of {len({p.family for p in pairs})} families, seed {seed}, "
        f"{sum(p.same for p in pairs)} of them the same.",
        "",
        '| rules | precision of "same", % | recall, % | median, ms | longest, ms |',
        "| --- | --- | --- | --- | --- |",
    ]
    for name, s in scores.items():
        cells = (100 * s.precision, 100 * s.recall, 1000 * s.median, 1000 * s.longest)
        lines.append(f"| {name} | " + " | ".join(f"{c:.2f}" for c in cells) + " |")
    lines += ["", "Mistakes by family (of these rules, math-verify, the rules before):", ""]
    lines += [
        "| family | pairs | these rules | math-verify | before |",
        "| --- | --- | --- | --- | --- |",
    ]
    for family in sorted({p.family for p in pairs}):
        wrong = [sum(m.family == family for m in s.mistakes) for s in scores.values()]
        total = sum(p.family == family for p in pairs)
        lines.append(f"| {family} | {total} | " + " | ".join(map(str, wrong)) + " |")
    if mistakes := scores["these rules"].mistakes:
        lines += ["", "What these rules get wrong:", ""]
        lines += [
            f"- `{m.predicted}` / `{m.true}`: {'same' if m.same else 'different'}" for m in mistakes
        ]
    return "\n".join(lines)


def votes(paths: list[Path], revision: str = OLD) -> str:
    """Accuracy of the majority of 8 on candidates files, by the old rules and by these."""
    old = old_rules(revision)
    lines = [
        "| set | candidates | no answer, before | now | majority of 8, before | now | oracle |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for path in paths:
        records = json.loads(path.read_text(encoding="utf-8"))
        before, now, oracle, lost, unread, total = [], [], [], 0, 0, 0
        for record in records:
            texts, choices = record["candidates"], record.get("choices")
            total += len(texts)
            unread += answers.unreadable(texts, choices)
            pool = best_of_n.Pool.of(
                texts, record["true_false"], [[0.0]] * len(texts), ["last"], choices
            )
            accuracies = pool.accuracies(8)
            now.append(accuracies["majority"])
            oracle.append(accuracies["oracle"])
            was = [old.normalise(old.extract(text)) for text in texts]
            lost += was.count("")
            numbers = {text: index for index, text in enumerate(dict.fromkeys(was))}
            pool.parties = np.array([numbers[text] if text else -1 for text in was])
            before.append(pool.accuracies(8)["majority"])
        means = (100 * float(np.mean(values)) for values in (before, now, oracle))
        lines.append(
            f"| {path.stem} | {total} | {lost} | {unread} | "
            + " | ".join(f"{mean:.1f}" for mean in means)
            + " |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.add_argument("--seed", type=int, default=2, help="1 is what the rules were tuned on")
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--votes", action="store_true", help="majority on the demo sets instead")
    arguments = parser.parse_args(argv)
    if arguments.votes:
        print(votes([*sorted((ROOT / "data").glob("test_*.json")), ROOT / "data/validation.json"]))
    else:
        print(report(arguments.seed, arguments.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
