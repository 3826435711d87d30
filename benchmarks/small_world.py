"""Does domain reweighting find the bad data, and does it help, where both can be known?

    python -m benchmarks.small_world --seeds 5

trains, for every seed, the vanilla reward model, the reweighted one and the one weighted by the
true quality, at batch 8/8, and the reweighted one at the paper's batch 1/1; scores the candidates
of all held-out sets; prints the rank correlation of learned weight and stated quality and the
accuracy of best-of-8 against one sample, majority vote and the oracle. The reweighted model is also
shown the same candidates with a blank image: what text alone gives away. ``--variants "clean
labels"`` trains on the labels as they were before they were spoiled. Interrupted runs go on,
finished ones are kept in ``--work`` and not repeated. :mod:`benchmarks.demo` is one seed of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from data import make_demo
from data.world.training import as_sampled, train_records
from reweighting.evaluate.metrics import Counts, auroc
from reweighting.reproduce.configs import DATA, DEMO
from reweighting.reproduce.study import VALIDATION, CommandFailed, Study
from reweighting.reward_model.aggregation import LogOdds
from reweighting.selection.best_of_n import interval
from reweighting.system import terminal
from reweighting.system.files import read_json, write_json

TESTS = list(DEMO.sets)
BLANK = "reweighted, blank image"

# The kinds of run, unless --variants says otherwise.
STANDARD = ("vanilla", "reweighted", "true quality", "reweighted 1/1")


def variants(work: Path, iterations: int) -> dict[str, list[str]]:
    """Flags of every kind of run, by its name."""
    eight = ["--iteration_num", str(iterations)]
    # The paper's batch: four times the upper steps, a tenth of the records.
    one = ["--batch_by", "record", "--batch_size", "1", "--meta_batch_size", "1"]
    one += ["--iteration_num", str(4 * iterations)]
    return {
        "vanilla": [*eight, "--baseline"],
        "reweighted": eight,
        "true quality": [*eight, "--domain_weights", str(work / "quality.json")],
        "reweighted 1/1": one,
        "clean labels": [*eight, "--baseline", "--train_json_file", str(work / "clean.json")],
    }


def qualities() -> dict[str, float]:
    """The stated quality of every domain."""
    return {d["name"]: d["quality"] for d in read_json(DATA / "domains.json")}


def clean_records() -> list[dict]:
    """The train records with the labels and images they had before they were spoiled."""
    return train_records(as_sampled(make_demo.train_items(seed=1, size=10_000)))


def rank_correlation(weights: dict[str, float]) -> float:
    """Spearman's correlation of weight and stated quality over the corrupted domains."""
    corrupted = {name: value for name, value in qualities().items() if value < 1}
    return float(spearmanr([weights[d] for d in corrupted], list(corrupted.values())).statistic)


def prefix_auroc(log_odds: list[LogOdds]) -> float:
    """Chance that a sound prefix of the validation set has a larger z than an unsound one."""
    records = read_json(DEMO.validation)
    z = [z for chains in log_odds for steps in chains for z in steps]
    sound = [x for record in records for steps in record["step_correct"] for x in steps]
    return auroc(Counts.of(np.array(z), np.array(sound)))


def blank_study(study: Study, sets: Sequence[str]) -> Study:
    """The reweighted runs of a study, asked about the same candidates beside an empty image."""
    folder = study.work / "blank"
    for name in sets:
        records = read_json(DEMO.candidates(name))
        for record in records:
            size = Image.open(DATA / record["image_path"]).size
            record["image_path"] = f"{size[0]}x{size[1]}.png"
            if not (folder / record["image_path"]).exists():
                folder.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", size, "white").save(folder / record["image_path"])
        write_json(folder / f"{name}.json", records)
    files = {name: folder / f"{name}.json" for name in sets}
    blank = replace(DEMO, sets=files, validation=folder / f"{VALIDATION}.json",
                    image_root=folder, selected="selected_blank")  # fmt: skip
    variants = {"reweighted": study.variants["reweighted"]}
    return Study(blank, study.work, variants, study.seeds)


def accuracies(
    study: Study, sets: Sequence[str], blank: Study | None = None
) -> dict[str, list[np.ndarray]]:
    """For every method and set: right or wrong, best of 8, ``[seeds, questions]``."""
    found: dict[str, list[np.ndarray]] = {}
    for name in sets:
        runs = {variant: study.right(variant, name) for variant in study.variants}
        first = next(iter(runs.values()))  # baselines without a model are the same in all
        columns = {method: first[method][:1] for method in ("one sample", "majority")}
        for variant, methods in runs.items():
            columns[variant] = methods["mean_log_odds"]
            if variant == "reweighted" and blank:
                columns[BLANK] = blank.right(variant, name)["mean_log_odds"]
        for method, values in (columns | {"oracle": first["oracle"][:1]}).items():
            found.setdefault(method, []).append(values)
    return found


def gap(right: dict[str, list[np.ndarray]], better: str, worse: str) -> np.ndarray:
    """Differences in points, ``[seeds, questions]`` over all sets."""
    left, other = (np.concatenate(right[method], axis=1) for method in (better, worse))
    return 100 * (left - other)


def run_table(study: Study) -> list[str]:
    """A row for every run: what it learned, how well it judges prefixes, how long it took."""
    lines = ["| run | seed | Spearman | weights | prefix AUROC, validation | seconds |"]
    lines.append("|---|---|---|---|---|---|")
    for variant in study.variants:
        for number, seed in enumerate(study.seeds):
            area = prefix_auroc(study.log_odds(variant, seed, VALIDATION))
            order = spread = "–"
            if variant in study.weights:
                weights = study.weights[variant][number]
                order = f"{rank_correlation(weights):.2f}"
                spread = f"{min(weights.values()):.2f} … {max(weights.values()):.2f}"
            seconds = study.seconds(variant, seed)
            lines.append(
                f"| {variant} | {seed} | {order} | {spread} | {area:.3f} | {seconds:.0f} |"
            )
    return lines


def weight_table(study: Study) -> list[str]:
    """Learned weight of every domain beside its stated quality."""
    several = len(study.seeds) > 1
    spread = " (mean ± standard deviation over seeds)" if several else ""
    lines = ["", f"Learned weights{spread}:", ""]
    lines.append("| domain | stated quality |" + "".join(f" {n} |" for n in study.weights))
    lines.append("|---" * (2 + len(study.weights)) + "|")
    for domain, value in qualities().items():
        cells = []
        for runs in study.weights.values():
            found = [weights[domain] for weights in runs]
            cells.append(f"{statistics.mean(found):.2f}")
            if several:
                cells[-1] += f" ± {statistics.stdev(found):.2f}"
        lines.append(f"| {domain} | {value:.2f} | " + " | ".join(cells) + " |")
    for variant, runs in study.weights.items() if several else ():
        table = np.array([list(weights.values()) for weights in runs])  # [seeds, domains]
        signal, noise = table.mean(0).std(), table.std(0, ddof=1).mean()
        lines += [
            "",
            f"{variant}: spread between domains {signal:.2f}, between seeds {noise:.2f}: "
            f"signal to noise {signal / noise:.1f}",
        ]
    return lines


def accuracy_table(right: dict[str, list[np.ndarray]], sets: Sequence[str]) -> list[str]:
    """Accuracy of every method on every set, and what the runs gain over the others."""
    lines = ["", "Right answers in per cent, best of 8:", ""]
    lines.append("| set |" + "".join(f" {method} |" for method in right))
    lines.append("|---" * (1 + len(right)) + "|")
    for number, name in enumerate(sets):
        cells = [f"{100 * values[number].mean():.1f}" for values in right.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    average = [100 * np.mean([v.mean() for v in values]) for values in right.values()]
    lines.append("| **average** | " + " | ".join(f"{value:.1f}" for value in average) + " |")
    lines += ["", "Differences over all questions of these sets, points (95 % interval):", ""]
    for better, worse in (
        ("reweighted", "one sample"),
        ("reweighted", "vanilla"),
        ("reweighted", "majority"),
        ("true quality", "vanilla"),
        ("reweighted 1/1", "vanilla"),
    ):
        if better in right and worse in right:
            mean, _, low, high = interval(gap(right, better, worse))
            lines.append(f"- {better} - {worse}: {mean:+.2f} ({low:+.2f} … {high:+.2f})")
    return lines


def report(study: Study, right: dict[str, list[np.ndarray]], sets: Sequence[str]) -> str:
    """All tables, as Markdown."""
    return "\n".join([*run_table(study), *weight_table(study), *accuracy_table(right, sets)])


def draw(study: Study, right: dict[str, list[np.ndarray]], sets: Sequence[str], path: Path) -> None:
    """Left: weight against quality, a point per domain and seed. Right: accuracy by set."""
    figure, (left, bars) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(1, 1.5))
    quality = qualities()
    for (name, runs), colour in zip(study.weights.items(), ("#2a6f97", "#c98986"), strict=False):
        points = [(quality[d], w) for weights in runs for d, w in weights.items()]
        left.scatter(*zip(*points, strict=True), s=18, alpha=0.7, color=colour, label=name)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.set_xlabel("stated quality of the domain")
    left.set_ylabel("learned weight")
    left.legend(frameon=False)
    shown = [method for method in right if method != BLANK]
    width = 0.85 / len(shown)
    for number, method in enumerate(shown):
        heights = [100 * values.mean() for values in right[method]]
        at = np.arange(len(sets)) + (number - (len(shown) - 1) / 2) * width
        colour = plt.get_cmap("viridis")(number / max(1, len(shown) - 1))
        bars.bar(at, heights, width, label=method, color=colour)
    bars.set_xticks(range(len(sets)), sets)
    bars.set_ylabel("right answers, %")
    bars.set_ylim(40, 112)
    bars.legend(frameon=False, ncols=3, fontsize=8, loc="upper center")
    for axes in (left, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, default=5, help="training seeds 1 … N (default: 5)")
    add("--work", type=Path, default=Path("weights/small_world"), help="where runs are kept")
    add("--iterations", type=int, default=360, help="lower steps at batch 8 (default: 360)")
    names = list(variants(Path(), 0))
    add("--variants", nargs="*", choices=names, default=STANDARD, help="kinds of run")
    add("--sets", nargs="*", default=TESTS, help="held-out sets to report")
    add("--skip_blank", action="store_true", help="do not score with a blank image")
    add("--output", type=Path, help="also write the tables to this file")
    add("--figure", type=Path, help="draw weights and accuracies into this file")
    arguments = parser.parse_args()
    terminal.quiet()
    work = arguments.work
    write_json(work / "quality.json", qualities())
    flags = variants(work, arguments.iterations)
    chosen = {name: flags[name] for name in arguments.variants}
    if "clean labels" in chosen:
        write_json(work / "clean.json", clean_records())
    study, blank = Study(DEMO, work, chosen, range(1, arguments.seeds + 1)), None
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    try:
        study.train(say)
        study.score(list(dict.fromkeys([*arguments.sets, VALIDATION])), say)
        if "reweighted" in chosen and not arguments.skip_blank:
            blank = blank_study(study, arguments.sets)
            blank.score(arguments.sets, say)
    except CommandFailed as error:
        terminal.error(error)
        return 1
    right = accuracies(study, arguments.sets, blank)
    text = report(study, right, arguments.sets)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    if arguments.figure:
        draw(study, right, arguments.sets, arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
