"""``--dry_run``: what a run would do and need, without loading the model."""

from __future__ import annotations

import argparse
import random
from collections import Counter

from .batches import CollateTrain, EncodedDataset, MetaBatch, TrainBatch, collate_meta
from .memory import count_parameters, estimate_memory, load_config
from .prompts import PromptEncoder
from .reward_model import SEPARATE_FORWARDS, packs_trees
from .run_data import Data, total_steps, train_units
from .samples import describe_meta
from .terminal import printable

TOKENISED = 200  # records looked at for the token statistics
DRAWN = 1000  # batches among which the longest is taken


def print_plan(arguments: argparse.Namespace, data: Data, encoder: PromptEncoder) -> None:
    """Print records per domain, tokens per record, steps, parameters and estimated memory."""
    counts = Counter(sample.domain for sample in data.train)
    print("train records by domain")
    for domain in data.domains:
        print(f"  {printable(domain):<24} {counts[domain]:>8,}")
    print(f"  {'all':<24} {len(data.train):>8,}")

    train_tokens = _tokens(encoder, [s.prompts[-1:] for s in data.train], data.train)
    print(f"tokens a train record      {_summary(train_tokens)}")
    if data.meta:
        right = sum(sample.true_false for sample in data.meta)
        steps = [len(sample.prompts) for sample in data.meta]
        print(f"meta chains                {len(data.meta):,} ({right:,} right)")
        print(f"steps a meta chain         {_summary(steps)}")
        print(f"                           {describe_meta(data.meta)}")
        meta_tokens = _tokens(encoder, [s.prompts[-1:] for s in data.meta], data.meta)
        print(f"tokens a meta chain        {_summary(meta_tokens)}")
    units = train_units(arguments, data.train)
    if arguments.batch_by == "cot":
        print(f"train chains               {len(units):,}")
    total = total_steps(arguments, len(units))
    epochs = total * arguments.batch_size * arguments.gradient_accumulation / len(units)
    print(f"lower steps                {total:,} ({epochs:.2f} passes over the train records)")
    if data.meta:
        upper = total // arguments.unroll_steps
        passes = upper * arguments.meta_batch_size / len(data.meta)
        print(f"upper steps                {upper:,} ({passes:.2f} passes over the meta chains)")

    if not packs_trees(load_config(arguments.reward_model)):
        print(f"{arguments.reward_model}: {SEPARATE_FORWARDS}")
    print(f"parameters                 {count_parameters(arguments, encoder):,}")
    train, meta = largest_batches(arguments, data, encoder)
    memory = estimate_memory(arguments, encoder, train, meta)
    unit, name = (2**30, "GiB") if memory >= 2**30 else (2**20, "MiB")
    print(f"estimated peak memory      {memory / unit:.1f} {name} of tensors")


def largest_batches(
    arguments: argparse.Namespace, data: Data, encoder: PromptEncoder
) -> tuple[TrainBatch, MetaBatch | None]:
    """The longest of many batches drawn at random, of both levels (None without reweighting)."""
    units = train_units(arguments, data.train)
    train = CollateTrain(data.domains)(_longest(units, arguments.batch_size, encoder))
    if not arguments.learn_weights:
        return train, None
    units = [[sample] for sample in data.meta]
    return train, collate_meta(_longest(units, arguments.meta_batch_size, encoder))


def _longest(units, batch_size: int, encoder: PromptEncoder) -> list:
    rng = random.Random(0)
    dataset = EncodedDataset(units, encoder)
    chosen = rng.sample(range(len(units)), min(len(units), TOKENISED))
    items = {index: dataset[index] for index in chosen}
    # The prompts of a unit form a tree little larger than the longest of them.
    size = {index: max(map(len, prompts.token_ids)) for index, (_, prompts) in items.items()}
    batches = ([rng.choice(chosen) for _ in range(batch_size)] for _ in range(DRAWN))
    longest = max(batches, key=lambda batch: sum(size[index] for index in batch))
    return [items[index] for index in longest]


def _tokens(encoder: PromptEncoder, prompts: list[list[str]], samples) -> list[int]:
    """Lengths of the prompts of a random choice of samples."""
    chosen = random.Random(0).sample(range(len(samples)), min(len(samples), TOKENISED))
    return [
        len(ids)
        for index in chosen
        for ids in encoder.encode(samples[index].image, prompts[index]).token_ids
    ]


def _summary(values: list[int]) -> str:
    values = sorted(values)
    return f"median {values[len(values) // 2]:,}, longest {values[-1]:,}"
