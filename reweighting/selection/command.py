"""What the commands that score files of records share: flags, their checks, how they fail."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..system import terminal
from ..system.checkpoints.finding import BASE_DIRECTORY, locate
from ..system.files import FileError, unwritable
from ..system.server.errors import ServerError, UnusableServerError
from ..system.server.flags import add_request_flags

if TYPE_CHECKING:
    from .scorers import Scorer


LOCAL_FLAGS = ("device", "precision", "max_tokens_per_batch")
SERVER_FLAGS = ("recipe", "concurrency", "timeout", "max_retries")


def add_scoring_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model, the output, the records and the computation."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--weights_path", type=Path, help="directory of a training run")
    model.add_argument("--server", metavar="URL",
        help="vLLM server of an exported model, as http://host:8000")  # fmt: skip
    add = parser.add_argument
    add("--output_dir", required=True, type=Path, help="where samples and results go")
    add_record_flags(add)
    add = parser.add_argument_group("with --weights_path").add_argument
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the computation")
    add("--max_tokens_per_batch", type=int, default=8192, help="tokens of one forward pass")
    group = parser.add_argument_group("with --server (the key is taken from VLLM_API_KEY)")
    add = group.add_argument
    add("--recipe", type=Path, metavar="FILE", help="reward.json of the export, how to ask it")
    add_request_flags(add)


def check_scoring_flags(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, flag: str, files: Sequence[Path]
) -> None:
    """End the program if a flag is unusable.

    Args:
        flag: the one that names ``files``, each of which gets a folder of its own.
    """
    local = arguments.server is None
    for name in SERVER_FLAGS if local else LOCAL_FLAGS:
        if getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name} goes with {'--server' if local else '--weights_path'} only")
    if local:
        _check_weights(parser, arguments)
    elif arguments.recipe is None:
        parser.error("--server needs --recipe, the reward.json of the exported model")
    if len({path.stem for path in files}) < len(files):
        parser.error(f"{flag}: two files have the same name and would share their results")
    if problem := unwritable(str(arguments.output_dir)):
        parser.error(f"--output_dir {arguments.output_dir} cannot be written: {problem}")


def _check_weights(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End the program if there is no model, or no device for it."""
    weights_path = arguments.weights_path
    if not (locate(weights_path) / BASE_DIRECTORY).is_dir():
        parser.error(f"--weights_path {weights_path} holds no reward model ({BASE_DIRECTORY}/)")
    # Takes seconds: --help and a wrong path are answered without it.
    from ..system.device import unusable

    if reason := unusable(arguments.device):
        parser.error(f"--device {arguments.device}: {reason}")


def choose_scorer(arguments: argparse.Namespace) -> Scorer:
    """What scores with the model that the flags name; no model is opened yet.

    Without ``--step_pattern`` the one that the model was trained with is filled in.

    Raises:
        FileError: the model's files, or the recipe, are damaged.
    """
    scorer: Scorer
    if arguments.server is None:
        from .scorers import LocalScorer

        scorer = LocalScorer(arguments)
    else:
        from .server import ServerScorer

        scorer = ServerScorer(arguments)
    if arguments.step_pattern is None:
        arguments.step_pattern = scorer.step_pattern
    return scorer


def exit_code(work: Callable[[], None], output_dir: Path) -> int:
    """Run ``work``.

    Returns:
        0 if it ends well, 1 after trouble with a server, 2 after an error of the user's files, of
        the server's address or of the disk.
    """
    try:
        work()
        return 0
    except ServerError as error:
        terminal.error(f"{error}\nthe same command goes on from here")
        return 1
    except (DataError, FileError, UnusableServerError) as error:
        terminal.error(error)
    except OSError as error:  # such as a full disk
        where = f"{error.filename}: " if error.filename else f"{output_dir}: "
        terminal.error(f"{where}{error.strerror or error}; the same command goes on from here")
    return 2
