"""The demo: every command of a first study, printed before it runs, and what came of it.

    python -m benchmarks.demo --work weights/demo

One seed of :mod:`benchmarks.small_world` with fewer steps: a reward model trained on the demo data
as it is and one with learned domain weights, the choices of both, the figures, and the tables of
the experiment. Then, in the world of sources and on a base that cannot judge yet, two short runs:
what do weights follow that are learned by the published meta loss, and by ranking? The last line
names a page to look at: every question with its candidates, coloured by the reweighted model's
scores. Each printed command can be typed by itself in the repository's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.commands import show_and_run
from benchmarks.small_world import TESTS, accuracies, draw, report, variants
from reweighting.reproduce import sources
from reweighting.reproduce.configs import DATA, DEMO
from reweighting.reproduce.sources_tables import correlations
from reweighting.reproduce.study import VALIDATION, CommandFailed, Setup, Study
from reweighting.system import terminal
from reweighting.system.files import read_json


def two_losses(work: Path, iterations: int) -> list[str]:
    """Learn weights by both losses where quality and mean label are apart; say what is seen.

    Raises:
        CommandFailed: a training ended with an error.
    """
    folder = sources.WORLD
    setup = Setup(
        train=folder / "train.json",
        meta=folder / "meta.json",
        validation=folder / "validation.json",
        sets={},
        image_root=DATA,
        flags=(
            "--preset",
            "demo",
            "--reward_model",
            sources.BASE,
            "--iteration_num",
            str(iterations),
        ),
    )
    rows = {name: sources.ROWS[name] for name in (sources.PUBLISHED, sources.RANKING)}
    study = Study(setup, work, rows, [1], run=show_and_run)
    study.train()
    card = read_json(folder / "domains.json")
    lines = []
    for name, [weights] in study.weights.items():
        quality, label = correlations(weights, card)
        lines.append(
            f"{name}: rank correlation of the weights with quality {quality:+.2f}, "
            f"with mean label {label:+.2f}"
        )
    sound = " and ".join(
        f"{source['mean_label']:.2f} weighs "
        + " / ".join(f"{runs[0][source['name']]:.2f}" for runs in study.weights.values())
        for source in card
        if source["quality"] == 1
    )
    return [*lines, f"of the two sound sources, that with mean label {sound} (published / ranking)"]


def write_page(run: Path, sets: list[str], path: Path) -> int:
    """Write the page of a run and its choices, and name it last; returns the exit code."""
    files = [DEMO.sets.get(name, DEMO.validation) for name in dict.fromkeys([*sets, VALIDATION])]
    command = ["-m", "reweighting.report", "--selection", str(run / DEMO.selected)]
    command += ["--candidates", *map(str, files), "--image_root", str(DATA)]
    return show_and_run([*command, "--weights_path", str(run), "--output", str(path)])


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--work", type=Path, default=Path("weights/demo"), help="folder for everything")
    add("--iterations", type=int, default=300, help="lower steps of training (default: 300)")
    add("--sets", nargs="*", default=TESTS, help="held-out sets to report")
    arguments = parser.parse_args()
    flags = variants(arguments.work, arguments.iterations)
    chosen = {name: flags[name] for name in ("vanilla", "reweighted")}
    study = Study(DEMO, arguments.work, chosen, [1], run=show_and_run)
    figures = arguments.work / "figures"
    try:
        study.train()
        study.score(list(dict.fromkeys([*arguments.sets, VALIDATION])))
    except CommandFailed as error:
        terminal.error(error)
        return 1
    run = study.folder("reweighted", 1)
    command = ["-m", "reweighting.figures", "--weights_path", str(run)]
    if code := show_and_run([*command, "--output_dir", str(figures)]):
        return code
    right = accuracies(study, arguments.sets)
    print(f"\n{report(study, right, arguments.sets)}")
    draw(study, right, arguments.sets, figures / "small_world.png")
    try:
        seen = two_losses(arguments.work / "sources", max(2, arguments.iterations // 3))
    except CommandFailed as error:
        terminal.error(error)
        return 1
    print("\n" + "\n".join(seen))
    return write_page(run, arguments.sets, arguments.work / "report.html")


if __name__ == "__main__":
    sys.exit(main())
