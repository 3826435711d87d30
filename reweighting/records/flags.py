"""The flags of every command that reads records."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..terminal import printable, real
from .patterns import compiled

MEGAPIXELS = 89.0  # million pixels of an image by default: Pillow's own limit
MEGAPIXELS_FLAG = "--max_image_megapixels"


def step_pattern(text: str) -> str:
    """A regular expression of what starts a step, see :func:`~.patterns.compiled`."""
    try:
        compiled(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{printable(text)} {error}") from error
    return text


def add_record_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags of every command that reads records, see :meth:`.RecordReader.of`.

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
        help="accept http(s) URLs of images, which are fetched",
    )
    add(
        MEGAPIXELS_FLAG,
        type=real(positive=True),
        default=MEGAPIXELS,
        metavar="M",
        help="refuse images of more than so many million pixels, which could fill the memory",
    )
    add(
        "--skip_bad_records",
        action="store_true",
        help="leave out records with problems, and say how many, instead of stopping",
    )
    add(
        "--step_pattern",
        type=step_pattern,
        metavar="REGEX",
        help="what starts a step of a chain, as '^Part [A-Z]' or, for paragraphs, '\\A|\\n\\n', "
        'instead of the markers known here ("Step 1", "1.", ...); what it repeats is '
        "taken 50 times at most, * and + too",
    )
