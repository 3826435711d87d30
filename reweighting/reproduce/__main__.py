"""The paper's study with one command: main table, scaling in N, aggregations, ablations, weights.

    python -m reweighting.reproduce --out weights/study          # on the demo data, on a CPU
    python -m reweighting.reproduce --config paper --out weights/study   # as in the paper, on a GPU

is run in the repository's folder and writes ``RESULTS.md`` and figures into ``--out``, with the
paper's numbers beside them. Trainings and scores are kept in ``--work``: an interrupted study goes
on where it stopped.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from ..system import terminal
from ..system.device import unusable
from ..system.files import write_text
from ..system.terminal import Parser, quiet
from .configs import COMMON, INSTANCE, SANITY, SETUPS, SUBSETS, meta_from_tests
from .study import CommandFailed, Study
from .tables import Results


def build_parser() -> Parser:
    """All flags of the study."""
    parser = Parser(prog="python -m reweighting.reproduce", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory for RESULTS.md and figures")
    add("--config", choices=list(SETUPS), default="demo", help="data, model and settings")
    add("--seeds", type=int, default=3, help="training seeds 1 … N (default: 3)")
    add("--work", type=Path, help="directory of the runs (default: weights/study_<config>)")
    add("--iterations", type=int, help="lower steps (default: the configuration's)")
    optional = [*COMMON, *SUBSETS["demo"], *INSTANCE, SANITY]
    for compared in ("vanilla PRM", "DreamPRM"):
        optional.remove(compared)
    add("--leave_out", nargs="*", choices=optional, default=[], help="rows not to train")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    quiet()
    setup = SETUPS[arguments.config]
    if not setup.program.is_file():
        terminal.error(f"the study runs {setup.program}, which this folder does not hold: start it "
                       "in a clone of the repository")  # fmt: skip
        return 2
    if missing := setup.missing():
        files = "".join(f"\n  {path}" for path in missing)
        terminal.error(f"the study needs these files (docs/data.md):{files}")
        return 2
    if unusable(setup.device):
        terminal.error("--config paper needs a CUDA device")
        return 2
    work = arguments.work or Path("weights", f"study_{arguments.config}")
    every = {**COMMON, **SUBSETS[arguments.config], **INSTANCE}
    every[SANITY] = ["--meta_json_file", str(meta_from_tests(setup, work))]
    more = ["--iteration_num", str(arguments.iterations)] if arguments.iterations else []
    variants = {
        name: [*flags, *more] for name, flags in every.items() if name not in arguments.leave_out
    }
    study = Study(setup, work, variants, range(1, arguments.seeds + 1))
    say = lambda text: print(text, flush=True)  # noqa: E731
    try:
        study.train(say)
        study.score(list(setup.sets), say)
    except CommandFailed as error:
        terminal.error(error)
        return 1
    results = Results(study, arguments.config)
    command = "python -m reweighting.reproduce " + shlex.join(argv or sys.argv[1:])
    write_text(arguments.out / "RESULTS.md", results.text(command))
    results.draw(arguments.out)
    print(f"wrote {arguments.out / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
