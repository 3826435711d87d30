"""The commands that convert published sets: their flags, and what they write."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...records.problems import Tally
from ...system import terminal
from ...system.files import FileError, remove, write_records
from ...system.terminal import whole
from ..notes import count, text_only
from . import formats, texts_only
from .chains import Chain, candidates_record, meta_record, train_records
from .choice import META, TRAIN, VALIDATION, Choice
from .rows import Refused, Row, Source, rows, sources

_NAMES = {META: "meta", VALIDATION: "validation"}


class Layout(NamedTuple):
    """A published set.

    Args:
        help: what it is.
        convert: the chains of a row.
        columns: that are read, where it is a parquet file.
        images: whether its rows have images of their own.
        pairs: whether it gives meta records and nothing to train on.
    """

    help: str
    convert: Callable[[Row], list[Chain]]
    columns: tuple[str, ...] = ()
    images: bool = True
    pairs: bool = False


_VL_PRM_COLUMNS = (
    *("steps_with_score", "rollout_ground_truth_answer", "image", "source", "question"),
    *("first_incorrect_step", "conversations"),
)

LAYOUTS = {
    "from-visualprm-raw": Layout(
        "VisualPRM400K-v1.1-Raw: Monte-Carlo accuracies", formats.from_visualprm_raw
    ),
    "from-visualprm": Layout("VisualPRM400K: chats with + and -", formats.from_visualprm),
    "from-mm-prm": Layout("MM-PRM: a list of accuracies", formats.from_mm_prm),
    "from-vl-prm300k": Layout(
        "VL-PRM300K: Monte-Carlo accuracies", formats.from_vl_prm300k, _VL_PRM_COLUMNS[:5]
    ),
    "from-vl-prm300k-judged": Layout(
        "VL-PRM300K: its judge's first incorrect step",
        formats.from_vl_prm300k_judged,
        _VL_PRM_COLUMNS,
    ),
    "from-mmpr": Layout("MMPR: pairs, as meta records", formats.from_mmpr, pairs=True),
    "from-prm800k": Layout("PRM800K: ratings", texts_only.from_prm800k, images=False),
    "from-math-shepherd": Layout(
        "Math-Shepherd: + and - after each step", texts_only.from_math_shepherd, images=False
    ),
}


def add_commands(directions: Any, layout: dict[str, Any]) -> None:
    """Add a command for each of :data:`LAYOUTS`.

    Args:
        layout: of the help of a command.
    """
    for name, published in LAYOUTS.items():
        add = directions.add_parser(name, help=published.help, **layout).add_argument
        add(
            "--source",
            type=Path,
            nargs="+",
            required=True,
            help="files, folders of files, or lists of files such as VisualPRM400K's meta.json",
        )
        if published.images:
            add("--image_dir", type=Path, help="is put before all image paths (default: nothing)")
        add("--domains", nargs="+", help="convert rows of these only (default: all)")
        add("--per_domain", type=whole(1), help="draw this many rows of each (default: all)")
        add("--limit", type=whole(1), help="draw this many rows of all in all (default: all)")
        add(
            "--held_out",
            type=whole(2),
            help="hold out questions with this many chains for each of a meta set and a validation "
            "set, half of them right, written beside the output (default: none)",
        )
        add("--seed", type=whole(0), default=0, help="of what is drawn (default: 0)")
        kind = "meta records" if published.pairs else "train records"
        add("--output", type=Path, required=True, help=f"{kind}; JSON Lines if named .jsonl")


class Conversion:
    """One run of a command of :data:`LAYOUTS`.

    Raises:
        FileError: while its methods run: a file cannot be read or written, or nothing is left.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.layout = LAYOUTS[arguments.direction]
        root = arguments.image_dir if self.layout.images else None
        self.sources: list[Source] = sources(arguments.source, root)
        if arguments.output.resolve() in {source.path.resolve() for source in self.sources}:
            raise FileError(f"{arguments.output}: would be written over its own source")
        self.wanted = set(arguments.domains or ())
        self.written: Counter[str] = Counter()  # rows of each domain
        self.rows = self.records = 0  # rows that were wanted and not refused
        self.bare = 0  # records without an image
        self.met: set[str] = set()
        self.held_out: dict[int, list[Chain]] = {}

    def run(self) -> str:
        """Write everything; returns what was written, and warns of what was refused."""
        refused = Tally()
        uses = self._uses()
        output = self.arguments.output
        lines = output.suffix == ".jsonl"
        try:
            write_records(output, self._records(uses, refused), lines)
        finally:
            if refused.number:
                refusals = f"{count(refused.number, 'row')} of {self.rows + refused.number} refused"
                terminal.warning(f"{refusals}:\n{refused.text()}")
        if self.layout.images:
            for note in text_only(self._place(), self.bare, "record"):
                terminal.warning(note)
        told = [self._summary()]
        for use, chains in self.held_out.items():
            told.append(self._write_held_out(use, chains, lines))
        for domain in sorted(self.wanted - self.met):
            terminal.warning(f"{self._place()}: no row of the domain {terminal.printable(domain)}")
        return "\n".join(told)

    def _chains(self, refused: Tally) -> Iterator[tuple[int, list[Chain]]]:
        """The number, from 0, of every row that is wanted and not refused, and its chains."""
        number = 0
        for source in self.sources:
            for row in rows(source, list(self.layout.columns), refused):
                try:
                    chains = self.layout.convert(row)
                except Refused as error:
                    refused.add(error.problem)
                    continue
                if not self.wanted or chains[0].domain in self.wanted:
                    self.met.add(chains[0].domain)
                    yield number, chains
                    number += 1

    def _uses(self) -> bytearray | None:
        """What each chain is used for; None if all are trained on, which takes no reading."""
        arguments = self.arguments
        if not (arguments.held_out or arguments.per_domain or arguments.limit):
            return None
        choice = Choice(arguments.seed)
        for number, chains in self._chains(Tally()):
            for chain in chains:
                choice.see(number, chain)
        if arguments.held_out:
            sets = (VALIDATION,) if self.layout.pairs else (META, VALIDATION)
            wanted = arguments.held_out // 2 * 2
            for use, number in choice.hold_out(wanted, sets).items():
                self.held_out[use] = []
                if number < wanted:
                    name = _NAMES[use]
                    short = f"the {name} set gets {number} chains: there are no more"
                    terminal.warning(f"{self._place()}: {short}")
        choice.draw(arguments.per_domain, arguments.limit)
        return choice.uses

    def _records(self, uses: bytearray | None, refused: Tally) -> Iterator[dict]:
        """The records to write; chains that are held out are kept for later."""
        index = ids = 0
        for _, chains in self._chains(refused):
            self.rows += 1
            trained = False
            for chain in chains:
                use = uses[index] if uses is not None else TRAIN
                index += 1
                if use == TRAIN:
                    trained = True
                    pair = self.layout.pairs
                    made = [meta_record(chain)] if pair else train_records(chain, ids)
                    ids += 1
                    for record in made:
                        self.records += 1
                        self.bare += not chain.images
                        yield record
                elif use in self.held_out:
                    self.held_out[use].append(chain)
            self.written[chains[0].domain] += trained
        if not self.records:
            reason = "all rows are held out" if self.rows else "no row is left"
            raise FileError(f"{self._place()}: {reason}, nothing is written")

    def _place(self) -> str:
        """The sources as messages name them."""
        first, *others = self.arguments.source
        return f"{first} and {len(others)} more" if others else str(first)

    def _summary(self) -> str:
        """What went to the output."""
        domains = sum(number > 0 for number in self.written.values())
        told = f"{count(self.records, 'record')} of {count(self.written.total(), 'row')}"
        place = terminal.printable(self.arguments.output)
        return f"{told} in {count(domains, 'domain')} written to {place}"

    def _write_held_out(self, use: int, chains: list[Chain], lines: bool) -> str:
        """Write a held-out set beside the output: meta records, or candidates for validation."""
        output = self.arguments.output
        path = output.with_name(f"{output.stem}_{_NAMES[use]}{output.suffix}")
        if not chains:
            remove(path)  # an older one may share questions with the output
            return f"nothing written to {terminal.printable(path)}"
        if use == META:
            records = [meta_record(chain) for chain in chains]
        else:
            questions: dict[int, list[Chain]] = {}
            for chain in chains:
                questions.setdefault(chain.key, []).append(chain)
            records = [candidates_record(group) for group in questions.values()]
        write_records(path, records, lines)
        told = f"{count(len(records), 'record')} with {count(len(chains), 'chain')}"
        return f"{told} written to {terminal.printable(path)}"
