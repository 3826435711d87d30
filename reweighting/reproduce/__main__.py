"""The paper's study with one command: main table, scaling in N, aggregations, ablations, weights.

    python -m reweighting.reproduce --out weights/study          # on the demo data, on a CPU
    python -m reweighting.reproduce --config paper --out weights/study   # as in the paper, on a GPU

writes ``RESULTS.md`` and figures into ``--out``, with the paper's numbers beside them.
Trainings and scores are kept in ``--work``: an interrupted study goes on where it was.
"""

from __future__ import annotations

import platform
import shlex
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: no display is needed
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from .. import terminal
from ..files import write_records, write_text
from ..records.reader import RecordReader, load_candidates
from ..records.steps import join
from ..reward_model.aggregation import AGGREGATIONS
from ..reward_model.precision import unusable
from ..selection.best_of_n import evaluate, interval
from ..terminal import Parser, quiet
from .study import REPOSITORY, Setup, Study

DATA = REPOSITORY / "data"

DEMO = Setup(
    train=DATA / "train.json",
    meta=DATA / "meta.json",
    validation=DATA / "validation.json",
    sets={
        name: DATA / f"test_{name}.json"
        for name in ("combination", "hard", "wording", "errors", "mix")
    },
    image_root=DATA,
    reward_model=str(REPOSITORY / "weights" / "tiny-qwen2-vl"),
    flags=("--preset", "demo", "--num_workers", "1", "--save_every_iterations", "200"),
)
PAPER = Setup(
    train=DATA / "paper" / "train.json",
    meta=DATA / "paper" / "meta.json",
    validation=DATA / "paper" / "validation.json",
    sets={
        name: DATA / "paper" / f"{name}.json"
        for name in ("WeMath", "MathVista", "MathVision", "MMVet", "MMStar")
    },
    image_root=DATA / "paper" / "images",
    reward_model="Qwen/Qwen2-VL-2B-Instruct",
    flags=("--preset", "paper"),
    device="cuda",
    precision="bf16",
)
# How each variant is called in the paper, and its flags. s1's bounds are the middle half of the
# demo's step lengths; the published ones belong to the published data.
COMMON = {
    "vanilla PRM": ["--baseline"],
    "DreamPRM": [],
    "ORM": ["--baseline", "--train_subset", "outcome"],
    "without aggregation loss": ["--meta_target", "prefix"],
}
# DreamPRM-1.5: the lower level moves once before each upper step. The table sees a record of the
# demo once or twice in a run of this length.
INSTANCE = {
    "Instance Table": ["--reweighting", "instance_table", "--unroll_steps", "1"],
    "Instance Net": [
        *("--reweighting", "instance_net", "--net_features", "labels", "--unroll_steps", "1"),
        *("--meta_lr", "0.02", "--cold_start_iterations", "60"),
    ],
}
SANITY = "DreamPRM, meta set from the tests"
SUBSETS = {
    "demo": {
        "random subset": ["--baseline", "--train_subset", "random", "--subset_size", "2000"],
        "s1-PRM": [
            *("--baseline", "--train_subset", "s1", "--subset_size", "400"),
            *("--step_length", "44", "57"),
        ],
    },
    "paper": {
        "random subset": ["--baseline", "--train_subset", "random", "--subset_size", "10000"],
        "s1-PRM": ["--baseline", "--train_subset", "s1", "--subset_size", "2000"],
    },
}
MAIN_METHODS = ("one sample", "majority", "ORM", "random subset", "s1-PRM", "vanilla PRM",
                "DreamPRM", "Instance Table", "Instance Net", SANITY, "oracle")  # fmt: skip
WITHOUT_MODEL = ("one sample", "majority", "weighted vote", "oracle")

# DreamPRM (arXiv 2505.20241), main table: InternVL-2.5-8B-MPO on five benchmarks, per cent.
PUBLISHED_SETS = ("WeMath", "MathVista", "MathVision", "MMVet", "MMStar")
PUBLISHED = {
    "zero-shot": (51.7, 65.4, 20.4, 55.9, 58.9),
    "self-consistency": (56.4, 67.1, 20.7, 57.4, 59.6),
    "ORM": (56.9, 65.3, 20.5, 55.9, 60.1),
    "vanilla PRM": (54.2, 67.2, 20.6, 58.9, 60.8),
    "CaR-PRM": (54.7, 67.5, 21.0, 60.6, 61.1),
    "s1-PRM": (57.1, 65.8, 20.2, 60.1, 60.4),
    "DreamPRM": (57.4, 68.9, 22.1, 61.4, 62.3),
}
COMPARABLE = {
    "demo": "The demo's numbers and the paper's are **not comparable** in size: another model (1.4 "
    "M parameters, pre-trained on this world), another kind of question, a simulated reasoner, and "
    "labels spoiled on purpose. What can be compared is the pattern: which method is above which.",
    "paper": "Numbers are comparable where candidates, benchmark version and answer checking are "
    "the paper's; it used a judge model for some benchmarks, this study the rules of answers.py.",
}


def meta_from_tests(setup: Setup, work: Path) -> Path:
    """A meta set of the test questions themselves: a right and a wrong chain of each.

    The paper's sanity check (DreamPRM-1.5): how much is there to gain if the meta set could not fit
    better? Its row is no result, as it has seen the answers.
    """
    records = []
    for file in setup.sets.values():
        for sample in load_candidates(RecordReader(str(file), str(setup.image_root))):
            for label in (True, False):
                if label in sample.true_false:
                    chain = sample.candidates[sample.true_false.index(label)]
                    records.append({"input": join(sample.question, chain), "true_false": label,
                                    "image_path": sample.image})  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    path = work / "meta_from_tests.json"
    write_records(path, records)
    return path


class Results:
    """The numbers of a finished study."""

    def __init__(self, study: Study, config: str) -> None:
        self.study, self.config = study, config
        self.sets = list(study.setup.sets)
        # right[variant][set][method][N] is [seeds, questions]
        self.right = {
            variant: {name: self._by_size(variant, name) for name in self.sets}
            for variant in study.variants
        }

    def _by_size(self, variant: str, name: str) -> dict[str, dict[int, np.ndarray]]:
        by_seed = [evaluate(self.study.pools(variant, s, name)) for s in self.study.seeds]
        return {
            method: {size: np.stack([found[method][size] for found in by_seed]) for size in sizes}
            for method, sizes in by_seed[0].items()
        }

    def values(self, method: str, name: str, size: int | None = None) -> np.ndarray:
        """Right or wrong, ``[seeds, questions]``, by a method of the main table or a variant.

        ``size`` is N, the whole pool unless given.
        """
        variant, way = method, "mean_log_odds"
        if method in WITHOUT_MODEL:
            variant, way = "DreamPRM", method
        elif method == "ORM":
            way = "last"  # an outcome reward model scores whole chains
        by_size = self.right[variant][name][way]
        found = by_size[size or max(by_size)]
        # Without a model all seeds are the same: one of them is enough.
        return found[:1] if way in ("one sample", "majority", "oracle") else found

    def pooled(self, method: str, size: int | None = None) -> np.ndarray:
        """Over all sets, ``[seeds, questions]``, in per cent."""
        return 100 * np.concatenate([self.values(method, n, size) for n in self.sets], axis=1)

    def methods(self) -> list[str]:
        """The rows of the main table that were run."""
        return [m for m in MAIN_METHODS if m in WITHOUT_MODEL or m in self.study.variants]

    def main_table(self) -> list[str]:
        """Methods down, sets across, with 95 % intervals."""
        lines = ["| method | " + " | ".join(self.sets) + " | average |"]
        lines.append("|---" * (len(self.sets) + 2) + "|")
        for method in self.methods():
            cells = [_percent(100 * self.values(method, name)) for name in self.sets]
            lines.append(
                f"| {method} | " + " | ".join([*cells, _percent(self.pooled(method))]) + " |"
            )
        return lines

    def gaps(self) -> list[str]:
        """What DreamPRM gains over the others, in points."""
        ours, lines = self.pooled("DreamPRM"), []
        others = [m for m in self.methods() if m not in ("DreamPRM", "oracle")]
        if "without aggregation loss" in self.study.variants:
            others.append("without aggregation loss")
        for method in others:
            mean, _, low, high = interval(ours - self.pooled(method))
            lines.append(f"- DreamPRM - {method}: {mean:+.1f} ({low:+.1f} … {high:+.1f})")
        return lines

    def sizes(self) -> list[int]:
        """The N of the scaling figure."""
        return list(self.right["DreamPRM"][self.sets[0]]["oracle"])

    def scaling(self) -> list[str]:
        """Average over the sets by N."""
        sizes = self.sizes()
        lines = ["| method | " + " | ".join(f"N = {size}" for size in sizes) + " |"]
        lines.append("|---" * (len(sizes) + 1) + "|")
        for method in ("majority", "weighted vote", "vanilla PRM", "DreamPRM", "oracle"):
            cells = [f"{self.pooled(method, size).mean():.1f}" for size in sizes]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        return lines

    def aggregations(self) -> list[str]:
        """DreamPRM's average by aggregation."""
        lines = ["| aggregation | average |", "|---|---|"]
        for name in AGGREGATIONS:
            values = [self._largest("DreamPRM", n, name) for n in self.sets]
            lines.append(f"| {name} | {_percent(100 * np.concatenate(values, axis=1))} |")
        return lines

    def _largest(self, variant: str, name: str, way: str) -> np.ndarray:
        by_size = self.right[variant][name][way]
        return by_size[max(by_size)]

    def weights(self) -> list[str]:
        """Learned weights, mean and standard deviation over seeds."""
        lines = ["| domain | weight |", "|---|---|"]
        runs = self.study.weights["DreamPRM"]
        for domain in sorted(runs[0], key=lambda d: -np.mean([w[d] for w in runs])):
            found = np.array([weights[domain] for weights in runs])
            spread = f" ± {found.std(ddof=1):.2f}" if len(found) > 1 else ""
            lines.append(f"| {domain} | {found.mean():.2f}{spread} |")
        return lines

    def text(self, command: str) -> str:
        """RESULTS.md."""
        study = self.study
        hours = sum(study.seconds(v, s) for v in study.variants for s in study.seeds) / 3600
        published = ["| method | " + " | ".join(PUBLISHED_SETS) + " |", "|---" * 6 + "|"]
        published += [
            f"| {method} | " + " | ".join(map(str, values)) + " |"
            for method, values in PUBLISHED.items()
        ]
        parts = [
            "# Results of the study",
            f"`{command}`, {time.strftime('%Y-%m-%d')}: Python {platform.python_version()}, torch "
            f"{torch.__version__}, transformers {transformers.__version__}, {study.setup.device}; "
            f"seeds {', '.join(map(str, study.seeds))}; {hours:.1f} hours of training.",
            "Best of N by the mean of log-odds unless said otherwise; brackets are 95 % bootstrap "
            "intervals over seeds and questions. No checkpoint, subset or aggregation was chosen "
            "by test accuracy.",
            "## Main table",
            *("\n".join(self.main_table()), "\n".join(self.gaps())),
            "## The paper's, for comparison",
            *("\n".join(published), COMPARABLE[self.config]),
            "## More candidates",
            *("\n".join(self.scaling()), "![Accuracy by N](scaling.png)"),
            "## Aggregations (DreamPRM)",
            "\n".join(self.aggregations()),
            "## Learned weights",
            *("\n".join(self.weights()), "![Learned weights](weights_by_seed.png)"),
        ]
        return "\n\n".join(parts) + "\n"

    def draw(self, out: Path) -> None:
        """The figures that RESULTS.md shows."""
        figure, axes = plt.subplots(figsize=(5.6, 3.8))
        sizes = self.sizes()
        for method in ("oracle", "DreamPRM", "vanilla PRM", "weighted vote", "majority"):
            means = [self.pooled(method, size).mean() for size in sizes]
            axes.plot(sizes, means, marker="o", label=method)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("candidates N")
        axes.set_ylabel("right answers, %, average of the sets")
        axes.legend(frameon=False, fontsize=9)
        _save(figure, axes, out / "scaling.png")

        runs = self.study.weights["DreamPRM"]
        domains = sorted(runs[0], key=lambda d: np.mean([w[d] for w in runs]))
        figure, axes = plt.subplots(figsize=(5.6, 0.32 * len(domains) + 1.2))
        axes.barh(domains, [np.mean([w[d] for w in runs]) for d in domains], color="#2a6f97")
        for weights in runs:
            axes.scatter([weights[d] for d in domains], domains, s=12, color="black", zorder=3)
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axes.set_xlabel("learned weight: bar, mean; dots, seeds")
        _save(figure, axes, out / "weights_by_seed.png")


def _percent(values: np.ndarray) -> str:
    mean, _, low, high = interval(values)
    return f"{mean:.1f} ({low:.1f} … {high:.1f})"


def _save(figure, axes, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = Parser(prog="python -m reweighting.reproduce", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory for RESULTS.md and figures")
    add("--config", choices=["demo", "paper"], default="demo", help="data, model and settings")
    add("--seeds", type=int, default=3, help="training seeds 1 … N (default: 3)")
    add("--work", type=Path, help="directory of the runs (default: weights/study_<config>)")
    add("--iterations", type=int, help="lower steps (default: the configuration's)")
    optional = [*COMMON, *SUBSETS["demo"], *INSTANCE, SANITY]
    for compared in ("vanilla PRM", "DreamPRM"):
        optional.remove(compared)
    add("--leave_out", nargs="*", choices=optional, default=[], help="rows not to train")
    arguments = parser.parse_args(argv)
    quiet()
    setup = {"demo": DEMO, "paper": PAPER}[arguments.config]
    if missing := setup.missing():
        files = "".join(f"\n  {path}" for path in missing)
        terminal.error(f"the study needs these files (README.md, Your own data):{files}")
        return 2
    if unusable(setup.device):
        terminal.error("--config paper needs a CUDA device")
        return 2
    more = ["--iteration_num", str(arguments.iterations)] if arguments.iterations else []
    work = arguments.work or REPOSITORY / "weights" / f"study_{arguments.config}"
    every = {**COMMON, **SUBSETS[arguments.config], **INSTANCE}
    every[SANITY] = ["--meta_json_file", str(meta_from_tests(setup, work))]
    variants = {
        name: [*flags, *more] for name, flags in every.items() if name not in arguments.leave_out
    }
    study = Study(setup, work, variants, range(1, arguments.seeds + 1))
    study.train(say=lambda text: print(text, flush=True))
    results = Results(study, arguments.config)
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = "python -m reweighting.reproduce " + shlex.join(argv or sys.argv[1:])
    write_text(arguments.out / "RESULTS.md", results.text(command))
    results.draw(arguments.out)
    print(f"wrote {arguments.out / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
