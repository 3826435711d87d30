"""Where a run's checkpoints are: the layout of its directory, and the newest complete one.

The names are those of the published code:

    DIR/base_model/          Hugging Face checkpoint with the processor, fp32 master weights
    DIR/LN_weights.pt        the linear reward head
    DIR/score_head.json      which head it is, and how prompts are made
    DIR/domain_weights.pt    raw domain weights, in their published form, and the domains' names
    DIR/domain_weights.json  {domain: weight}, to be read by people
    DIR/domain_weights_average.json  the same, averaged over the last quarter of the upper steps
    DIR/instance_weights.parquet     id, record, domain, weight, visits (instance reweighting)
    DIR/instance_weights.pt          the instance table or net
    DIR/trainer_state.pt     everything else ``--resume`` needs
    DIR/arguments.json       the arguments of the run
    DIR/checkpoint.json      run, step, and every file of the checkpoint with its size
    DIR/metrics.jsonl        one line every ``--logging_steps`` (not part of the checkpoint)

Neither a kill nor a copy can tear a checkpoint. These names are links into ``DIR/checkpoint``,
which is itself a link to ``DIR/checkpoints/step-N``: a checkpoint is written beside the others,
forced to disk, and takes effect as a whole when its folder is renamed (:mod:`.saving`). Reading
never depends on the links: in a copy they may be missing, replaced by copies, or replaced by text
files with their targets, as zip files and git store them. Such text files are also written on file
systems without links.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..files import FileError, read_json
from ..terminal import printable

BASE_DIRECTORY = "base_model"
HEAD_FILE = "LN_weights.pt"
SCORE_HEAD_FILE = "score_head.json"  # without it the head is linear
DOMAIN_FILE = "domain_weights.pt"
DOMAIN_JSON = "domain_weights.json"
AVERAGE_JSON = "domain_weights_average.json"
ARGUMENTS_FILE = "arguments.json"
INSTANCE_FILE = "instance_weights.pt"
INSTANCE_PARQUET = "instance_weights.parquet"
STATE_FILE = "trainer_state.pt"
MANIFEST_FILE = "checkpoint.json"
METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
CURRENT = "checkpoint"
STEPS = "checkpoints"
STEP_NAME = re.compile(r"step-\d{8,}")
COPY_AGAIN = "copy the file again from where it is whole, or use another checkpoint"
# What a checkpoint must hold if it was written before there were manifests.
_NEEDED = (STATE_FILE, ARGUMENTS_FILE, f"{BASE_DIRECTORY}/config.json")


class CheckpointError(FileError, ValueError):
    """A checkpoint cannot be used; the message names the file and says what to do."""


def survey(directory: Path) -> tuple[Path | None, list[str]]:
    """The folder of a run's newest complete checkpoint or None, and what is wrong with newer ones.

    Args:
        directory: the run's ``--weights_path``, or a copy of it, with or without its links.

    Raises:
        CheckpointError: the directory cannot be read.
    """
    with named(directory):
        steps = [p for p in entries(directory / STEPS) if STEP_NAME.fullmatch(p.name)]
        steps.sort(key=lambda path: int(path.name.split("-")[1]), reverse=True)
        damaged = []
        for folder in [*steps, directory / CURRENT, directory]:
            problem = damage(folder)
            if problem is None:
                return folder, damaged
            if folder in steps:
                damaged.append(f"{folder}: {problem}")
    return None, damaged


def find(directory: Path) -> Path | None:
    """The folder of the newest complete checkpoint of a run or of a copy of it, or None."""
    return survey(directory)[0]


def current(directory: Path) -> Path:
    """The folder of the newest complete checkpoint of a run or of a copy of it.

    Raises:
        CheckpointError: there is none.
    """
    folder, damaged = survey(directory)
    if folder is None:
        raise CheckpointError("; ".join([f"{directory}: holds no complete checkpoint", *damaged]))
    return folder


def exists(directory: Path) -> bool:
    """Whether ``directory`` holds a complete checkpoint written by training."""
    return find(directory) is not None


def occupied(directory: Path) -> bool:
    """Whether ``directory`` holds a reward model of ours or of the published code, or its parts."""
    return any(STEP_NAME.fullmatch(path.name) for path in entries(directory / STEPS)) or any(
        os.path.lexists(directory / name)
        for name in (BASE_DIRECTORY, HEAD_FILE, DOMAIN_FILE, STATE_FILE, CURRENT)
    )


def locate(path: str | Path) -> Path:
    """Where a reward model's files are: the newest checkpoint of a run, or ``path`` itself."""
    path = Path(path)
    if (path / STEPS).is_dir() or (path / CURRENT).is_dir():
        if folder := find(path):
            return folder
        steps = sorted(entries(path / STEPS), reverse=True)  # copied without the trainer's state
        for folder in [path, *(p for p in steps if STEP_NAME.fullmatch(p.name))]:
            if _base(folder) is not None:
                return folder
    return path


def base_folder(path: str | Path) -> Path | None:
    """``base_model/`` of a directory written by training; None for a checkpoint or a hub name."""
    return _base(locate(path))


def base_source(path: str | Path) -> str:
    """What transformers opens as the base model of ``path``: :func:`base_folder`, or ``path``."""
    return str(base_folder(path) or path)


def _base(folder: Path) -> Path | None:
    base = folder / BASE_DIRECTORY
    return base if base.is_dir() else None


def damage(folder: Path) -> str | None:
    """Why a folder is no complete checkpoint, or None if it is one."""
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        missing = next((name for name in _NEEDED if not (folder / name).is_file()), None)
        return f"{missing} is missing" if missing else None
    try:
        files = read_json(manifest)["files"]
        for name, size in files.items():
            found = (folder / name).stat().st_size
            if found != int(size):
                return f"{name} has {found:,} bytes instead of {int(size):,}"
    except (FileNotFoundError, NotADirectoryError):
        return f"{name} is missing"
    except (FileError, OSError, TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return f"{MANIFEST_FILE} is damaged"
    return None


def run_of(folder: Path) -> str | None:
    """The name of the run that wrote a checkpoint; None if it is old and has none, or damaged."""
    try:
        return read_json(folder / MANIFEST_FILE)["run"]
    except (FileError, TypeError, KeyError):
        return None


def is_link_text(path: Path) -> bool:
    """Whether a file holds the target of one of our links, as zip files and git store links."""
    if path.stat().st_size > 200:
        return False
    return path.read_bytes().startswith((f"{CURRENT}/".encode(), f"{STEPS}/".encode()))


def same_folder(left: Path, right: Path) -> bool:
    """Whether ``left`` is ``right``, or a copy of it by names and sizes."""
    return left == right or (right.is_dir() and sizes(left) == sizes(right))


def sizes(folder: Path) -> dict[str, int]:
    """Every file of a folder and its size in bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is no such folder."""
    return list(folder.iterdir()) if folder.is_dir() else []


def reason(error: BaseException) -> str:
    """The first line of what ``error`` says, with the file it names."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__)


@contextlib.contextmanager
def named(directory: Path) -> Iterator[None]:
    """Turn the operating system's errors into ones that name ``directory``.

    Raises:
        CheckpointError: in their place.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{directory}: {reason(error)}") from error
