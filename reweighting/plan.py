"""``--dry_run``: what a run would do and need, without loading the model."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from .prompts import PromptEncoder
from .reward_model import BASE_DIRECTORY, SEPARATE_FORWARDS, packs_trees
from .training import Data, total_steps, train_units

TOKENISED = 200  # records looked at for the token statistics


def print_plan(arguments: argparse.Namespace, data: Data, encoder: PromptEncoder) -> None:
    """Print records per domain, tokens per record, steps, parameters and estimated memory."""
    counts = Counter(sample.domain for sample in data.train)
    print("train records by domain")
    for domain in data.domains:
        print(f"  {domain:<24} {counts[domain]:>8,}")
    print(f"  {'all':<24} {len(data.train):>8,}")

    train_tokens = _tokens(encoder, [s.prompts[-1:] for s in data.train], data.train)
    print(f"tokens a train record      {_summary(train_tokens)}")
    if data.meta:
        right = sum(sample.true_false for sample in data.meta)
        steps = [len(sample.prompts) for sample in data.meta]
        print(f"meta chains                {len(data.meta):,} ({right:,} right)")
        print(f"steps a meta chain         {_summary(steps)}")
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

    config = _config(arguments.reward_model)
    if not packs_trees(config):
        print(f"{config.model_type}: {SEPARATE_FORWARDS}")
    parameters = count_parameters(config, arguments.score_head)
    print(f"parameters                 {parameters:,}")
    # The records of a chain form a tree little larger than the longest of them.
    longest = max(train_tokens) * arguments.batch_size
    if data.meta:
        longest = max(longest, max(meta_tokens) * arguments.meta_batch_size)
    memory = estimate_memory(config, parameters, longest, reweighting=arguments.learn_weights)
    unit, name = (2**30, "GiB") if memory >= 2**30 else (2**20, "MiB")
    print(f"estimated peak memory      {memory / unit:.1f} {name} (rough; tensors only)")


def count_parameters(config, score_head: str) -> int:
    """Parameters of the reward model, head included, counted without allocating them."""
    with torch.device("meta"):
        base = AutoModelForImageTextToText.from_config(config)
    head = config.get_text_config().vocab_size + 1 if score_head == "linear" else 0
    return sum(p.numel() for p in base.parameters()) + head


def estimate_memory(config, parameters: int, tokens: int, reweighting: bool) -> float:
    """Bytes at the peak of training; a rough estimate, not yet compared with a GPU's peak.

    Parameters, gradients and AdamW's two moments are fp32 (16 bytes a parameter). The upper step
    holds the meta gradient and, first the stored lower gradient, then the parameters before the
    step (4 more). Every layer keeps its activations for the backward pass, a dozen vectors of the
    hidden size and three of the MLP's, counted with 4 bytes a number.
    """
    text = config.get_text_config()
    static = parameters * (20 if reweighting else 16)
    per_token = text.num_hidden_layers * (12 * text.hidden_size + 3 * text.intermediate_size)
    return static + 4.0 * tokens * per_token


def _config(reward_model: str):
    source = Path(reward_model) / BASE_DIRECTORY
    return AutoConfig.from_pretrained(str(source) if source.is_dir() else reward_model)


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
