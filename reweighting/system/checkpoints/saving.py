"""Write a checkpoint beside the others, force it to disk, and let it take effect as a whole.

Until its folder is renamed, the checkpoint before it is untouched and the links point there; the
layout is described in :mod:`.finding`.
"""

from __future__ import annotations

import errno
import filecmp
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..files import FileError, complete_lines, json_line, replacing, write_json
from .finding import (
    CURRENT,
    MANIFEST_FILE,
    METRICS_FILE,
    STEP_NAME,
    STEPS,
    CheckpointError,
    damage,
    entries,
    find,
    is_link_text,
    reason,
    run_of,
    same_folder,
    sizes,
)

_ASIDE = ".unfinished"
# Errors of a file system that has no links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def save(
    directory: Path,
    iteration: int,
    write: Callable[[Path], None],
    run: str,
    loaded: Path | None = None,
) -> Path:
    """Make what ``write(folder)`` writes the current checkpoint of ``directory``.

    Only earlier checkpoints of this run are deleted, and copies of the checkpoint it went on from
    that stand in the place of links.

    Args:
        directory: the run's ``--weights_path``.
        iteration: number of lower steps done.
        write: writes all files of the checkpoint into an empty folder.
        run: unique name of this run, which it keeps when it is resumed.
        loaded: the checkpoint from which the run was resumed.

    Returns:
        the checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written; the checkpoint before it is unchanged.
    """
    steps = directory / STEPS
    folder = steps / f"step-{iteration:08d}"
    unfinished = folder.with_name(folder.name + _ASIDE)
    try:
        if damage(folder) is not None:  # else a finished run was resumed: it is already saved
            steps.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            write(unfinished)
            manifest = {"run": run, "iteration": iteration, "files": sizes(unfinished)}
            write_json(unfinished / MANIFEST_FILE, manifest)
            _sync(unfinished)
            if folder.exists():  # damaged
                _clear(folder, delete=run_of(folder) == run)
            unfinished.rename(folder)
            _sync_directory(steps)
        _link(directory / CURRENT, f"{STEPS}/{folder.name}", loaded)
        for path in folder.iterdir():
            copied = loaded / path.name if loaded else None
            _link(directory / path.name, f"{CURRENT}/{path.name}", copied)
        _sync_directory(directory)
    except (OSError, RuntimeError, SafetensorError, FileError) as error:
        # torch and safetensors raise errors of their own when a disk is full.
        shutil.rmtree(unfinished, ignore_errors=True)
        before = find(directory)
        kept = f"{before.resolve()} is as it was" if before else "there is no earlier one"
        raise CheckpointError(
            f"{directory}: the checkpoint of step {iteration:,} could not be written: "
            f"{reason(error)}; {kept}"
        ) from error
    for other in entries(steps):
        name, torn = other.name.removesuffix(_ASIDE), other.name.endswith(_ASIDE)
        if other == folder or not STEP_NAME.fullmatch(name) or not other.is_dir():
            continue  # not made by training
        if torn or run_of(other) == run or (loaded is not None and other == loaded):
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _link(link: Path, target: str, copied: Path | None) -> None:
    """Point ``link`` to ``target``, replacing what it pointed to in one instant.

    Args:
        copied: if ``link`` is no link and holds a copy of this, it is replaced; anything else is
            kept under another name.
    """
    if link.is_symlink() and os.readlink(link) == target:
        return
    aside = link.with_name(link.name + _ASIDE)
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        aside.write_text(target, encoding="utf-8")
    if os.path.lexists(link) and not link.is_symlink():
        if link.is_dir():
            _clear(link, delete=copied is not None and same_folder(link, copied))
        elif not is_link_text(link) and not (
            copied is not None and copied.is_file() and filecmp.cmp(link, copied, shallow=False)
        ):
            _clear(link, delete=False)
    aside.replace(link)


def _clear(path: Path, delete: bool) -> None:
    """Delete a folder, or without ``delete`` keep it, or a file, under a name that is free."""
    if delete:
        shutil.rmtree(path)
        return
    number = 1
    while os.path.lexists(kept := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    path.rename(kept)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for file in files:
            with open(os.path.join(root, file), "rb") as handle:
                os.fsync(handle.fileno())
        _sync_directory(Path(root))


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def truncate_metrics(directory: Path, iteration: int) -> None:
    """Drop the lines of ``metrics.jsonl`` that a resumed run will write again or that are torn."""
    path = directory / METRICS_FILE
    if not path.exists():
        return
    lines = [line for line in complete_lines(path) if line["iteration"] <= iteration]
    with replacing(path) as file:
        file.writelines(map(json_line, lines))
