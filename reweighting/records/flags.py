"""The flags of every command that reads records."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..system.terminal import printable, real
from .patterns import compiled

MEGAPIXELS = 89.0  # million pixels of an image by default: Pillow's own limit
MEGAPIXELS_FLAG = "--max_image_megapixels"

# Of --train_subset, see :func:`~.subsets.choose`.
RULES = ("all", "random", "random_chains", "s1", "bis", "car", "outcome")
SIZED = ("random", "random_chains", "s1", "bis", "car")  # those that need a size or a share
DEFAULT_SIZE = 2000  # records, where neither a size nor a share is given


def step_pattern(text: str) -> str:
    """``text`` as the type of a flag: a regular expression that :func:`.compiled` accepts."""
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{printable(text)} {error}") from error
    return text


def add_record_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags from which :meth:`.RecordReader.of` makes a reader.

    Args:
        add: ``add_argument`` of a parser or of a group.
    """
    add(
        "--image_root",
        default=".",
        metavar="DIR",
        help="directory that relative image paths start from; images must lie inside it",
    )
    add(
        "--allow_external_images",
        action="store_true",
        help="accept image files outside --image_root",
    )
    add(
        "--allow_image_urls",
        action="store_true",
        help="accept http(s) URLs of images, and fetch them",
    )
    add(
        MEGAPIXELS_FLAG,
        type=real(positive=True),
        default=MEGAPIXELS,
        metavar="M",
        help="largest image accepted, in million pixels; larger ones may be made to fill memory",
    )
    add(
        "--skip_bad_records",
        action="store_true",
        help="leave out records with problems and say how many, instead of stopping",
    )
    add(
        "--step_pattern",
        type=step_pattern,
        metavar="REGEX",
        help="regular expression for the start of a step, such as '^Part [A-Z]' or, for "
        "paragraphs, '\\A|\\n\\n', instead of the usual markers ('Step 1', '1.', ...); * and + "
        "repeat at most 50 times",
    )
