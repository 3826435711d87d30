"""The paper's study with one command: main table, scaling in N, aggregations, ablations, weights.

    python -m reweighting.reproduce --out weights/study          # on the demo data, on a CPU
    python -m reweighting.reproduce --config paper --out weights/study   # as in the paper, on a GPU
    python -m reweighting.reproduce --config sources --out weights/study # overlapping sources

is run in the repository's folder and writes ``RESULTS.md`` and figures into ``--out``, with the
paper's numbers beside them. Trainings and scores are kept in ``--work``: an interrupted study goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..system import terminal
from ..system.device import unusable
from ..system.files import write_text
from ..system.terminal import Parser, quiet
from . import sources
from .configs import COMMON, INSTANCE, SANITY, SETUPS, SUBSETS, meta_from_tests
from .sources import ROWS, World
from .study import CommandFailed, Study
from .tables import Results

SOURCES = "sources"


def build_parser() -> Parser:
    """All flags of the study."""
    parser = Parser(prog="python -m reweighting.reproduce", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory for RESULTS.md and figures")
    add("--config", choices=[*SETUPS, SOURCES], default="demo", help="data, model and settings")
    add("--seeds", type=int, default=3, help="number of training seeds (default: 3)")
    add("--work", type=Path, help="directory of the runs (default: weights/study_<config>)")
    add("--iterations", type=int, help="lower steps (default: the configuration's)")
    add("--first_seed", type=int, default=1, help="the first seed (default: 1)")
    optional = [*COMMON, *SUBSETS["demo"], *INSTANCE, SANITY]
    for compared in ("vanilla PRM", "DreamPRM"):
        optional.remove(compared)
    add("--leave_out", nargs="*", choices=optional, default=[], help="rows not to train")
    usual = World()
    add = parser.add_argument_group("with --config sources").add_argument
    add("--rows", nargs="+", choices=list(ROWS), default=list(ROWS)[:5],
        help="rows to train (default: the first five of these)")  # fmt: skip
    add("--base", default="weights/tiny-qwen2-vl", help="the reward model's base (default: "
        "weights/tiny-qwen2-vl)")  # fmt: skip
    add("--misled", type=float, default=usual.misled,
        help=f"share of questions with misleading labels (default: {usual.misled})")  # fmt: skip
    add("--meta_types", type=int, default=usual.meta_types,
        help=f"question types in the meta set (default: {usual.meta_types})")  # fmt: skip
    add("--meta_chains", type=int, default=usual.meta_chains,
        help=f"chains in the meta set (default: {usual.meta_chains})")  # fmt: skip
    add("--same_quality", action="store_true", help="mislead the same share of every source")
    add("--kept", type=Path, help="directory of what is kept of finished runs, which are not "
        "trained again (default: kept/ in --work)")  # fmt: skip
    return parser


def seeds_of(arguments: argparse.Namespace) -> range:
    """The training seeds."""
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def overlapping_sources(arguments: argparse.Namespace, argv: list[str] | None) -> int:
    """The study in the world of overlapping sources; returns the exit code."""
    from .sources_tables import SourcesResults  # imports torch, which takes seconds

    work = arguments.work or Path("weights", f"study_{SOURCES}")
    setup = sources.setup(work, arguments.base, arguments.iterations or 600)
    world = World(arguments.misled, arguments.meta_types, arguments.meta_chains,
                  arguments.same_quality)  # fmt: skip
    seeds = seeds_of(arguments)
    rows = list(dict.fromkeys(["vanilla PRM", *arguments.rows]))
    study = Study(setup, work, ROWS, seeds)
    kept = sources.Kept(study, arguments.kept or work / "kept")
    outcomes: dict[str, list[dict]] = {row: [] for row in rows}
    say = lambda text: print(text, flush=True)  # noqa: E731
    try:
        for seed in seeds:
            sources.make_world(study, world, seed)
            for row in rows:
                outcomes[row].append(kept.run(row, seed, say))
    except CommandFailed as error:
        terminal.error(error)
        return 1
    worlds = [work / f"world_{seed}" for seed in seeds]
    results = SourcesResults(outcomes, worlds, list(setup.sets))
    command = "python -m reweighting.reproduce " + shlex.join(argv or sys.argv[1:])
    write_text(arguments.out / "RESULTS.md", results.text(command))
    print(f"wrote {arguments.out / 'RESULTS.md'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    quiet()
    if arguments.config == SOURCES:
        return overlapping_sources(arguments, argv)
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
    study = Study(setup, work, variants, seeds_of(arguments))
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
