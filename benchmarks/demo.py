"""The demo: every command of a first study, printed before it runs, and what came of it.

    python -m benchmarks.demo --work weights/demo

One seed of :mod:`benchmarks.small_world` with fewer steps: a reward model trained on the demo data
as it is and one with learned domain weights, the choices of both, the figures, and the tables of
the experiment. Each printed command can be typed by itself in the repository's folder.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.commands import show_and_run
from benchmarks.small_world import TESTS, accuracies, draw, report, variants
from reweighting.reproduce.configs import DEMO
from reweighting.reproduce.study import VALIDATION, CommandFailed, Study
from reweighting.system import terminal


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
    return 0


if __name__ == "__main__":
    sys.exit(main())
