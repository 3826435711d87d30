"""The command line of ``main.py``: read, checked, and completed."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator

from ..records.flags import DEFAULT_SIZE, SIZED
from ..system.files import unwritable
from ..system.processes import launched, launched_here, launched_local_rank
from ..system.terminal import printable
from .flags import build_parser
from .presets import PRESETS

DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?", re.ASCII)


def parse_arguments(
    argv: list[str] | None = None, parser: argparse.ArgumentParser | None = None
) -> argparse.Namespace:
    """The arguments of a run; prints one sentence and exits with code 2 if they make no sense.

    ``parser`` may know more flags than those of training. Besides the flags they hold what
    :func:`resolve` says. A checkpoint keeps all of it in ``arguments.json``.
    """
    parser = parser or build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser.parse_args(argv)
    flags = PRESETS.get(arguments.preset, ())
    arguments = parser.parse_args([*flags, *argv])  # of two equal flags the later one counts
    for problem in problems(arguments):
        parser.error(problem)  # exits
    if flags:
        print(f"--preset {arguments.preset}: {shlex.join(flags)}")
    return resolve(arguments)


def resolve(arguments: argparse.Namespace) -> argparse.Namespace:
    """A copy of the flags, completed with what follows from them:

    - ``by_instance``: whether every record has a weight of its own;
    - ``learn_weights``: whether there is an upper level;
    - ``cold_start_lr`` and ``cold_start_weight_decay``: without a flag, those of the lower level;
    - ``processes``: how many processes share every batch;
    - ``subset_size``: without a flag, a default unless there is a ``subset_share``;
    - ``device``: a CUDA device with its number.
    """
    a = argparse.Namespace(**vars(arguments))
    a.processes = processes_of(a)
    a.by_instance = a.reweighting.startswith("instance_")
    a.learn_weights = learns_weights(a)
    if a.cold_start_lr is None:
        a.cold_start_lr = a.lr
    if a.cold_start_weight_decay is None:
        a.cold_start_weight_decay = a.weight_decay
    if a.subset_size is None and a.subset_share is None:
        a.subset_size = DEFAULT_SIZE
    if a.device != "cpu":
        a.device = f"cuda:{cuda_number(a)}"
    return a


def learns_weights(arguments: argparse.Namespace) -> bool:
    """Whether there is an upper level: given domain weights take the place of learned ones."""
    given = arguments.reweighting == "domain" and arguments.domain_weights
    return arguments.reweighting != "none" and not given


def processes_of(arguments: argparse.Namespace) -> int:
    """How many processes share the batches of the run."""
    return launched() if arguments.strategy == "distributed" else 1


def cuda_number(arguments: argparse.Namespace) -> int:
    """The number of the CUDA device that ``--device`` or else ``--local_rank`` names.

    Every process that a launcher starts has a device of its own.
    """
    if processes_of(arguments) > 1:
        return launched_local_rank()
    return int(DEVICE.fullmatch(arguments.device)[1] or arguments.local_rank)


def problems(arguments: argparse.Namespace) -> Iterator[str]:
    """Why the flags cannot work, with each other or on this machine, a sentence each."""
    yield from _problems_of_levels(arguments)
    yield from _problems_of_device(arguments)
    a = arguments
    if a.strategy == "default" and launched() > 1:
        yield (
            f"a launcher has started {launched()} processes: --strategy distributed makes one run "
            "of them"
        )
    if not 0 <= a.seed < 2**31:
        yield f"--seed must lie in 0 ... {2**31 - 1}, is {a.seed}"
    if a.optimizer == "adamw_8bit" and a.precision != "bf16":
        yield "--optimizer adamw_8bit keeps bf16 weights: it needs --precision bf16"
    for flag, package in (
        (f"--report_to {a.report_to}", a.report_to if a.report_to != "none" else None),
        (f"--optimizer {a.optimizer}", "torchao" if a.optimizer == "adamw_8bit" else None),
        (f"--lora_rank {a.lora_rank}", "peft" if a.lora_rank else None),
    ):
        if package and importlib.util.find_spec(package) is None:
            yield f"{flag} needs a package: pip install {package}"
    for name in ("image_root", "meta_image_root", "eval_image_root"):
        directory = getattr(a, name)
        if directory is not None and not os.path.isdir(directory):
            yield f"--{name} {printable(directory)} is no directory"
    if problem := unwritable(a.weights_path):
        yield f"--weights_path {a.weights_path} cannot be written: {problem}"


def _problems_of_levels(a: argparse.Namespace) -> Iterator[str]:
    if a.reweighting == "none" and a.domain_weights:
        yield (
            "--reweighting none (--baseline) gives every record weight 1: it cannot go with "
            "--domain_weights"
        )
    if a.init_domain_weights is not None and (a.reweighting != "domain" or a.domain_weights):
        yield (
            "--init_domain_weights is where learned domain weights start: it needs --reweighting "
            "domain, without --domain_weights"
        )
    low, high = a.weight_bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        yield f"--weight_bounds {low:g} {high:g}: must be two numbers, the first one smaller"
    if not a.detach_features and a.hypergradient != "unrolled":
        yield "--no_detach_features needs --hypergradient unrolled"
    if not a.detach_features and a.reweighting != "instance_net":
        yield "--no_detach_features is for --reweighting instance_net"
    if a.warmup_share > 1:
        yield f"--warmup_share {a.warmup_share:g}: must be at most 1"
    if a.meta_json_file is None and learns_weights(a):
        yield "--meta_json_file is needed to learn weights (or ask for --baseline)"
    if a.meta_loss == "rank" and learns_weights(a):
        if a.meta_target == "prefix":
            yield (
                "--meta_loss rank compares whole chains: it cannot go with --meta_target prefix, "
                "since prefixes of two chains have no counterparts"
            )
        if a.meta_batch_size * processes_of(a) < 2:
            yield (
                "--meta_loss rank compares chains of one question: it needs a --meta_batch_size of "
                "2 or more"
            )
    if a.history == "gold" and a.score_head == "linear":
        yield "--history gold needs --score_head plus_minus: the linear head sees no labels"
    if a.min_pixels and a.max_pixels and a.min_pixels > a.max_pixels:
        yield f"--min_pixels {a.min_pixels} is above --max_pixels {a.max_pixels}"
    if a.subset_size is not None and a.subset_share is not None:
        yield "--subset_size and --subset_share say the same: give one of them"
    if a.subset_share is not None and a.train_subset not in SIZED:
        yield f"--subset_share is for --train_subset {', '.join(SIZED)}"
    if a.upsample_wrong > 1 and a.reweighting == "instance_table":
        yield "--upsample_wrong is not for instance_table: a record would have several weights"
    if a.step_length[0] > a.step_length[1]:
        yield f"--step_length {a.step_length[0]:g} {a.step_length[1]:g}: LOW is above HIGH"
    if learns_weights(a) and a.unroll_steps > a.iteration_num:
        yield (
            f"--unroll_steps {a.unroll_steps} is above --iteration_num {a.iteration_num}: no upper "
            "step would ever be taken"
        )


def _problems_of_device(a: argparse.Namespace) -> Iterator[str]:
    device = DEVICE.fullmatch(a.device)
    if device is None:
        yield f"--device {printable(a.device)} is no device: cuda, cuda:N or cpu"
    elif a.device == "cpu":
        if a.local_rank:
            yield "--local_rank numbers CUDA devices and means nothing with --device cpu"
    elif device[1] and a.local_rank:
        yield f"--device {a.device} already names a device: leave out --local_rank"
    elif processes_of(a) > 1 and (device[1] or a.local_rank):
        yield (
            "the launcher gives every process a device of its own: leave out --local_rank and the "
            "number in --device"
        )
    elif not a.dry_run:  # a dry run plans for a device of another machine
        from ..system.device import unusable  # takes seconds: --help does without it

        if reason := unusable(f"cuda:{max(cuda_number(a), launched_here() - 1)}"):
            yield f"--device {a.device}: {reason}"
