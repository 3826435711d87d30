"""What results belong to: a run continues those of the same weights, images and settings only."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..records.samples import CandidatesSample
from ..system.checkpoints.fingerprint import file_fingerprint
from ..system.files import FileError, read_json, write_json
from ..system.terminal import printable
from .command import LOCAL_FLAGS, SERVER_FLAGS

SAMPLES_FILE = "samples.jsonl"
IDENTITY_FILE = "run.json"
# Where files are does not matter: their contents do.
_PLACES = {
    *("weights_path", "candidates", "output_dir", "image_root", "allow_external_images"),
    # Of reweighting.evaluate; a threshold changes no score.
    *("data", "threshold_from", "threshold_image_root"),
    *("server", *SERVER_FLAGS),  # of the recipe, its contents do
}


def contents(path: Path, samples: Sequence[CandidatesSample]) -> dict[str, str]:
    """What a file of candidates and its images hold, as hashes.

    Images are compared by size and by blocks spread over the file: compressed images that differ do
    so nearly everywhere. Thousands of images take well below a second.

    Args:
        path: the file that ``samples`` come from.
    """
    images = hashlib.sha256()
    known: dict[str, str] = {}
    for sample in samples:
        for image in sample.images:
            if image not in known:
                # What is not a file (a URL) is compared by its address.
                known[image] = file_fingerprint(image) if os.path.isfile(image) else image
            images.update(f"{sample.record} {known[image]}\n".encode())
    return {
        "candidates": hashlib.sha256(path.read_bytes()).hexdigest(),
        "images": images.hexdigest(),
    }


def identity(
    arguments: argparse.Namespace,
    path: Path,
    samples: Sequence[CandidatesSample],
    model_fingerprint: str,
) -> dict:
    """What must be the same for results to be continued: every weight, image and setting.

    Args:
        path: the file that ``samples`` come from.
    """
    settings = {
        name: value for name, value in sorted(vars(arguments).items()) if name not in _PLACES
    }
    settings["device"] = arguments.device.split(":")[0]  # which of several GPUs does not matter
    if arguments.server is not None:
        settings = {name: value for name, value in settings.items() if name not in LOCAL_FLAGS}
    found = {**contents(path, samples), "weights": model_fingerprint, **settings}
    return json.loads(json.dumps(found, default=str))  # as it is read back


def claim(folder: Path, wanted: dict) -> None:
    """Record what the results in ``folder`` belong to, before the first of them is written.

    Args:
        wanted: the :func:`identity` of this run.

    Raises:
        FileError: the folder holds results that belong to something else.
    """
    known, samples = folder / IDENTITY_FILE, folder / SAMPLES_FILE
    before = _read(known)
    if before is not None and before != wanted:
        differing = sorted(
            name for name in before.keys() | wanted.keys() if before.get(name) != wanted.get(name)
        )
        raise FileError(
            f"{folder} holds results of another model, file or setting "
            f"({printable(', '.join(differing))}); choose another --output_dir"
        )
    if before is None and samples.exists():
        raise FileError(
            f"{samples} is there, but not {IDENTITY_FILE}, which says what it "
            "belongs to; choose another --output_dir"
        )
    write_json(known, wanted)


def _read(path: Path) -> dict | None:
    """A recorded identity; None without a file, or with an empty one as an old version left it."""
    if not path.exists() or not path.stat().st_size:
        return None
    advice = "choose another --output_dir"
    try:
        value = read_json(path)
    except FileError as error:
        raise FileError(f"{error}; {advice}") from error
    if not isinstance(value, dict):
        raise FileError(f"{path}: describes no results; {advice}")
    return value
