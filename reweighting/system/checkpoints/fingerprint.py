"""Tell checkpoints, and large files, apart without reading them whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

from .finding import (
    COPY_AGAIN,
    HEAD_FILE,
    SCORE_HEAD_FILE,
    CheckpointError,
    base_folder,
    locate,
    named,
)

_BLOCK, _BLOCKS = 4096, 4  # bytes and number of the blocks that stand for a tensor or an image


def fingerprint(path: str | Path) -> str:
    """A hash that changes when any part of a reward model does, computed in well below a second.

    Of a safetensors file it covers the header (name, type, shape and place of every tensor), the
    file's size, and four blocks of 4 KiB of every tensor, or all bytes of a small one. Other files
    of weights are sampled in the same way as a whole; the head, configuration, tokenizer and
    templates are read completely. Training changes nearly every number of a tensor it touches, so
    no trained tensor keeps its blocks, and a 2B model takes a few thousand reads instead of nine
    gigabytes. The times of files are ignored: copying changes them, and some writers keep them.

    Raises:
        CheckpointError: a file is damaged or cannot be read.
    """
    folder = locate(path)
    files = sorted(p for p in (base_folder(folder) or folder).rglob("*") if p.is_file())
    files += [folder / name for name in (HEAD_FILE, SCORE_HEAD_FILE) if (folder / name).is_file()]
    digest = hashlib.sha256()
    with named(folder):
        for file in files:
            digest.update(f"{file.relative_to(folder).as_posix()}\0".encode())
            digest.update(f"{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                if file.suffix == ".safetensors":
                    _sample_tensors(digest, stream, file)
                elif file.suffix in (".bin", ".pth"):
                    _sample(digest, stream, 0, file.stat().st_size, 1024)
                else:
                    digest.update(stream.read())
    return digest.hexdigest()


def _sample_tensors(digest, stream: BinaryIO, file: Path) -> None:
    length = int.from_bytes(stream.read(8), "little")
    if length > file.stat().st_size:
        raise CheckpointError(f"{file}: is damaged; {COPY_AGAIN}")
    header = stream.read(length)
    digest.update(header)
    try:
        ranges = [v["data_offsets"] for k, v in json.loads(header).items() if k != "__metadata__"]
        for start, end in ranges:
            _sample(digest, stream, 8 + length + start, end - start)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is damaged; {COPY_AGAIN}") from error


def _sample(digest, stream: BinaryIO, start: int, length: int, blocks: int = _BLOCKS) -> None:
    """Add ``blocks`` blocks, evenly spread over ``length`` bytes from ``start``, to the hash."""
    if length <= blocks * _BLOCK:
        stream.seek(start)
        digest.update(stream.read(length))
        return
    for block in range(blocks):
        stream.seek(start + block * (length - _BLOCK) // (blocks - 1))
        digest.update(stream.read(_BLOCK))


def file_fingerprint(path: str | Path) -> str:
    """A hash of a file's size and of blocks spread over it, or of all of a small file."""
    path = Path(path)
    digest = hashlib.sha256(f"{path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        _sample(digest, stream, 0, path.stat().st_size, 4 * _BLOCKS)
    return digest.hexdigest()
