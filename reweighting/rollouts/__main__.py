"""From questions to training data: chains of thought and their Monte-Carlo labels.

    python -m reweighting.rollouts chains --questions questions.jsonl --model NAME \
        --output candidates.json --meta_output meta.json
    python -m reweighting.rollouts label --candidates candidates.json --model NAME \
        --output labelled.json
    python -m reweighting.rollouts select --labelled labelled.json --output train.json

Responses come from an OpenAI-compatible server (--model, --base_url) or a local checkpoint
(--policy). Every finished rollout is written to the journal at once. After a kill the same command
continues from there; its output depends only on the journal, not on the order of arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ..records.answers.comparison import unreadable, unreadable_note
from ..records.chains import describe_candidates
from ..records.problems import DataError
from ..records.reader import RecordReader, load_candidates, load_questions
from ..records.samples import QuestionSample
from ..system import terminal
from ..system.files import FileError, remove, write_records, write_text
from ..system.journal import Journal
from ..system.server.errors import ItemError, ServerError, UnusableServerError
from ..system.tasks import Item, Result, for_each
from ..system.terminal import HelpFormatter, Parser, printable, quiet, real, whole
from .chains import candidates_records, meta_records
from .flags import add_sampling_flags, make_reasoner
from .labels import Prefix, count_right, limit_per_domain, prefixes_of, train_records
from .reasoner import MissingReasonerError, Query
from .sampler import Sampler
from .schedules import Adaptive, Published, Schedule

MAX_LISTED = 20  # lost items that are listed at the end of a run


def build_parser() -> argparse.ArgumentParser:
    """The three commands and their flags."""
    parser = Parser(
        prog="python -m reweighting.rollouts",
        description="Chains of thought and Monte-Carlo labels from a model server or checkpoint.",
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, description: str):
        return commands.add_parser(name, description=description, formatter_class=HelpFormatter)

    chains = command("chains", "Sample chains of thought for questions; mark them right or wrong.")
    add = chains.add_argument
    add("--questions", required=True, help="records with question, image_path, answer, dataset")
    add("--samples", type=whole(1), default=8, help="chains per question")
    add("--meta_output", type=Path,
        help="file for a meta set: a right and a wrong chain per question")  # fmt: skip
    add_sampling_flags(chains)

    labels = command("label", "Estimate how likely every step prefix of a chain ends right.")
    add = labels.add_argument
    add("--candidates", required=True,
        help="output of chains, or another file of candidates with answers")  # fmt: skip
    add("--chains_per_question", type=whole(1), default=1,
        help="chains to label, of those with steps and a final answer")  # fmt: skip
    add("--schedule", choices=["adaptive", "dreamprm"], default="adaptive",
        help="adaptive: until the accuracy is known to --tolerance; dreamprm: the published "
        "rule")  # fmt: skip
    add("--min_rollouts", type=whole(1), default=4, help="per prefix, at least (adaptive)")
    add("--max_rollouts", type=whole(1), default=16, help="per prefix, at most")
    add("--tolerance", type=real(), default=0.11,
        help="half-width (one standard deviation) of the accuracy's posterior at which sampling "
        "stops (adaptive)")  # fmt: skip
    add("--estimate", choices=["frequency", "posterior"], default="frequency",
        help="accuracy as score / times, or its posterior mean given all counts of the "
        "domain")  # fmt: skip
    add_sampling_flags(labels)

    select = command("select", "Limit the number of prefixes per domain.")
    add = select.add_argument
    add("--labelled", required=True, nargs="+", help="files of train records")
    add("--output", required=True, type=Path, help="file to write")
    add("--per_domain", type=whole(1), default=1000,
        help="prefixes per domain; accuracies between 0 and 1 first, then as many right as "
        "wrong")  # fmt: skip
    add("--seed", type=int, default=1, help="of the choice among equals")
    add("--skip_bad_records", action="store_true", help="leave out records with problems")
    add("--card", type=Path, help="file for a data card, such as README.md")
    add("--reasoner", metavar="TEXT",
        help="who wrote and completed the chains, for the data card")  # fmt: skip
    return parser


async def sample_all(
    arguments: argparse.Namespace,
    unit: str,
    items: Sequence[Item],
    work: Callable[[Sampler, Item], Awaitable[Result]],
) -> list[Result]:
    """The results of ``work`` on all items, with a reasoner, a journal and a progress bar.

    Prints at the end how many rollouts and tokens it took.
    """
    reasoner = make_reasoner(arguments)
    journal = Journal(arguments.journal or arguments.output.with_suffix(".journal.jsonl"))
    sampler = Sampler(reasoner, journal, arguments.seed)
    before = len(journal)

    def status() -> str:
        parts = [
            f"{len(journal)} rollouts",
            f"{tqdm.format_sizeof(journal.tokens_in)} tokens in",
            f"{tqdm.format_sizeof(journal.tokens_out)} out",
        ]
        if arguments.price_in or arguments.price_out:
            cost = journal.tokens_in * arguments.price_in + journal.tokens_out * arguments.price_out
            parts.append(f"cost {cost / 1e6:.2f}")
        if retries := getattr(reasoner, "retries", 0):
            parts.append(f"{retries} retries")
        if sampler.lost:
            parts.append(f"{len(sampler.lost)} lost")
        return ", ".join(parts)

    try:
        with tqdm(total=len(items), unit=f" {unit}", smoothing=0.05) as bar:
            return await for_each(
                items, lambda item: work(sampler, item), arguments.concurrency, bar, status
            )
    finally:
        await reasoner.close()
        journal.close()
        path = printable(journal.path)
        print(f"{path}: {status()}; {before} were there before, {sampler.sampled} are new")
        for note, count in getattr(reasoner, "notes", {}).items():
            terminal.warning(f"{count} answers {note}")


def make_chains(arguments: argparse.Namespace) -> int:
    """Sample chains and write candidates and meta records; returns the exit code."""
    reader = RecordReader.of(arguments, arguments.questions)
    samples = load_questions(reader, progress=True)
    _say_left_out(reader)
    questions = reader.read()

    def sample_chains(sampler: Sampler, sample: QuestionSample) -> Awaitable:
        return sampler.rollouts(Query(sample.question, sample.image), range(arguments.samples))

    sampled = asyncio.run(sample_all(arguments, "questions", samples, sample_chains))
    pattern = arguments.step_pattern
    records, lost, notes = candidates_records(samples, sampled, questions, pattern)
    right = [mark for record in records for mark in record["true_false"]]
    if right:
        print(
            f"{len(right)} chains for {len(records)} questions, {sum(right) / len(right):.1%} right"
        )
    missing = sum(unreadable(r["candidates"], r.get("choices")) for r in records)
    if note := unreadable_note(missing, len(right)):
        print(f"{note}: these count as wrong")
    for note, count in notes.items():
        if count:
            print(f"{count} chains {note}")
    alike = [len(set(record["candidates"])) == 1 for record in records]
    if arguments.samples > 1 and alike and all(alike):
        terminal.warning(
            "the chains of every question are equal, so the reasoner does not sample; "
            "`transformers serve` does if the checkpoint's generation_config says do_sample"
        )
    code = _write(arguments.output, records, lost, f"{arguments.questions}: a chain")
    if arguments.meta_output and records:
        meta = meta_records(records, pattern)
        print(f"{len(meta) // 2} questions have a right and a wrong chain for the meta set")
        write_records(arguments.meta_output, meta)
    return code


def make_labels(arguments: argparse.Namespace) -> int:
    """Estimate the accuracy of every prefix and write train records; returns the exit code."""
    reader = RecordReader.of(arguments, arguments.candidates)
    samples = load_candidates(reader, progress=True)
    candidates = reader.read()
    for sample in samples:
        for name in ("answer", "dataset"):  # optional in best-of-N, needed here
            reader.text(candidates[sample.record - 1], sample.record, name)
        reader.image(candidates[sample.record - 1], sample.record)  # the reasoner is shown one
    samples = reader.usable(samples)
    _say_left_out(reader)
    pattern = arguments.step_pattern
    print(describe_candidates(samples, pattern))
    prefixes = prefixes_of(samples, candidates, arguments.chains_per_question, pattern)
    without = len(samples) - len({prefix.sample.record for prefix in prefixes})
    if without:
        print(f"{without} of {len(samples)} questions have no chain with steps and a final answer")
    if arguments.schedule == "dreamprm":
        schedule: Schedule = Published(arguments.max_rollouts)
    else:
        schedule = Adaptive(arguments.min_rollouts, arguments.max_rollouts, arguments.tolerance)

    def label(sampler: Sampler, prefix: Prefix) -> Awaitable:
        return count_right(sampler, prefix, schedule)

    outcomes = asyncio.run(sample_all(arguments, "prefixes", prefixes, label))
    labelled, counts, lost = [], [], []
    for prefix, outcome in zip(prefixes, outcomes, strict=True):
        if isinstance(outcome, ItemError):
            entry = {"record": prefix.sample.record, "step": prefix.sid, "why": str(outcome)}
            lost.append(entry)
        else:
            labelled.append(prefix)
            counts.append(outcome)
    records = train_records(labelled, counts, candidates, arguments.estimate)
    if records:
        times = sum(record["times"] for record in records)
        mixed = sum(0 < record["score"] < record["times"] for record in records)
        print(
            f"{len(records)} prefixes with {times / len(records):.1f} rollouts on average; "
            f"{mixed} of them end right now and then, the others always or never"
        )
    return _write(arguments.output, records, lost, f"{arguments.candidates}: a prefix")


def limit_prefixes(arguments: argparse.Namespace) -> int:
    """The command ``select``; returns the exit code."""
    records = []
    for path in arguments.labelled:
        records += _read_labelled(path, arguments.skip_bad_records)
    kept = limit_per_domain(records, arguments.per_domain, arguments.seed)
    counts = Counter(record["dataset"] for record in records)
    for domain, count in Counter(record["dataset"] for record in kept).items():
        print(f"{printable(domain)}: {count} of {counts[domain]} prefixes")
    write_records(arguments.output, kept)
    if arguments.card:
        from .card import data_card  # takes a second to import

        write_text(arguments.card, data_card(kept, arguments.output, arguments.reasoner))
    return 0


def _read_labelled(path: str, skip_bad_records: bool) -> list[dict]:
    """The train records of a file, as written, once they are known to be usable."""
    reader = RecordReader(
        path,
        allow_external_images=True,  # no image is opened
        allow_image_urls=True,
        skip_bad_records=skip_bad_records,
    )
    samples = reader.samples(reader.train_sample)
    records = reader.read()
    for sample in samples:
        _check_counts(reader, records[sample.record - 1], sample.record)
    samples = reader.usable(samples)
    _say_left_out(reader)
    return [records[sample.record - 1] for sample in samples]


def _check_counts(reader: RecordReader, record: dict, number: int) -> None:
    """Note what keeps a train record from being ranked by its accuracy."""
    if "conversations" in record:
        reader.problem(number, "conversations", "holds labels, no accuracy to select by")
    elif record.get("times"):
        score, times = record.get("score"), record["times"]
        whole_numbers = type(score) is int and type(times) is int
        if not whole_numbers or not 0 <= score <= times:
            reader.problem(number, "score", "must be a whole number from 0 to 'times'")


def _say_left_out(reader: RecordReader) -> None:
    if note := reader.left_out():
        terminal.warning(note)


def _write(output: Path, records: list[dict], lost: list[dict], what: str) -> int:
    """Write the results and, beside them, what is lost; returns the exit code."""
    failures = output.with_suffix(".lost.json")
    if lost:
        write_records(failures, lost)
        for entry in lost[:MAX_LISTED]:
            step = f", step {entry['step']}" if "step" in entry else ""
            terminal.warning(f"{what} of record {entry['record']}{step} is lost: {entry['why']}")
        terminal.warning(f"{len(lost)} lost, all in {failures}; the same command tries them again")
    else:
        remove(failures)
    if not records:
        terminal.error("nothing to write")
        return 1
    write_records(output, records)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    quiet()
    if arguments.command == "label" and arguments.min_rollouts > arguments.max_rollouts:
        parser.error("--min_rollouts is larger than --max_rollouts")
    if arguments.command == "select" and arguments.card:
        files = map(Path, [*arguments.labelled, arguments.output])
        if arguments.card.resolve() in [file.resolve() for file in files]:
            parser.error("--card would be written over --labelled or --output")
    if arguments.command == "select" and arguments.reasoner and not arguments.card:
        parser.error("--reasoner is for the data card: give --card too")
    run = {"chains": make_chains, "label": make_labels, "select": limit_prefixes}
    try:
        return run[arguments.command](arguments)
    except (DataError, FileError, MissingReasonerError, UnusableServerError) as error:
        terminal.error(error)
        return 2
    except ServerError as error:
        terminal.error(f"{error}\nthe same command goes on from the journal")
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the journal", file=sys.stderr)
        return 130


if __name__ == "__main__":
    terminal.exit_with(main)
