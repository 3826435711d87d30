"""One HTML file to look at: the choices of a selection, the course of a training run, or both.

    python -m reweighting.report --selection selected --candidates test.json --output page.html
    python -m reweighting.report --weights_path weights/dreamprm --output page.html

Every step of every candidate has the colour of its score V. The file needs no network and no other
file; images are shrunk and stand in it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..system import terminal
from ..system.files import FileError, write_text
from ..system.terminal import HelpFormatter, Parser, printable, quiet, whole

IMAGE_SIZE = 384  # pixels


def build_parser() -> argparse.ArgumentParser:
    """All flags of the report."""
    parser = Parser(
        prog="python -m reweighting.report",
        description="Write one HTML file that shows a selection, a training run, or both.",
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, type=Path, help="the HTML file")
    add("--selection", type=Path, metavar="DIR", help="the --output_dir of a selection")
    add("--candidates", nargs="+", type=Path, default=[], metavar="FILE",
        help="files of candidates that were scored there")  # fmt: skip
    add("--weights_path", type=Path, metavar="RUN", help="directory of a training run")
    add("--max_image_size", type=whole(1), default=IMAGE_SIZE, metavar="N",
        help="longest side of an image in the page, in pixels")  # fmt: skip
    add_record_flags(add)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not arguments.selection and not arguments.weights_path:
        parser.error("give --selection, --weights_path or both")
    if bool(arguments.selection) != bool(arguments.candidates):
        parser.error("--selection and --candidates belong together")
    if arguments.output.is_dir():
        parser.error(f"--output {printable(arguments.output)} is a directory")
    if arguments.output.is_file() and arguments.output.read_bytes()[:9].lower() != b"<!doctype":
        parser.error(f"--output {printable(arguments.output)} is there and is no page")
    quiet()
    try:
        print(_write(arguments))
    except (DataError, FileError) as error:
        terminal.error(error)
        return 2
    return 0


def _write(arguments: argparse.Namespace) -> str:
    """Write the page; what is said of it."""
    from .page import Pictures, make_page

    pictures = Pictures(arguments.max_image_size)
    data: dict[str, Any] = {
        "selection": _choices(arguments, pictures) if arguments.selection else None,
        "run": None,
    }
    if arguments.weights_path:
        from .course import course_of

        data["run"] = course_of(arguments.weights_path, pictures)
    page = make_page({**data, "images": pictures.urls})
    write_text(arguments.output, page)
    questions = len(data["selection"]["questions"]) if data["selection"] else 0
    return (
        f"{printable(arguments.output)}: {questions:,} questions, {len(pictures.urls):,} images of "
        f"at most {arguments.max_image_size} pixels, {len(page.encode()) / 1e6:.1f} MB"
    )


def _choices(arguments: argparse.Namespace, pictures: Any) -> dict[str, Any]:
    """The questions of all files of candidates."""
    from ..records.reader import RecordReader, load_candidates
    from .choices import check_scored, set_of_choices, settings_of
    from .page import shown

    given, questions = arguments.step_pattern, []
    for number, path in enumerate(arguments.candidates):
        folder = arguments.selection / path.stem
        arguments.step_pattern = pattern = given or settings_of(folder).get("step_pattern")
        reader = RecordReader.of(arguments, path)
        samples = load_candidates(reader)
        if note := reader.left_out():
            terminal.warning(note)
        check_scored(folder, path, samples)
        for question in set_of_choices(folder, samples, pattern, pictures):
            questions.append({"set": number, **question})
    # The page chooses among the ways to choose that all files were scored with.
    ways = set.intersection(*(set(question["chosen"]) for question in questions))
    if not ways:
        raise FileError("--candidates: the files were scored with different --aggregation")
    for question in questions:
        question["chosen"] = {k: v for k, v in question["chosen"].items() if k in ways}
    return {"sets": [shown(path.stem) for path in arguments.candidates], "questions": questions}


if __name__ == "__main__":
    terminal.exit_with(main)
