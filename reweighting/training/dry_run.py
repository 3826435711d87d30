"""``--dry_run``: what a run would do and need, without loading the model."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from heapq import nlargest
from itertools import islice

import numpy as np
import torch
from transformers import PretrainedConfig

from ..bilevel.batches import (
    CollateTrain,
    EncodedDataset,
    MetaBatch,
    TrainBatch,
    collate_meta,
    filled,
)
from ..bilevel.weighting import DomainTable, InstanceNet, InstanceTable
from ..records.chains import questions_of
from ..records.dataset import Data, Units, step_size, total_steps, train_units
from ..records.samples import MetaSample, TrainSample
from ..reward_model.encoder import PromptEncoder
from ..reward_model.model import SEPARATE_FORWARDS, must_fit
from ..reward_model.network import packs_trees
from ..reward_model.prefix_tree import PackedTrees, pack
from ..system.processes import BUCKET
from ..system.terminal import printable, warning
from .build import make_scheduler
from .memory import ALLOCATOR_RESERVE, count_parameters, estimate_memory, load_config
from .reports import peak_memory_gib
from .statistics import base_rates

TOKENISED = 200  # records that are tokenised for the statistics
DRAWN = 1000  # random batches, of which the largest is taken
PACKED = 20  # of them, the largest by the sum of their records
LEAST_REACH = 1.1  # a weight that cannot rise from 1 to this hardly tells domains apart


def advice(arguments: argparse.Namespace, data: Data) -> list[str]:
    """Warnings about flags that keep the weights from being learned, a sentence each."""
    a, found = arguments, []
    if not a.learn_weights:
        return found
    # The records of a chain share a domain, but each has an instance weight of its own.
    one_weight = a.batch_by == "record" or not a.by_instance
    one_step = a.unroll_steps == 1 or a.hypergradient_batches == "last"
    exact = a.hypergradient == "unrolled" and a.detach_features
    one_record = step_size(a) == 1
    if a.max_grad_norm > 0 and one_record and one_weight and one_step and exact:
        found.append(
            f"--max_grad_norm {a.max_grad_norm:g} with one {a.batch_by} a step: where it clips, "
            "only the direction of the gradient counts, whatever the weight is, and nothing is "
            "learned about it; take a larger --batch_size or --gradient_accumulation, or "
            "--max_grad_norm 0"
        )
    start, reach, high = weight_reach(a, data)
    if reach < min(LEAST_REACH * start, 0.99 * high):
        found.append(
            f"--meta_lr {a.meta_lr:g} is too small for so few upper steps "
            f"({upper_steps(a, data):,}): no weight can move from {start:g} much beyond "
            f"{reach:.3g}; take more steps, a larger --meta_lr or a smaller --unroll_steps"
        )
    return found


def upper_steps(arguments: argparse.Namespace, data: Data) -> int:
    """The number of upper steps of the run."""
    units = len(train_units(arguments, data.train))
    return total_steps(arguments, units) // arguments.unroll_steps


def weight_reach(arguments: argparse.Namespace, data: Data) -> tuple[float, float, float]:
    """Where a weight starts, where it ends if all upper steps push it up, and its upper bound.

    While the gradients agree, a step of AdamW moves a parameter by about the learning rate, which
    the schedule changes. An entry of the instance table moves only in steps that draw its record.
    """
    a, steps = arguments, upper_steps(arguments, data)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=a.meta_lr)
    scheduler = make_scheduler(
        optimizer,
        a.meta_scheduler_type,
        steps,
        a.warmup_share,
        a.meta_scheduler_step_size,
        a.meta_scheduler_gamma,
    )
    distance = 0.0
    for _ in range(steps):
        distance += float(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    if a.reweighting == "instance_table":
        weighting = InstanceTable(1, a.weight_bounds, a.weight_activation)
        window = a.unroll_steps if a.hypergradient_batches == "all" else 1
        drawn = step_size(a) * window
        distance *= min(1.0, drawn / len(train_units(a, data.train)))
    elif a.reweighting == "instance_net":
        weighting = InstanceNet(bounds=a.weight_bounds)
    else:
        weighting = DomainTable(data.domains)
    return weighting.start, weighting.reach(distance), weighting.high


def print_plan(arguments: argparse.Namespace, data: Data, encoder: PromptEncoder) -> None:
    """Print records per domain, tokens per record, steps, parameters and estimated memory."""
    process = peak_memory_gib(torch.device("cpu"))  # before anything is measured
    counts = data.train.named("domain")
    print("train records by domain")
    for domain in data.domains:
        print(f"  {printable(domain):<24} {counts[domain]:>8,}")
    print(f"  {'all':<24} {len(data.train):>8,}")

    train_tokens = _tokens(encoder, data.train)
    print(f"tokens a train record      {_summary(train_tokens)}")
    meta_tokens: list[int] = []
    if data.meta:
        right = int(data.meta.truth.sum())
        print(f"meta chains                {len(data.meta):,} ({right:,} right)")
        if arguments.meta_loss == "rank":
            questions = len(questions_of(data.meta))
            print(f"meta questions             {questions:,} with right and wrong chains")
        print(f"steps of meta chains       {data.meta.description()}")
        meta_tokens = _tokens(encoder, data.meta)
        print(f"tokens a meta chain        {_summary(meta_tokens)}")
    config = load_config(arguments.reward_model)
    for name, tokens in (("train records", train_tokens), ("meta chains", meta_tokens)):
        _warn_of_long(name, tokens, config)
    units = train_units(arguments, data.train)
    if arguments.batch_by == "cot":
        print(f"train chains               {len(units):,}")
    total = total_steps(arguments, len(units))
    epochs = total * step_size(arguments) / len(units)
    if arguments.processes > 1:
        print(_shares(arguments))
    print(f"lower steps                {total:,} ({epochs:.2f} passes over the train records)")
    if data.meta:
        upper = upper_steps(arguments, data)
        passes = upper * arguments.meta_batch_size * arguments.processes / len(data.meta)
        print(f"upper steps                {upper:,} ({passes:.2f} passes over the meta chains)")
    if arguments.learn_weights:
        start, reach, _ = weight_reach(arguments, data)
        print(
            f"reach of a weight          from {start:g} to about {reach:.2f} at --meta_lr "
            f"{arguments.meta_lr:g} if all upper steps push it one way"
        )
        if told := base_rates(data, arguments.meta_loss):
            print(f"base rates                 {told}")
        print(
            "before the run             python -m reweighting.training.signal, with these flags, "
            "measures what the meta loss says of each domain"
        )

    if not packs_trees(config):
        print(f"{arguments.reward_model}: {SEPARATE_FORWARDS}")
    largest = largest_batches(arguments, data, encoder)
    with must_fit(arguments.reward_model, Exception):
        print(f"parameters                 {count_parameters(arguments, encoder):,}")
        memory = max(estimate_memory(arguments, encoder, *batches) for batches in largest)
        if arguments.processes > 1:
            memory += 4 * BUCKET
    of_each = ", of each process" if arguments.processes > 1 else ""
    print(f"estimated peak memory      {_peak(arguments, memory, process)}{of_each}")


def _shares(arguments: argparse.Namespace) -> str:
    """One line about the batches of all processes together."""
    a = arguments
    meta = f" and {a.meta_batch_size * a.processes:,} meta chains" if a.learn_weights else ""
    counted = "records" if a.batch_by == "record" else "chains"
    return (
        f"batches                    {a.batch_size * a.processes:,} train {counted}{meta}, shared "
        f"by {a.processes} processes"
    )


def _peak(arguments: argparse.Namespace, tensors: float, process: float) -> str:
    """What the progress line will show: memory of the process, or tensors allocated on a GPU."""
    if torch.device(arguments.device).type == "cuda":
        return f"{_size(tensors)} of tensors; CUDA's context and reserve come on top"
    held = (1 + ALLOCATOR_RESERVE) * tensors
    whole = process * 2**30 + held
    return f"{_size(whole)}: {_size(held)} for tensors, the rest for programs and data"


def _size(memory: float) -> str:
    unit, name = (2**30, "GiB") if memory >= 2**30 else (2**20, "MiB")
    return f"{memory / unit:.1f} {name}"


def largest_batches(
    arguments: argparse.Namespace, data: Data, encoder: PromptEncoder
) -> list[tuple[TrainBatch, MetaBatch | None]]:
    """The largest of many random batches, for each level (upper: None without reweighting).

    Largest is what has the most tokens. Where records differ in their number of images, a batch of
    fewer tokens may take more memory, in the vision tower: that with the most pixels comes second.
    """
    counts = {int(count) for records in (data.train, data.meta)
              for count in np.unique(records.counts("images"))}  # fmt: skip
    sizes = [_tokens_of, _pixels_of] if len(counts) > 1 else [_tokens_of]
    return [_largest_batch(arguments, data, encoder, size) for size in sizes]


def _tokens_of(packed: PackedTrees) -> int:
    return len(packed.input_ids)


def _pixels_of(packed: PackedTrees) -> int:
    return sum(image["pixel_values"].numel() for image in packed.images if image)


def _largest_batch(
    arguments: argparse.Namespace,
    data: Data,
    encoder: PromptEncoder,
    size_of: Callable[[PackedTrees], int],
) -> tuple[TrainBatch, MetaBatch | None]:
    units = train_units(arguments, data.train)
    train = CollateTrain(data.domains)(_largest(units, arguments.batch_size, encoder, size_of))
    if not arguments.learn_weights:
        return train, None
    room = arguments.meta_batch_size
    if arguments.meta_loss != "rank":
        return train, collate_meta(_largest(Units(data.meta), room, encoder, size_of))
    questions = Units(data.meta, [question[:room] for question in questions_of(data.meta)])
    return train, collate_meta(_largest(questions, room, encoder, size_of, len))


def _largest(
    units: Sequence[list],
    batch_size: int,
    encoder: PromptEncoder,
    size_of: Callable[[PackedTrees], int],
    counted: Callable[[list], int] = lambda unit: 1,
) -> list:
    """The items of a batch whose prefix trees have the largest size together.

    Args:
        counted: how much of ``batch_size`` a unit takes.
    """
    rng = random.Random(0)
    dataset = EncodedDataset(units, encoder)
    chosen = rng.sample(range(len(units)), min(len(units), TOKENISED))
    items = {index: dataset[index] for index in chosen}
    size = {index: size_of(pack([prompts])) for index, (_, prompts) in items.items()}
    drawn = iter(lambda: rng.choice(chosen), None)
    batches = islice(filled(drawn, batch_size, lambda index: counted(units[index])), DRAWN)
    # What records share is computed once, so the sum only says which batches are worth packing.
    promising = nlargest(PACKED, batches, lambda batch: sum(size[index] for index in batch))
    found = [[items[index] for index in batch] for batch in promising]
    return max(found, key=lambda batch: size_of(pack([prompts for _, prompts in batch])))


def _tokens(
    encoder: PromptEncoder, samples: Sequence[TrainSample] | Sequence[MetaSample]
) -> list[int]:
    """Lengths, in tokens, of the longest prompts of some ``samples`` drawn at random."""
    chosen = random.Random(0).sample(range(len(samples)), min(len(samples), TOKENISED))
    return [
        len(ids)
        for index in chosen
        for ids in encoder.encode(samples[index].images, samples[index].prompts[-1:]).token_ids
    ]


def _warn_of_long(name: str, lengths: list[int], config: PretrainedConfig) -> None:
    """Warn if prompts have more tokens (``lengths``) than the model has positions."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    long = 0 if limit is None else sum(length > limit for length in lengths)
    if long:
        warning(
            f"{long:,} of the {len(lengths):,} {name} looked at have more tokens than the "
            f"{limit:,} positions of the model (max_position_embeddings): their scores mean little"
        )


def _summary(values: list[int]) -> str:
    values = sorted(values)
    return f"median {values[len(values) // 2]:,}, longest {values[-1]:,}"
