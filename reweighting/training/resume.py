"""Whether a run starts anew or goes on, and from which checkpoint."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..records.dataset import Data
from ..system.checkpoints import finding, opening
from ..system.processes import launched, launched_here, restarts
from ..system.terminal import warning
from .build import SetupError

# Flags that may change between the parts of an interrupted run, because they alter no number.
FREE_ON_RESUME = {
    "iteration_num",
    "max_epoch",
    "save_every_iterations",
    "logging_steps",
    "num_workers",
    "image_cache_mib",
    "max_image_megapixels",
    "report_to",
    "resume",
    "dry_run",
    "device",
    "local_rank",
    "weights_path",
    "preset",  # the flags that it sets are compared one by one
    "init_domain_weights",  # the checkpoint holds what has become of them
    "allow_external_images",
    "allow_image_urls",
    "eval_candidates",
    "eval_steps",
    "eval_image_root",
    "eval_every",
    "strategy",  # the numbers are those of one process with the whole batch
    "processes",
    "train_json_file",  # the records are compared by content
    "meta_json_file",
}


def checkpoint_to_resume(arguments: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """The checkpoint to resume from and what is wrong with newer ones; None for a fresh start.

    Raises:
        SetupError: a fresh start would overwrite a model, or there is nothing to resume.
    """
    directory = Path(arguments.weights_path)
    if not arguments.resume:
        if finding.occupied(directory):
            raise SetupError(
                f"{directory} already holds a reward model: --resume continues its run; choose "
                "another --weights_path for a new one"
            )
        return None, []
    folder, damaged = finding.survey(directory)
    if folder is None:
        reason = "holds no checkpoint to resume"
        if _started_again_by_launcher(directory):
            return None, []
        if damaged:
            reason = "holds no complete checkpoint: " + "; ".join(damaged)
        elif finding.occupied(directory):
            reason = (
                "holds a reward model but no trainer state to resume; start from it with "
                f"--reward_model {directory} and another --weights_path"
            )
        elif not directory.exists():
            reason = "does not exist: there is nothing to resume"
        raise SetupError(f"{directory} {reason} (a fresh start is a run without --resume)")
    return folder, damaged


def _started_again_by_launcher(directory: Path) -> bool:
    """Whether ``--resume`` is there for later: a launcher repeats the command of the first start.

    Where there is nothing at all yet, it is the first start, or the next after a very early end.
    """
    return launched() > 1 and restarts() > 0 and not finding.occupied(directory)


def check_resume(arguments: argparse.Namespace, data: Data) -> dict | None:
    """The state to resume from, or None for a fresh start.

    Raises:
        SetupError: as :func:`checkpoint_to_resume`, or the run was started with other flags or
            other records.
        CheckpointError: a file of the checkpoint is damaged.
    """
    folder, damaged = checkpoint_to_resume(arguments)
    if folder is None:
        return None
    directory = Path(arguments.weights_path)
    before = opening.load_arguments(directory)
    free = FREE_ON_RESUME | {"batch_size", "meta_batch_size"}  # compared below, on all processes
    if "cosine_with_warmup" in (arguments.scheduler_type, arguments.meta_scheduler_type):
        free = free - {"iteration_num", "max_epoch"}  # the length of the run shapes the cosine
    changed = [
        f"--{name} was {before[name]}, is {value}"
        for name, value in vars(arguments).items()
        if name not in free and name in before and before[name] != value
    ]
    for name in ("batch_size", "meta_batch_size"):
        was = before.get(name, 0) * before.get("processes", 1)
        if name in before and was != getattr(arguments, name) * arguments.processes:
            changed.append(_changed_batch(name, before, arguments))
    if changed:
        raise SetupError(f"{directory} cannot be resumed: " + "; ".join(changed))
    state = opening.load_state(directory)
    if state["data"] != data.fingerprint:
        raise SetupError(
            f"{directory} cannot be resumed: the train or meta records are not those it was "
            "started with"
        )
    for problem in damaged:
        warning(f"{problem}; it is passed over")
    print(f"going on from step {state['iteration']:,} ({folder})")
    return state


def _changed_batch(name: str, before: dict, arguments: argparse.Namespace) -> str:
    was, processes = before[name], before.get("processes", 1)
    if processes == arguments.processes == 1:
        return f"--{name} was {was}, is {getattr(arguments, name)}"
    return (
        f"--{name} was {was} on each of {processes} processes, is {getattr(arguments, name)} on "
        f"each of {arguments.processes}; the product must be the same"
    )


def resume_command() -> str:
    """The command line that continues this process's run, on this machine."""
    resume = [] if "--resume" in sys.argv else ["--resume"]
    launcher = ["python"]
    if launched() > 1:
        launcher = ["torchrun", "--nproc_per_node", str(launched_here())]
    return shlex.join([*launcher, *sys.argv, *resume])
