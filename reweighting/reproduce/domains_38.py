"""The field's own data: from VisualPRM's 38 source files to weights to steps that are judged.

    python -m reweighting.reproduce --config domains_38 --annotations raw/annotations \
        --train_images raw --benchmark test.jsonl --benchmark_images bench --out weights/38

VisualPRM400K-v1.1-Raw (arXiv 2503.10291) is converted, with a meta set and a validation set held
out by question; four rows are trained on it; and each is judged on VisualProcessBench, at the
threshold that is best for it on the validation set. Nothing is chosen on the benchmark. What is
done is not done again: an interrupted command goes on.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from ..evaluate.__main__ import RESULTS_FILE
from ..evaluate.layouts import ALL, BY_SOURCES, BY_STEPS, StepReader, load_steps
from ..records.problems import DataError
from ..system import terminal
from ..system.device import unusable
from ..system.files import FileError, read_json, write_json, write_text
from ..system.terminal import whole
from .study import SETTINGS_FILE, CommandFailed, Setup, Study, other_settings, run_quietly

NAME = "domains_38"
BENCHMARK = "visualprocessbench"
OURS, JUDGED = "DreamPRM", "judged"
TENTH = ("--subset_share", "0.1")
# Whole chains are drawn at random, because BIS takes whole chains.
ROWS: dict[str, list[str]] = {
    "all data": ["--baseline"],
    "random 10 %": ["--baseline", "--train_subset", "random_chains", *TENTH],
    "BIS 10 %": ["--baseline", "--train_subset", "bis", *TENTH],
    OURS: [],
}
ITERATIONS, HELD_OUT = 10_000, 1000
EVALUATIONS = 5  # on the validation set, while a row trains
FLAGS = ("annotations", "train_images", "benchmark", "benchmark_images")  # all are needed
OPTIONS = ("held_out", "per_domain", "device", "train_flags")
MAIN, MORE = "macro_f1", ("auroc", "average_precision", "calibration_error")


def add_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of this configuration, none of which has a default of its own.

    Args:
        add: ``add_argument`` of a parser or of a group.
    """
    add("--annotations", type=Path, nargs="+", metavar="PATH",
        help="jsonl files of VisualPRM400K-v1.1-Raw, or the folder of them")  # fmt: skip
    add("--train_images", type=Path, metavar="DIR", help="where their image paths start")
    add("--benchmark", type=Path, metavar="FILE", help="test.jsonl of VisualProcessBench")
    add("--benchmark_images", type=Path, metavar="DIR", help="where its image paths start")
    add("--held_out", type=whole(2), help="chains of the meta set and of the validation set, which "
        f"are held out of training by question (default: {HELD_OUT} of each)")  # fmt: skip
    add("--per_domain", type=whole(1), help="rows drawn of each source file (default: all)")
    add("--device", help="cuda, cuda:N or cpu (default: cuda); bf16 on a GPU, fp32 on cpu")
    add("--train_flags", metavar="FLAGS", help="flags of main.py for all rows, in one quoted text; "
        "they overrule those of the recipe")  # fmt: skip


def setup(arguments: argparse.Namespace, work: Path, iterations: int) -> Setup:
    """Train on the converted files; the flags are those that all rows share."""
    train = work / "data" / "train.jsonl"
    beside = {name: train.with_name(f"train_{name}.jsonl") for name in ("meta", "validation")}
    device = arguments.device or "cuda"
    precision = "fp32" if device == "cpu" else "bf16"
    return Setup(
        train=train,
        meta=beside["meta"],
        validation=beside["validation"],
        sets={},
        image_root=arguments.train_images,
        flags=(
            *("--device", device, "--precision", precision, "--iteration_num", str(iterations)),
            *("--batch_by", "cot", "--batch_size", "8", "--meta_batch_size", "8"),
            *("--eval_steps", str(beside["validation"])),
            *("--eval_every", str(max(1, iterations // EVALUATIONS))),
            *(["--reward_model", arguments.base] if arguments.base else []),
            *shlex.split(arguments.train_flags or ""),
        ),
        device=device,
        precision=precision,
    )


def convert(study: Study, arguments: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Write the train, meta and validation sets, unless they are there.

    Raises:
        CommandFailed: the conversion ended with an error, or found nothing to choose thresholds on.
    """
    setup = study.setup
    if setup.validation.exists():  # it is written last
        return
    say(f"converting {', '.join(map(str, arguments.annotations))} …")
    share = ["--per_domain", str(arguments.per_domain)] if arguments.per_domain else []
    code = study.run(
        [
            *("-m", "reweighting.exchange", "from-visualprm-raw", "--source"),
            *map(str, arguments.annotations),
            *("--held_out", str(arguments.held_out or HELD_OUT), *share),
            *("--output", str(setup.train)),
        ]
    )
    if code:
        raise CommandFailed(f"the conversion ended with exit code {code}")
    if not setup.validation.exists():
        raise CommandFailed(
            "no question has both right and wrong chains: there is no validation set to choose "
            "thresholds on"
        )


def judge(
    study: Study, row: str, seed: int, arguments: argparse.Namespace, say: Callable[[str], None]
) -> dict:
    """What the steps of the benchmark say about a trained row; judged unless it was before.

    Raises:
        CommandFailed: the evaluation ended with an error.
    """
    run, setup = study.folder(row, seed), study.setup
    results = run / JUDGED / RESULTS_FILE
    if not results.exists():
        say(f"judging {row}, seed {seed} …")
        code = study.run(
            [
                *("-m", "reweighting.evaluate", "--weights_path", str(run)),
                *("--benchmark", BENCHMARK, "--data", str(arguments.benchmark)),
                *("--image_root", str(arguments.benchmark_images)),
                *("--threshold_from", str(setup.validation)),
                *("--threshold_image_root", str(setup.image_root)),
                *("--output_dir", str(run / JUDGED)),
                *("--device", setup.device, "--precision", setup.precision),
            ]
        )
        if code:
            raise CommandFailed(f"judging {run.name}: exit code {code}")
    return read_json(results)


def reproduce(
    arguments: argparse.Namespace,
    work: Path,
    seeds: Sequence[int],
    command: str,
    say: Callable[[str], None],
    run: Callable[[Sequence[str]], int] = run_quietly,
) -> int:
    """Convert, train, judge and write RESULTS.md; returns the exit code.

    Args:
        run: runs a command, the words after ``python``, and returns its exit code.
    """
    if problem := unsuitable(arguments):
        terminal.error(problem)
        return 2
    iterations = arguments.iterations or ITERATIONS
    study = Study(setup(arguments, work, iterations), work, ROWS, seeds, run)
    settings = {
        name: str(getattr(arguments, name)) for name in (*FLAGS, *OPTIONS, "base")
    } | {"iterations": iterations}  # fmt: skip
    if problem := other_settings(work, settings):
        terminal.error(problem)
        return 2
    found: dict[str, list[dict]] = {row: [] for row in ROWS}
    try:  # hours before it is needed
        load_steps(StepReader(str(arguments.benchmark), str(arguments.benchmark_images)), BENCHMARK)
    except DataError as error:
        terminal.error(error)
        return 2
    try:
        write_json(work / SETTINGS_FILE, settings)
        convert(study, arguments, say)
        for seed in study.seeds:
            for row in ROWS:
                study.train_run(row, seed, say)
                found[row].append(judge(study, row, seed, arguments, say))
    except (CommandFailed, FileError) as error:
        terminal.error(error)
        return 1
    write_text(arguments.out / "RESULTS.md", text(study, found, command))
    return 0


def unsuitable(arguments: argparse.Namespace) -> str | None:
    """Why the configuration cannot be run with these flags, if it cannot."""
    missing = [f"--{flag}" for flag in FLAGS if not getattr(arguments, flag)]
    if missing:
        return f"--config {NAME} needs {', '.join(missing)}"
    paths = [*arguments.annotations, *(getattr(arguments, flag) for flag in FLAGS[1:])]
    for path in paths:
        if not path.exists():
            return f"{path} does not exist"
    try:
        shlex.split(arguments.train_flags or "")
    except ValueError as error:
        return f"--train_flags: {error}"
    if reason := unusable(arguments.device or "cuda"):
        return f"--device {arguments.device or 'cuda'}: {reason}"
    return None


# What was found


def text(study: Study, found: dict[str, list[dict]], command: str) -> str:
    """RESULTS.md.

    Args:
        found: what :func:`judge` returns, ``[seed]`` by row.
    """
    from .tables import origin, weight_table  # imports torch, which takes seconds

    first = found[OURS][0]
    published = first["published"]
    values = ", ".join(f"{name} {value:.1f}" for name, value in published["per_cent"].items())
    parts = [
        "# VisualPRM's sources, judged by the steps of VisualProcessBench",
        origin(study, command),
        "All rows start from one base and take the same number of steps; the last checkpoint is "
        "judged. The threshold of each was chosen on the validation set, which shares no question "
        "with training. Per cent; brackets are 95 % bootstrap intervals over the benchmark's "
        "records. F1 is the mean over sources weighted by steps, the rest is over all steps.",
        "\n".join(rows(found, study.seeds)),
        f"Published: {values} ({published['source']}).",
        f"## {_title(MAIN)} by source",
        "\n".join(by_source(found)),
        f"## Learned weights ({OURS})",
        "\n".join(weight_table(study.weights[OURS])),
    ]
    return "\n\n".join(parts) + "\n"


def rows(found: dict[str, list[dict]], seeds: Sequence[int]) -> list[str]:
    """The measures of every run, and those of judges without a model."""
    head = ["row", "seed", _title(MAIN), *map(_title, MORE), "threshold"]
    lines = [_line(head), "|---" * len(head) + "|"]
    for row, judged in found.items():
        for seed, results in zip(seeds, judged, strict=True):
            cells = _cells(results["rows"]["model"])
            lines.append(_line([row, seed, *cells, f"{results['threshold']:.3f}"]))
    for name, places in found[OURS][0]["rows"].items():
        if name != "model":
            lines.append(_line([name, "", *_cells(places), "0.500"]))
    return lines


def _cells(places: dict) -> list[str]:
    return [_interval(places[BY_STEPS][MAIN]), *(_interval(places[ALL][name]) for name in MORE)]


def by_source(found: dict[str, list[dict]]) -> list[str]:
    """The main measure of every source, as the mean over the seeds."""
    ways = (ALL, BY_STEPS, BY_SOURCES)
    sources = [name for name in found[OURS][0]["rows"]["model"] if name not in ways]
    lines = [_line(["row", *sources]), "|---" * (len(sources) + 1) + "|"]
    for row, judged in found.items():
        cells = []
        for source in sources:
            values = [results["rows"]["model"][source][MAIN]["value"] for results in judged]
            known = [value for value in values if value is not None]
            cells.append(f"{100 * fmean(known):.1f}" if known else "-")
        lines.append(_line([row, *cells]))
    return lines


def _interval(measure: dict[str, float | None]) -> str:
    if measure["value"] is None:
        return "-"
    value, low, high = (100 * measure[end] for end in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} … {high:.1f})"


def _title(measure: str) -> str:
    return measure.replace("_", " ").replace("f1", "F1").replace("auroc", "AUROC")


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
