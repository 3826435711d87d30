"""Is there a signal? Measured for a base model or a run, with the flags of ``main.py``.

    python -m reweighting.training.signal --train_json_file train.json --meta_json_file meta.json \
        --weights_path weights/dreamprm --batch_size 8 --meta_batch_size 8

The derivative of the meta loss with respect to every domain's weight, over a sample of each domain
and all meta chains, for the published and the ranking loss side by side.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...system import terminal
from ...system.terminal import whole
from ..arguments import parse_arguments
from ..flags import build_parser as training_parser

if TYPE_CHECKING:  # they import torch, which takes seconds
    from ...records.dataset import Data
    from .estimates import Estimate
    from .sampling import DomainSample, MetaQuestions

START = 20  # lower steps before a base is measured
FILE, FIGURE = "signal.json", "signal.png"


def build_parser() -> argparse.ArgumentParser:
    """The flags of training, and those of the measurement."""
    parser = training_parser()
    parser.prog = "python -m reweighting.training.signal"
    parser.description = (
        "Measure, before a run or at its newest checkpoint (--resume), what the meta loss says "
        "about every domain. Takes the flags of main.py; the run is not changed."
    )
    add = parser.add_argument_group("signal", "How it is measured, and where it goes.").add_argument
    add("--at", type=whole(1), nargs="+", metavar="STEP",
        help=f"lower steps, with all weights 1, after which a base is measured (default: {START}); "
        "with --resume, the step after the checkpoint")  # fmt: skip
    add("--chains_per_domain", type=whole(4), default=48,
        help="chains (or records with --batch_by record) drawn of each domain")  # fmt: skip
    add("--meta_chains", type=whole(0), default=0, help="most meta chains; 0: all")
    add("--meta_groups", type=whole(2), default=8,
        help="random groups of meta chains, from whose spread the noise follows; time grows with "
        "their number")  # fmt: skip
    add("--at_once", type=whole(1),
        help="chains in a pass; no number depends on it (default: --batch_size)")  # fmt: skip
    add("--output_dir", type=Path, help="where results go (default: signal/ in --weights_path)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = parse_arguments(argv, build_parser())
    terminal.quiet()
    from ...bilevel.problems import NonFiniteLoss
    from ...records.problems import DataError
    from ...system.files import FileError
    from ..build import SetupError

    try:
        return run(arguments)
    except (DataError, SetupError, FileError, NonFiniteLoss) as error:
        terminal.error(error)
    except OSError as error:  # such as a full disk
        where = f"{error.filename}: " if error.filename else ""
        terminal.error(f"{where}{error.strerror or error}")
    return 2


def run(arguments: argparse.Namespace) -> int:
    """Draw the samples, measure at every moment, and tell it."""
    from ...records.dataset import load_data
    from ..build import SetupError, check_start, make_encoder
    from ..dry_run import upper_steps
    from ..resume import check_resume
    from .sampling import describe

    for problem in _problems(arguments):
        raise SetupError(problem)
    data = load_data(arguments)
    for note in data.warnings:
        terminal.warning(note)
    domains, questions = _samples(arguments, data)
    encoder = make_encoder(arguments, data.system)
    state = check_resume(arguments, data) if arguments.resume else None
    if state is None:
        check_start(arguments, data)
    said = describe(arguments, domains, questions)
    print("\n".join(said))
    if arguments.dry_run:
        return 0
    from ...system.files import write_json
    from .opening import open_levels
    from .report import as_json, table, verdict

    output = arguments.output_dir or Path(arguments.weights_path) / "signal"
    started, steps = time.monotonic(), upper_steps(arguments, data)
    engine = open_levels(arguments, data, encoder, state)
    first = engine.progress.iteration
    moments, last = [], {}
    try:
        for at in [first + 1] if arguments.resume else sorted(set(arguments.at or [START])):
            last = _measure(engine, domains, questions, encoder, at)
            seconds = time.monotonic() - started
            print(f"\nafter {at:,} lower steps ({seconds:.0f} s so far)")
            print("\n".join([*table(domains, last), "", *verdict(last, steps)]))
            moments.append({"lower_steps": at, **as_json(domains, last)})
    finally:
        engine.lower.batches = None  # ends the data workers
    print("\nloss columns: pull ± standard error; more weight lowers the meta loss where it is "
          "above 0, the mean of the domains; in standard deviations over the domains")  # fmt: skip
    result = {"sample": said, "seconds": time.monotonic() - started, "upper_steps": steps,
              "moments": moments}  # fmt: skip
    write_json(output / FILE, result)
    from ...figures.signal import draw_signal

    draw_signal(moments[-1], output / FIGURE)
    print(f"{output / FILE}\n{output / FIGURE}")
    return 0


def _problems(a: argparse.Namespace):
    """Why there is nothing to measure, a sentence each."""
    if not a.learn_weights:
        yield ("--reweighting none and fixed --domain_weights learn no weights: give the flags of "
               "the run that is to learn them")  # fmt: skip
    if a.meta_target == "prefix":
        yield "--meta_target prefix is not measured: the losses that are compared are of chains"
    if a.resume and a.at:
        yield "--at is for a base model: with --resume the newest checkpoint is measured"
    from ...system.files import unwritable

    if a.output_dir and (problem := unwritable(str(a.output_dir))):
        yield f"--output_dir {a.output_dir} cannot be written: {problem}"


def _samples(
    arguments: argparse.Namespace, data: Data
) -> tuple[list[DomainSample], dict[str, MetaQuestions]]:
    """The train sample, and the meta sample of every loss.

    Raises:
        SetupError: too little can be drawn for an estimate with an error.
    """
    from ..build import SetupError
    from .sampling import sample_domains, sample_meta

    domains = sample_domains(arguments, data)
    small = [d.name for d in domains if len(d.units) < 4]
    if len(domains) < 3:
        raise SetupError(f"{arguments.train_json_file}: {len(domains)} domains: a ranking needs 3")
    if small:
        raise SetupError(
            f"{arguments.train_json_file}: domain '{terminal.printable(small[0])}' has fewer than "
            "4 chains or records, too few for a standard error"
        )
    published = "mse" if arguments.meta_loss == "rank" else arguments.meta_loss
    if len(data.meta) < 2 * arguments.meta_groups:
        raise SetupError(
            f"{arguments.meta_json_file}: {len(data.meta)} chains are too few for --meta_groups "
            f"{arguments.meta_groups}"
        )
    names = {"published": published, "ranking": "rank"}
    found = {name: sample_meta(arguments, data, loss) for name, loss in names.items()}
    return domains, {name: sample for name, sample in found.items() if sample is not None}


def _measure(engine, domains, questions, encoder, at: int) -> dict[str, Estimate]:
    """The estimates of every loss after ``at`` lower steps."""
    from ..build import SetupError
    from .derivative import measure, train_sample
    from .estimates import contributions, estimate
    from .opening import advance

    a = engine.arguments
    advance(engine, at)
    if engine.lower.last_step is None:
        raise SetupError("the loss scaler of --precision fp16 skipped that step: measure at "
                         "another, or with --precision bf16")  # fmt: skip
    batches = train_sample(domains, encoder, a.at_once or a.batch_size)
    records = [[len(unit) for unit in domain.units] for domain in domains]
    window = engine.lower.window.maxlen
    units = [a.batch_size * a.gradient_accumulation * window * d.share for d in domains]
    labels, found = [d.label for d in domains], {}
    for name, sample in questions.items():
        products = measure(engine, batches, sample, encoder, a.at_once or a.meta_batch_size)
        held = sum(map(len, sample.groups)) / len(sample.groups)
        y = contributions(products, records)
        found[name] = estimate(y, labels, units, sample.a_batch / held)
    return found


if __name__ == "__main__":
    terminal.exit_with(main)
