"""From questions to training data: chains of thought and their Monte-Carlo labels.

    python -m reweighting.rollouts chains --questions questions.jsonl --model NAME \
        --output candidates.json --meta_output meta.json
    python -m reweighting.rollouts label --candidates candidates.json --model NAME \
        --output labelled.json
    python -m reweighting.rollouts select --labelled labelled.json --output train.json

Responses come from an OpenAI-compatible server (--model, --base_url) or a local checkpoint
(--policy). Every finished one is in the journal at once: the same command goes on where a killed
one stopped, and what it writes depends on the journal alone, not on the order of arrival.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import terminal
from ..files import FileError, parse_json, read_text, remove, write_records
from ..records.answers.comparison import extract, is_right, unreadable, unreadable_note
from ..records.chains import describe_candidates
from ..records.flags import add_record_flags
from ..records.problems import DataError
from ..records.reader import RecordReader, load_candidates, load_questions
from ..records.samples import CandidatesSample, QuestionSample
from ..records.steps import join, split_steps, step_starts
from ..records.texts import holds_control_token
from ..terminal import HelpFormatter, Parser, printable, quiet, real, whole
from .journal import Journal
from .reasoner import (
    INSTRUCTION,
    ItemError,
    MissingReasonerError,
    Prompt,
    Reasoner,
    ReasonerError,
    Rollout,
)
from .sampler import Item, Result, Sampler, for_each
from .schedules import (
    Adaptive,
    Published,
    Schedule,
    most_alike,
    posterior_accuracies,
    select_prefixes,
)

MAX_LISTED = 20  # lost items spelled out at the end of a run


# ---- chains


def usable(response: str, pattern: str | None = None) -> bool:
    """Whether a response has what a chain needs: steps and a final answer.

    Args:
        pattern: of what starts a step, see :func:`~..records.steps.layout`.
    """
    return bool(step_starts(response, pattern)) and extract(response) != ""


async def sample_chains(
    sampler: Sampler, sample: QuestionSample, count: int
) -> list[Rollout | ItemError]:
    """``count`` chains for a question."""
    try:
        return await sampler.rollouts(Prompt(sample.question, sample.image), range(count))
    except ItemError as error:
        return [error] * count


def candidates_record(record: dict, sample: QuestionSample, chains: list[str]) -> dict:
    """A best-of-N record; keeps every other field of the question's record."""
    true_false = [is_right(chain, sample.answer, sample.choices) for chain in chains]
    return {**record, "candidates": chains, "true_false": true_false}


def meta_records(records: Sequence[dict], pattern: str | None = None) -> list[dict]:
    """A right and a wrong chain of every question that has both, whole chains only.

    Both labels occur equally often with every question and image, both chains have steps and a
    final answer, and of all pairs the two most alike in length are taken: a label that could be
    told from the form of a record would teach the weights nothing else.
    """
    meta = []
    for record in records:
        by_label: dict[bool, list[str]] = {True: [], False: []}
        for chain, right in zip(record["candidates"], record["true_false"], strict=True):
            if usable(chain, pattern):
                by_label[right].append(chain)
        if pair := most_alike(by_label[True], by_label[False]):
            # Which of the two comes first must not tell the label either.
            for right in (True, False) if len(meta) % 4 else (False, True):
                meta.append(
                    {
                        "id": len(meta),
                        "true_false": right,
                        "input": join(record["question"], pair[not right]),
                        "image_path": record["image_path"],
                        "dataset": record["dataset"],
                    }
                )
    return meta


# ---- labels


@dataclass(frozen=True)
class Prefix:
    """The first steps of a chain, to be labelled."""

    sample: CandidatesSample
    choices: list[str] | None
    record_id: Any
    text: str
    sid: int  # number of steps, from 1
    last: bool  # is it the whole chain up to the final answer?
    right: bool  # did its own chain end right?


def prefixes_of(
    samples: Sequence[CandidatesSample],
    records: Sequence[dict],
    chains_per_question: int,
    pattern: str | None = None,
) -> list[Prefix]:
    """All prefixes of the first usable chains of every question."""
    found = []
    for sample in samples:
        record = records[sample.record - 1]
        chains = [i for i, text in enumerate(sample.candidates) if usable(text, pattern)]
        for index in chains[:chains_per_question]:
            steps = split_steps(sample.candidates[index], pattern)
            for sid, text in enumerate(steps, start=1):
                found.append(
                    Prefix(
                        sample,
                        record.get("choices"),
                        record.get("id", sample.record),
                        text,
                        sid,
                        sid == len(steps),
                        sample.true_false[index],
                    )
                )
    return found


async def label(
    sampler: Sampler, prefix: Prefix, schedule: Schedule
) -> tuple[int, int] | ItemError:
    """Right ones and all rollouts of a prefix, taken in the order of their indices.

    A completion without a final answer is a wrong one, as for every Monte-Carlo estimate of this
    kind: the reasoner did not get there. One that could not be had (:class:`ItemError`) is none,
    and as what it would have said is not known, the prefix goes without a label until it is there.
    """
    prompt = Prompt(prefix.sample.question, prefix.sample.image, prefix.text)
    own = schedule.counts_own_chain
    score, times, asked = int(own and prefix.right), int(own), 0
    try:
        while more := schedule.wanted(score, times, asked):
            for rollout in await sampler.rollouts(prompt, range(asked, asked + more)):
                if isinstance(rollout, ItemError):
                    return rollout
                if schedule.counts(rollout.text, prefix.last):
                    times += 1
                    score += is_right(rollout.text, prefix.sample.answer, prefix.choices)
            asked += more
    except ItemError as error:
        return error
    return score, times


def train_records(
    prefixes: Sequence[Prefix],
    counts: Sequence[tuple[int, int]],
    records: Sequence[dict],
    estimate: str,
) -> list[dict]:
    """Train records in the published format.

    Args:
        counts: right ones and all rollouts of every prefix.
        estimate: ``frequency``, score / times, or ``posterior``, see
            :func:`~reweighting.rollouts.schedules.posterior_accuracies`.
    """
    accuracies = [score / times for score, times in counts]
    if estimate == "posterior":
        for domain in {prefix.sample.dataset for prefix in prefixes}:
            here = [i for i, prefix in enumerate(prefixes) if prefix.sample.dataset == domain]
            scores, times = zip(*(counts[i] for i in here), strict=True)
            for i, accuracy in zip(here, posterior_accuracies(scores, times), strict=True):
                accuracies[i] = accuracy
    return [
        {
            "id": prefix.record_id,
            "sid": prefix.sid,
            "input": prefix.sample.question,
            "add": prefix.text,
            "ground_truth": prefix.sample.answer,
            "image_path": records[prefix.sample.record - 1]["image_path"],
            "dataset": prefix.sample.dataset,
            "score": score,
            "times": times,
            "accuracy": accuracy,
        }
        for prefix, (score, times), accuracy in zip(prefixes, counts, accuracies, strict=True)
    ]


# ---- the command line


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
    add("--samples", type=whole(1), default=8, help="chains a question")
    add("--meta_output", type=Path, help="file for a meta set: a right and a wrong chain each")
    _add_sampling_flags(chains)

    labels = command("label", "Estimate how likely every step prefix of a chain ends right.")
    add = labels.add_argument
    add("--candidates", required=True, help="what chains wrote, or any such file with answers")
    add("--chains_per_question", type=whole(1), default=1, help="of those with a final answer")
    add("--schedule", choices=["adaptive", "dreamprm"], default="adaptive",
        help="adaptive: until the accuracy is known to --tolerance; dreamprm: the published "
        "rule")  # fmt: skip
    add("--min_rollouts", type=whole(1), default=4, help="a prefix at least (adaptive)")
    add("--max_rollouts", type=whole(1), default=16, help="a prefix at most")
    add("--tolerance", type=real(), default=0.11,
        help="half-width (one standard deviation) of the accuracy's posterior at which sampling "
        "stops (adaptive)")  # fmt: skip
    add("--estimate", choices=["frequency", "posterior"], default="frequency",
        help="accuracy as score / times, or its posterior mean given all counts of the "
        "domain")  # fmt: skip
    _add_sampling_flags(labels)

    select = command("select", "Keep at most so many prefixes of every domain.")
    add = select.add_argument
    add("--labelled", required=True, nargs="+", help="files of train records")
    add("--output", required=True, type=Path, help="file to write")
    add("--per_domain", type=whole(1), default=1000,
        help="prefixes a domain; accuracies between 0 and 1 first, then as many right as "
        "wrong")  # fmt: skip
    add("--seed", type=int, default=1, help="of the choice among equals")
    add("--skip_bad_records", action="store_true", help="leave out records with problems")
    return parser


def _add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", required=True, type=Path, help="file to write")
    add("--journal", type=Path,
        help="finished rollouts; default: beside the output, .journal.jsonl")  # fmt: skip
    add_record_flags(add)
    add("--max_image_size", type=whole(28), default=512, help="longest side in pixels, as sent")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="name of the reasoner on a server")
    source.add_argument("--policy", help="checkpoint directory or hub name of a local reasoner")
    add("--instruction", type=Path, help="text file to ask with instead of the five-step prompt")
    add("--temperature", type=real(), default=1.0, help="of the sampling")
    add("--max_tokens", type=whole(1), default=1024, help="of a response")
    add("--seed", type=int, default=1, help="another one gives other samples")

    add = parser.add_argument_group("server (the key is taken from OPENAI_API_KEY)").add_argument
    add("--base_url", help="as http://host:port/v1; default: OPENAI_BASE_URL, else OpenAI")
    add("--continuation", choices=["instruction", "prefill"], default="instruction",
        help="how a prefix is put: quoted in the user's turn (any server), or as the opening of "
        "the assistant's turn (vLLM, SGLang)")  # fmt: skip
    add("--request_options", type=_json_object, metavar="JSON",
        help='more fields of every request, as \'{"reasoning_effort": "high"}\'; null leaves one '
        "out")  # fmt: skip
    add("--concurrency", type=whole(1), default=16, help="requests at a time")
    add("--timeout", type=real(positive=True), default=300.0, help="seconds for an attempt")
    add("--max_retries", type=whole(0), default=8, help="of a request; 8 outlast a minute's outage")
    add("--requests_per_minute", type=real(positive=True), help="at most")
    add("--tokens_per_minute", type=real(positive=True), help="at most, in and out")
    add("--price_in", type=real(), default=0.0, help="money per million tokens in")
    add("--price_out", type=real(), default=0.0, help="money per million tokens out")

    add = parser.add_argument_group("local checkpoint").add_argument
    add("--batch_size", type=whole(1), default=8, help="rollouts of a prompt generated together")
    add("--device", default="cuda", help="cuda, cuda:N or cpu")
    add("--precision", choices=["bf16", "fp16", "fp32"], default="bf16", help="of the checkpoint")


def _json_object(text: str) -> dict[str, Any]:
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


_json_object.__name__ = "JSON object"


def make_reasoner(arguments: argparse.Namespace) -> Reasoner:
    """The reasoner that the flags name.

    Raises:
        FileError: the instruction cannot be read.
        MissingReasonerError: it cannot be had.
    """
    instruction = INSTRUCTION
    if arguments.instruction:
        instruction = read_text(arguments.instruction).strip()
    common = {
        "instruction": instruction,
        "temperature": arguments.temperature,
        "max_tokens": arguments.max_tokens,
        "max_image_size": arguments.max_image_size,
    }
    if arguments.policy:
        from .local_checkpoint import Policy  # torch and transformers take seconds

        options = {name: getattr(arguments, name) for name in ("batch_size", "device", "precision")}
        return Policy(arguments.policy, **common, **options)
    from .openai_server import Server

    names = (
        *("base_url", "continuation", "request_options", "concurrency", "timeout"),
        *("max_retries", "requests_per_minute", "tokens_per_minute"),
    )
    options = {name: getattr(arguments, name) for name in names}
    return Server(arguments.model, **common, **options)


async def sample_all(
    arguments: argparse.Namespace,
    unit: str,
    items: Sequence[Item],
    work: Callable[[Sampler, Item], Awaitable[Result]],
) -> list[Result]:
    """``work`` on all items with a reasoner, a journal and a progress bar; says what it took."""
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


def _make_chains(arguments: argparse.Namespace) -> int:
    reader = RecordReader.of(arguments, arguments.questions)
    samples = load_questions(reader, progress=True)
    _say_left_out(reader)
    raw = reader.read()

    async def work(sampler: Sampler, sample: QuestionSample) -> list[Rollout | ItemError]:
        return await sample_chains(sampler, sample, arguments.samples)

    found = asyncio.run(sample_all(arguments, "questions", samples, work))
    records, lost, notes = [], [], Counter()
    pattern = arguments.step_pattern
    for sample, rollouts in zip(samples, found, strict=True):
        chains = []
        for rollout in rollouts:
            if isinstance(rollout, ItemError):
                lost.append({"record": sample.record, "why": str(rollout)})
            elif not rollout.text.strip() or holds_control_token(rollout.text):
                notes["left out: empty, or with control tokens in them"] += 1
            else:
                chains.append(rollout.text.strip())
                notes["cut off at --max_tokens"] += rollout.finish_reason == "length"
                notes["without steps or final answer"] += not usable(
                    rollout.text, arguments.step_pattern
                )
        if chains:
            records.append(candidates_record(raw[sample.record - 1], sample, chains))
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
    code = _finish(arguments.output, records, lost, f"{arguments.questions}: a chain")
    if arguments.meta_output and records:
        meta = meta_records(records, pattern)
        print(f"{len(meta) // 2} questions have a right and a wrong chain for the meta set")
        write_records(arguments.meta_output, meta)
    return code


def _say_left_out(reader: RecordReader) -> None:
    if note := reader.left_out():
        terminal.warning(note)


def _make_labels(arguments: argparse.Namespace) -> int:
    reader = RecordReader.of(arguments, arguments.candidates)
    samples = load_candidates(reader, progress=True)
    raw = reader.read()
    for sample in samples:
        for name in ("answer", "dataset"):  # optional for selection, needed here
            reader.text(raw[sample.record - 1], sample.record, name)
    samples = reader.usable(samples)
    _say_left_out(reader)
    print(describe_candidates(samples, arguments.step_pattern))
    prefixes = prefixes_of(samples, raw, arguments.chains_per_question, arguments.step_pattern)
    without = len(samples) - len({prefix.sample.record for prefix in prefixes})
    if without:
        print(f"{without} of {len(samples)} questions have no chain with steps and a final answer")
    if arguments.schedule == "dreamprm":
        schedule: Schedule = Published(arguments.max_rollouts)
    else:
        schedule = Adaptive(arguments.min_rollouts, arguments.max_rollouts, arguments.tolerance)

    async def work(sampler: Sampler, prefix: Prefix) -> tuple[int, int] | ItemError:
        return await label(sampler, prefix, schedule)

    found = asyncio.run(sample_all(arguments, "prefixes", prefixes, work))
    lost = [
        {"record": prefix.sample.record, "step": prefix.sid, "why": str(counts)}
        for prefix, counts in zip(prefixes, found, strict=True)
        if isinstance(counts, ItemError)
    ]
    known = [pair for pair in zip(prefixes, found, strict=True) if isinstance(pair[1], tuple)]
    labelled = [prefix for prefix, _ in known]
    records = train_records(labelled, [counts for _, counts in known], raw, arguments.estimate)
    if records:
        times = sum(record["times"] for record in records)
        mixed = sum(0 < record["score"] < record["times"] for record in records)
        print(
            f"{len(records)} prefixes with {times / len(records):.1f} rollouts on average; "
            f"{mixed} of them end right now and then, the others always or never"
        )
    return _finish(arguments.output, records, lost, f"{arguments.candidates}: a prefix")


def _check_counts(reader: RecordReader, record: dict, number: int) -> None:
    """Note what keeps a train record from being selected by its accuracy."""
    if "conversations" in record:
        reader.problem(number, "conversations", "holds labels, no accuracy to select by")
    elif record.get("times"):
        score, times = record.get("score"), record["times"]
        whole_numbers = type(score) is int and type(times) is int
        if not whole_numbers or not 0 <= score <= times:
            reader.problem(number, "score", "must be a whole number from 0 to 'times'")


def _select(arguments: argparse.Namespace) -> int:
    records = []
    for path in arguments.labelled:
        reader = RecordReader(
            path,
            allow_external_images=True,  # no image is opened
            allow_image_urls=True,
            skip_bad_records=arguments.skip_bad_records,
        )
        samples = reader.samples(reader.train_sample)
        raw = reader.read()
        for sample in samples:
            _check_counts(reader, raw[sample.record - 1], sample.record)
        samples = reader.usable(samples)
        _say_left_out(reader)
        records += [raw[sample.record - 1] for sample in samples]
    kept = select_prefixes(records, arguments.per_domain, arguments.seed)
    counts = Counter(record["dataset"] for record in records)
    for domain, count in Counter(record["dataset"] for record in kept).items():
        print(f"{printable(domain)}: {count} of {counts[domain]} prefixes")
    write_records(arguments.output, kept)
    return 0


def _finish(output: Path, records: list[dict], lost: list[dict], what: str) -> int:
    """Write the results and what is lost; returns the exit code."""
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
    run = {"chains": _make_chains, "label": _make_labels, "select": _select}[arguments.command]
    try:
        return run(arguments)
    except (DataError, FileError, MissingReasonerError) as error:
        terminal.error(error)
        return 2
    except ReasonerError as error:
        terminal.error(f"{error}\nthe same command goes on from the journal")
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the journal", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
