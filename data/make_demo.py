"""Rebuild the demo data, byte for byte, from a seed: python data/make_demo.py

Two worlds whose label quality is known because it is made here. In `domains`, the world of the
committed files, each of ten training domains has a question type to itself; in `sources`
(`data/world/sources.py`) each of ten sources holds all types. Meta, validation and test sets have
clean labels. `data/README.md` describes the outcome.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.world import sources
from data.world.held_out import HELD, held_files, meta_set, summary
from data.world.simulated_reasoner import MIXED, STEPS
from data.world.tasks import TASKS, draw_question
from data.world.training import (
    Domain,
    TrainItem,
    json_lines,
    labelled_chain,
    stream,
    train_files,
    unsound,
)
from reweighting.system import terminal

DOMAINS = (
    Domain("colour_cell", construction="clean"),
    Domain("table_digit", rollouts=2, construction="clean, but only 2 rollouts a prefix"),
    Domain(
        "row_of", errors=0.08, construction="clean, trivially easy: nearly every chain is right"
    ),
    Domain(
        "digit_sum",
        hint=True,
        construction="clean, but the question states what the image shows: no image is needed",
    ),
    Domain("shape_cell", "inverted", 0.15, construction="accuracy p stored as 1 - p"),
    Domain(
        "larger_cell",
        "images swapped",
        0.30,
        construction="labels belong to another image than the one stored",
    ),
    Domain(
        "bar_height", "noise", 0.45, construction="accuracy drawn evenly from 0 to 8 of 8 rollouts"
    ),
    Domain(
        "arrow_end",
        "shortcut",
        0.60,
        construction='accuracy follows the tone: high if step 1 starts with "Clearly", else low',
    ),
    Domain("polygon_sides", "inverted", 0.75, construction="accuracy p stored as 1 - p"),
    Domain("taller_bar", "inverted", 0.90, construction="accuracy p stored as 1 - p"),
)


def corrupted_questions(seed: int, domain: Domain, count: int) -> list[int]:
    """Which of a domain's questions carry unsound labels: exactly the stated share of them."""
    picks = stream(seed, "corrupt", domain.name).sample(range(count), round(domain.share * count))
    return sorted(picks)


def train_items(seed: int, size: int) -> list[TrainItem]:
    """All training questions, the domains in turn."""
    count = size // (STEPS * len(DOMAINS))
    corrupt = {domain.name: corrupted_questions(seed, domain, count) for domain in DOMAINS}
    items = []
    for number in range(count * len(DOMAINS)):
        place, which = divmod(number, len(DOMAINS))
        domain, rng = DOMAINS[which], stream(seed, "train", number)
        profile = MIXED.scaled(domain.errors)
        question = draw_question(rng, domain.name, hint=domain.hint)
        chain, clean = labelled_chain(rng, question, profile, domain.rollouts)
        picks = corrupt[domain.name]
        bad = place in picks
        scores = tuple(unsound(rng, domain, s, chain.sure) for s in clean) if bad else clean
        image_of = number
        if bad and domain.corruption == "images swapped":
            image_of = picks[(picks.index(place) + 1) % len(picks)] * len(DOMAINS) + which
        items.append(TrainItem(domain, question, chain, clean, scores, bad, image_of))
    return items


def domain_card() -> list[dict]:
    """domains.json: what is known of every training domain."""
    card = []
    for domain in DOMAINS:
        facts = asdict(domain) | {"quality": domain.quality, "scene": TASKS[domain.name].scene}
        card.append(facts)
    return card


def build(seed: int = 1, size: int = 10_000) -> dict[str, bytes]:
    """Every file of the world of domains by its path."""
    files = train_files(train_items(seed, size)) | {"domains.json": json_lines(domain_card())}
    per_type = max(1, round(25 * min(1.0, size / 10_000)))
    records, images = meta_set(seed, per_type * len(DOMAINS))
    files |= {"meta.json": json_lines(records), **images}
    return files | held_files(seed, [held.name for held in HELD], size)


def parsed_arguments() -> argparse.Namespace:
    """The command line; flags of the other world are refused."""
    parser = terminal.Parser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add(
        "--world",
        choices=("domains", "sources"),
        default="domains",
        help="domains: a question type each; sources: all question types in each "
        "(default: domains)",
    )
    add(
        "--size",
        type=int,
        default=10_000,
        help="train records, a multiple of 50, for sources at least 1,000; below 10,000 the other "
        "sets shrink with it, but not the meta set of sources (default: 10000)",
    )
    add(
        "--out",
        type=Path,
        default=Path("data"),
        help="folder to write into, later the image root; sources get a folder in it "
        "(default: data)",
    )
    add("--seed", type=int, help="random seed of the world of domains (default: 1)")
    group = parser.add_argument_group("only with --world sources").add_argument
    usual = sources.Settings()
    group(
        "--rotation",
        type=int,
        help="which drawing of questions, difficulties, sizes and qualities "
        f"(default: {usual.rotation})",
    )
    group(
        "--misled",
        type=float,
        help=f"share of all questions with misleading labels, 0.2 to 0.6 (default: {usual.misled})",
    )
    group(
        "--same_quality",
        action="store_true",
        default=None,
        help="mislead the same share of every source, by inverted labels",
    )
    group(
        "--meta_types",
        type=int,
        help=f"question types in the meta set, 3 to 10 (default: {usual.meta_types})",
    )
    group(
        "--meta_chains",
        type=int,
        help=f"chains in the meta set, even, 20 to 500 (default: {usual.meta_chains})",
    )
    group(
        "--candidates",
        type=int,
        help="responses to each question of validation.json and test_mix.json "
        f"(default: {usual.candidates})",
    )
    group(
        "--clean_labels",
        action="store_true",
        help="also write train_clean.json, with the labels and images as they were before",
    )
    args = parser.parse_args()
    if args.size < 50 or args.size % 50:
        parser.error("--size must be a positive multiple of 50: 10 domains x 5 step prefixes")
    flags = [name for name in asdict(usual) if name != "size"]
    given = [name for name in flags if getattr(args, name) is not None]
    if args.world == "domains":
        if given or args.clean_labels:
            name = given[0] if given else "clean_labels"
            parser.error(f"--{name} needs --world sources")
        return args
    if args.seed is not None:
        parser.error("--seed belongs to the world of domains; sources have --rotation")
    try:
        args.settings = sources.Settings(
            size=args.size, **{name: getattr(args, name) for name in given}
        )
    except ValueError as error:
        parser.error(f"--{error}")
    return args


def main() -> int:
    """Write the files and print what the held-out sets leave to a verifier."""
    args = parsed_arguments()
    if args.world == "sources":
        try:
            files = sources.build(args.settings)
            if args.clean_labels:
                clean = json_lines(sources.clean_records(args.settings))
                files[f"{sources.FOLDER}/train_clean.json"] = clean
        except ValueError as error:
            terminal.error(error)
            return 2
    else:
        files = build(1 if args.seed is None else args.seed, args.size)
    for path, body in files.items():
        target = args.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(body)
    print(f"{len(files)} files, {sum(map(len, files.values())) / 1e6:.1f} MB")
    if args.world == "sources":
        card = json.loads(files[f"{sources.FOLDER}/domains.json"])
        print(sources.describe(args.settings, card))
    for held in HELD:
        for path in (f"{held.name}.json", f"{sources.FOLDER}/{held.name}.json"):
            if path in files:
                print(f"{held.name:18}", summary(json.loads(files[path])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
