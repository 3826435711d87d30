"""The paper's study with one command: main table, scaling in N, aggregations, ablations, weights.

    python -m reweighting.reproduce --out weights/study          # on the demo data, on a CPU
    python -m reweighting.reproduce --config paper --out weights/study   # as in the paper, on a GPU
    python -m reweighting.reproduce --config sources --out weights/study # overlapping sources
    python -m reweighting.reproduce --config domains_38 --out weights/38 …  # VisualPRM's sources

is run in the repository's folder and writes ``RESULTS.md`` and figures into ``--out``, with the
paper's numbers beside them. Trainings and scores are kept in ``--work``: an interrupted study goes
on where it stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from ..system import terminal
from ..system.device import unusable
from ..system.files import FileError, unwritable, write_json, write_text
from ..system.terminal import Parser, quiet, real, whole
from . import domains_38, sources
from .configs import COMMON, INSTANCE, SANITY, SETUPS, SUBSETS, meta_from_tests
from .sources import ROWS, VANILLA, World
from .study import SETTINGS_FILE, CommandFailed, Setup, Study, other_settings
from .tables import Results

SOURCES, DOMAINS_38 = "sources", domains_38.NAME
FIRST_ROWS = list(ROWS)[1:5]
# Flags that only these configurations have.
OWN_FLAGS = {
    SOURCES: ("rows", "base", *asdict(World()), "kept", "compare"),
    DOMAINS_38: ("base", *domains_38.FLAGS, *domains_38.OPTIONS),
}


def build_parser() -> Parser:
    """All flags of the study."""
    parser = Parser(prog="python -m reweighting.reproduce", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="directory for RESULTS.md and figures")
    add("--config", choices=[*SETUPS, *OWN_FLAGS], default="demo", help="data, model and settings")
    add("--seeds", type=whole(1), default=3, help="number of training seeds (default: 3)")
    add("--work", type=Path, help="directory of the runs (default: weights/study_<config>)")
    add("--iterations", type=whole(1), help="lower steps (default: the configuration's)")
    add("--first_seed", type=whole(0), default=1, help="the first seed (default: 1)")
    optional = [*COMMON, *SUBSETS["demo"], *INSTANCE, SANITY]
    for compared in ("vanilla PRM", "DreamPRM"):
        optional.remove(compared)
    add("--leave_out", nargs="*", choices=optional, default=[], help="rows not to train")
    usual = World()
    group = parser.add_argument_group("with --config sources").add_argument
    group("--rows", nargs="+", choices=list(ROWS),
          help=f"rows to train besides vanilla (default: {', '.join(FIRST_ROWS)})")  # fmt: skip
    group("--base", help=f"the reward model's base (default: {sources.BASE}; with --config "
          f"{DOMAINS_38}, main.py's)")  # fmt: skip
    group("--misled", type=real(most=1.0),
          help=f"share of questions with misleading labels (default: {usual.misled})")  # fmt: skip
    group("--meta_types", type=whole(1),
          help=f"question types in the meta set (default: {usual.meta_types})")  # fmt: skip
    group("--meta_chains", type=whole(2),
          help=f"chains in the meta set (default: {usual.meta_chains})")  # fmt: skip
    group("--same_quality", action="store_true", default=None,
          help="mislead the same share of every source")  # fmt: skip
    group("--kept", type=Path, help="directory of what is kept of finished runs, which are not "
          "trained again (default: kept/ in --work)")  # fmt: skip
    group("--compare", type=Path, nargs="+", help="directories of --kept, of several worlds: train "
          "nothing, write a table and figures of what the rows gain in each")  # fmt: skip
    domains_38.add_flags(parser.add_argument_group(f"with --config {DOMAINS_38}").add_argument)
    return parser


def misplaced(arguments: argparse.Namespace) -> str | None:
    """A flag that would change nothing with this configuration, if one is given."""
    config = arguments.config
    known = dict.fromkeys(flag for flags in OWN_FLAGS.values() for flag in flags)
    given = [flag for flag in known if getattr(arguments, flag) is not None]
    for flag in given:
        homes = [name for name, flags in OWN_FLAGS.items() if flag in flags]
        if config not in homes:
            return f"--{flag} is for --config {' and '.join(homes)}"
    if arguments.leave_out and config in OWN_FLAGS:
        rows = ": --rows says what to train" if config == SOURCES else ""
        return f"--leave_out is not for --config {config}{rows}"
    if arguments.compare and len(given) > 1:
        return f"--compare trains nothing: leave out --{given[0]}"
    return None


def seeds_of(arguments: argparse.Namespace) -> range:
    """The training seeds."""
    return range(arguments.first_seed, arguments.first_seed + arguments.seeds)


def several_worlds(folders: list[Path], out: Path) -> int:
    """Compare what is kept of studies in several worlds; returns the exit code."""
    from .sources_worlds import draw, read_kept, table  # imports torch, which takes seconds

    try:
        worlds = [read_kept(folder) for folder in folders]
    except FileError as error:
        terminal.error(error)
        return 2
    draw(worlds, out)
    write_text(out / "WORLDS.md", "\n".join(table(worlds)) + "\n")
    print(f"wrote {out / 'WORLDS.md'}")
    return 0


def overlapping_sources(arguments: argparse.Namespace, argv: list[str] | None) -> int:
    """The study in the world of overlapping sources; returns the exit code."""
    from .sources_tables import SourcesResults  # imports torch, which takes seconds

    work = arguments.work or Path("weights", f"study_{SOURCES}")
    given = {flag: value for flag, value in vars(arguments).items() if value is not None}
    world = World(**{name: given[name] for name in asdict(World()) if name in given})
    base, iterations = arguments.base or sources.BASE, arguments.iterations or 600
    if base.startswith(("/", ".")) and not Path(base).is_dir():  # no name of a hub
        terminal.error(f"--base {base} is no directory")
        return 2
    setup = sources.setup(work, base, iterations)
    seeds = seeds_of(arguments)
    rows = list(dict.fromkeys([VANILLA, *(arguments.rows or FIRST_ROWS)]))
    study = Study(setup, work, ROWS, seeds)
    kept = sources.Kept(study, arguments.kept or work / "kept")
    settings = {**asdict(world), "base": base, "iterations": iterations}
    folders = (work, kept.folder)
    if problem := next(filter(None, (other_settings(f, settings) for f in folders)), None):
        terminal.error(problem)
        return 2
    outcomes: dict[str, list[dict]] = {row: [] for row in rows}
    say = lambda text: print(text, flush=True)  # noqa: E731
    try:
        for seed in seeds:
            sources.make_world(study, world, seed)
            for folder in folders:
                write_json(folder / SETTINGS_FILE, settings)
            for row in rows:
                outcomes[row].append(kept.run(row, seed, say))
    except CommandFailed as error:
        terminal.error(error)
        return 1
    worlds = [work / f"world_{seed}" for seed in seeds]
    results = SourcesResults(outcomes, worlds, list(setup.sets))
    command = "python -m reweighting.reproduce " + shlex.join(argv or sys.argv[1:])
    results.draw(arguments.out)
    write_text(arguments.out / "RESULTS.md", results.text(command))
    print(f"wrote {arguments.out / 'RESULTS.md'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    quiet()
    if problem := misplaced(arguments):
        terminal.error(problem)
        return 2
    program = Setup.program
    if not program.is_file():
        terminal.error(f"the study runs {program}, which this folder does not hold: start it "
                       "in a clone of the repository")  # fmt: skip
        return 2
    if problem := unwritable(str(arguments.out)):
        terminal.error(f"--out {problem}")
        return 2
    if arguments.compare:
        return several_worlds(arguments.compare, arguments.out)
    if arguments.config == SOURCES:
        return overlapping_sources(arguments, argv)
    work = arguments.work or Path("weights", f"study_{arguments.config}")
    command = "python -m reweighting.reproduce " + shlex.join(argv or sys.argv[1:])
    say = lambda text: print(text, flush=True)  # noqa: E731
    if arguments.config == DOMAINS_38:
        code = domains_38.reproduce(arguments, work, seeds_of(arguments), command, say)
        if not code:
            print(f"wrote {arguments.out / 'RESULTS.md'}")
        return code
    setup = SETUPS[arguments.config]
    if missing := setup.missing():
        files = "".join(f"\n  {path}" for path in missing)
        terminal.error(f"the study needs these files (docs/data.md):{files}")
        return 2
    if unusable(setup.device):
        terminal.error("--config paper needs a CUDA device")
        return 2
    every = {**COMMON, **SUBSETS[arguments.config], **INSTANCE}
    every[SANITY] = ["--meta_json_file", str(meta_from_tests(setup, work))]
    more = ["--iteration_num", str(arguments.iterations)] if arguments.iterations else []
    variants = {
        name: [*flags, *more] for name, flags in every.items() if name not in arguments.leave_out
    }
    study = Study(setup, work, variants, seeds_of(arguments))
    try:
        study.train(say)
        study.score(list(setup.sets), say)
    except CommandFailed as error:
        terminal.error(error)
        return 1
    results = Results(study, arguments.config)
    write_text(arguments.out / "RESULTS.md", results.text(command))
    results.draw(arguments.out)
    print(f"wrote {arguments.out / 'RESULTS.md'}")
    return 0


if __name__ == "__main__":
    terminal.exit_with(main)
