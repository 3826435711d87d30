"""What the commands that score files of records share: flags, their checks, how they fail."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..system import terminal
from ..system.checkpoints.finding import BASE_DIRECTORY, locate
from ..system.files import FileError, unwritable


def add_scoring_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of the model, the output, the records and the computation.

    Args:
        add: ``add_argument`` of a parser or of a group.
    """
    add("--weights_path", required=True, type=Path, help="directory of a training run")
    add("--output_dir", required=True, type=Path, help="where samples and results go")
    add_record_flags(add)
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the computation")
    add("--max_tokens_per_batch", type=int, default=8192, help="tokens of one forward pass")


def check_scoring_flags(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, flag: str, files: Sequence[Path]
) -> None:
    """End the program if a flag is unusable.

    Args:
        flag: the one that names ``files``, each of which gets a folder of its own.
    """
    weights_path = arguments.weights_path
    if not (locate(weights_path) / BASE_DIRECTORY).is_dir():
        parser.error(f"--weights_path {weights_path} holds no reward model ({BASE_DIRECTORY}/)")
    # Takes seconds: --help and a wrong path are answered without it.
    from ..system.device import unusable

    if reason := unusable(arguments.device):
        parser.error(f"--device {arguments.device}: {reason}")
    if len({path.stem for path in files}) < len(files):
        parser.error(f"{flag}: two files have the same name and would share their results")
    if problem := unwritable(str(arguments.output_dir)):
        parser.error(f"--output_dir {arguments.output_dir} cannot be written: {problem}")


def fill_in_step_pattern(arguments: argparse.Namespace) -> None:
    """Without ``--step_pattern`` take the one that the model was trained with.

    Raises:
        FileError: the model's files are damaged.
    """
    from ..system.checkpoints.opening import saved_head

    if arguments.step_pattern is None:
        arguments.step_pattern = saved_head(arguments.weights_path).get("step_pattern")


def exit_code(work: Callable[[], None], output_dir: Path) -> int:
    """Run ``work``; 0 if it ends well, 2 after an error of the user's files or of the disk."""
    try:
        work()
        return 0
    except (DataError, FileError) as error:
        terminal.error(error)
    except OSError as error:  # such as a full disk
        where = f"{error.filename}: " if error.filename else f"{output_dir}: "
        terminal.error(f"{where}{error.strerror or error}; the same command goes on from here")
    return 2
