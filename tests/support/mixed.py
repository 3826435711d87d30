"""A small data set whose records have no image, one or two."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import write_dataset


def write_mixed(directory: Path, questions: int = 24) -> Path:
    """As :func:`~tests.conftest.write_dataset`; question n has n modulo 3 images.

    The domains are drawn otherwise than the images, so that each has records of all three kinds.
    """
    write_dataset(directory, questions)
    for file in ("train.json", "meta.json"):
        records = json.loads((directory / file).read_text())
        for record in records:
            number = record["id"]
            second = f"images/{(number + 1) % questions}.png"
            record["image_path"] = [None, record["image_path"], [record["image_path"], second]][
                number % 3
            ]
            if "dataset" in record:
                record["dataset"] = ["chart", "table", "map"][number // 3 % 3]
        (directory / file).write_text(json.dumps(records))
    return directory
