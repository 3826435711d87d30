"""What does it cost that training sees the data's earlier labels, and selection always +?

    python -m benchmarks.history --seeds 3

trains the head plus_minus on the demo chains, with the labels they had before they were spoiled,
under ``--history plus`` (training sees what selection will see) and ``--history gold`` (the
published convention), and scores the candidates of the validation set, where all earlier labels
are +. Printed are the accuracy of best-of-8 and the chance that a sound prefix has a higher score
than an unsound one. Finished runs are kept in ``--work`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.small_world import clean_records, prefix_auroc
from reweighting.reproduce.configs import DEMO
from reweighting.reproduce.study import VALIDATION, Study
from reweighting.selection.best_of_n import interval
from reweighting.system.terminal import quiet


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="training seeds 1 … N (default: 3)")
    add("--iterations", type=int, default=120, help="lower steps per run (default: 120)")
    add("--work", type=Path, default=Path("history_runs"), help="where runs are kept")
    arguments = parser.parse_args()
    quiet()
    arguments.work.mkdir(parents=True, exist_ok=True)
    records = arguments.work / "clean.json"
    if not records.exists():
        records.write_text(json.dumps(clean_records()))
    flags = ["--baseline", "--iteration_num", str(arguments.iterations)]
    flags += ["--batch_size", "4", "--lr", "4e-4", "--score_head", "plus_minus", "--history"]
    variants = {history: [*flags, history] for history in ("plus", "gold")}
    study = Study(
        replace(DEMO, train=records), arguments.work, variants, range(1, arguments.seeds + 1)
    )
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    study.train(say)
    study.score([VALIDATION], say)

    print("| history in training | best of 8, % | by seed | AUROC of prefixes, by seed |")
    print("|---|---|---|---|")
    right = {}
    for variant in variants:
        right[variant] = 100 * study.right(variant, VALIDATION)["mean_log_odds"]
        areas = [prefix_auroc(study.log_odds(variant, seed, VALIDATION)) for seed in study.seeds]
        by_seed = ", ".join(f"{value:.1f}" for value in right[variant].mean(axis=1))
        areas = ", ".join(f"{area:.3f}" for area in areas)
        print(f"| {variant} | {right[variant].mean():.1f} | {by_seed} | {areas} |")
    mean, _, low, high = interval(right["gold"] - right["plus"])
    print(f"\ngold minus plus: {mean:+.1f} points, 95 % interval {low:+.1f} … {high:+.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
