"""How much memory a training run takes at its peak, estimated before it starts.

Parameters, gradients and the optimizer's state are counted from the model's configuration. What a
forward pass keeps for the backward pass is measured: a model of the same widths with one or two
layers runs on the CPU, on a batch of the run's own data, and the result is scaled up to all layers.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig

from ..bilevel.batches import MetaBatch, TrainBatch
from ..bilevel.hypergradient import without_checkpoints
from ..reward_model.encoder import PromptEncoder
from ..reward_model.model import RewardModel
from ..reward_model.prefix_tree import PackedTrees
from ..system.checkpoints.finding import base_source
from ..system.device import autocast

# What the CPU allocator holds beyond the tensors in use, as a share of them: freed blocks that no
# later tensor fits into. It was 7 % on a model of real widths, and an estimate should not be short.
ALLOCATOR_RESERVE = 0.1


def estimate_memory(
    arguments: argparse.Namespace,
    encoder: PromptEncoder,
    train_batch: TrainBatch,
    meta_batch: MetaBatch | None,
) -> float:
    """Bytes at the peak of training, without the CUDA context and the allocator's reserve.

    Args:
        arguments: the arguments of the run, see :func:`.parse_arguments`.
        encoder: the prompt encoder of the run.
        train_batch: a micro-batch as large as the largest of the run.
        meta_batch: the same for the upper level; None without reweighting.
    """
    train = train_batch.prompts
    config = load_config(arguments.reward_model)
    eight_bit = arguments.optimizer == "adamw_8bit"
    weight = 2 if eight_bit else 4  # bytes per parameter, and per number of its gradient
    moments = 2 if eight_bit else 8  # bytes per parameter

    def activations(packed: PackedTrees, checkpointed: bool) -> _Parts:
        def measure(shallow) -> int:
            model = _model(shallow, arguments, encoder, checkpointed)
            return saved_bytes(model, packed, arguments.precision)

        return _Parts(config, measure)

    trained = _Parts(config, lambda shallow: sum(_sizes(shallow, arguments, encoder, True)))
    every = _Parts(config, lambda shallow: sum(_sizes(shallow, arguments, encoder)))
    gradients = weight * trained.all
    static = weight * every.all + moments * trained.all

    def backward(packed: PackedTrees, already: float = 0, pulled_back: bool = False) -> float:
        """Bytes that a forward and backward pass adds at most.

        The activations are freed while the gradients are made.
        """
        kept = activations(packed, arguments.gradient_checkpointing)
        recomputed = 0.0
        if arguments.gradient_checkpointing:
            whole = activations(packed, False)
            recomputed = max(whole.layer, whole.vision_layer)
        if already:  # the gradients of earlier micro-batches
            return already + kept.all + recomputed
        if pulled_back:  # one gradient at a time; that of the vocabulary comes last
            largest = max(_sizes(config, arguments, encoder, True))
            return max(kept.all, kept.vision + weight * largest) + recomputed
        after_text = weight * (trained.rest + trained.text) + kept.vision
        return max(kept.all, after_text, gradients) + recomputed

    peak = static + backward(train, gradients if arguments.gradient_accumulation > 1 else 0)
    if meta_batch is None:
        return peak

    def scoring(packed: PackedTrees, along: bool) -> int:
        model = _model(_with_depth(config, 2, 2), arguments, encoder)  # more layers hold no more
        return _scoring_bytes(model, packed, arguments.precision, along)

    if arguments.hypergradient == "darts":
        # The meta gradient and the moved parameters take the place of the lower gradient.
        scored = scoring(train, along=False)
        upper = max(backward(meta_batch.prompts), 2 * gradients + scored)
        return max(peak, static + upper)
    # The stored lower gradient becomes u, parameter by parameter; clipping needs both at once.
    clipped = arguments.max_grad_norm > 0
    upper = gradients + backward(meta_batch.prompts, pulled_back=not clipped)
    told_apart = _told_apart(arguments, train_batch)
    if told_apart is not None:  # the parameters φ join u
        upper = max(upper, 2 * gradients + scoring(told_apart, along=True))
    return max(peak, static + upper)


def count_parameters(arguments: argparse.Namespace, encoder: PromptEncoder) -> int:
    """Parameters of the reward model, head included, counted without allocating them."""
    return sum(_sizes(load_config(arguments.reward_model), arguments, encoder))


def load_config(reward_model: str) -> PretrainedConfig:
    """The configuration of ``--reward_model``."""
    return AutoConfig.from_pretrained(base_source(reward_model))


def _model(
    config, arguments: argparse.Namespace, encoder: PromptEncoder, checkpointed: bool = False
) -> RewardModel:
    """A reward model of random parameters, set up as :func:`.build.make_model` does it."""
    dtype = torch.bfloat16 if arguments.optimizer == "adamw_8bit" else torch.float32
    model = RewardModel(AutoModelForImageTextToText.from_config(config, dtype=dtype), encoder)
    model.set_attention("eager" if arguments.attn_implementation == "eager" else "sdpa")
    if arguments.lora_rank:
        model.add_adapters(arguments.lora_rank)
    if checkpointed:
        model.checkpoint_gradients()
    return model


def _sizes(config, arguments, encoder: PromptEncoder, trained: bool = False) -> list[int]:
    """The size of every parameter, or of every trained one, in numbers."""
    with torch.device("meta"):
        parameters = _model(config, arguments, encoder).parameters()
    return [p.numel() for p in parameters if p.requires_grad or not trained]


def _depth_names(config) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """Where ``config`` keeps the number of layers of the language model and of the vision tower.

    Each is an object and the name of its attribute.
    """
    vision = config.vision_config
    return (
        (config.get_text_config(), "num_hidden_layers"),
        (vision, "depth" if hasattr(vision, "depth") else "num_hidden_layers"),
    )


class _Parts:
    """A quantity by parts: of the embeddings and head, of all text layers, of all vision layers.

    Args:
        config: the configuration of the whole model.
        measure: gives the quantity for a configuration of fewer layers.
    """

    def __init__(self, config, measure) -> None:
        text, vision = (getattr(holder, name) for holder, name in _depth_names(config))
        one, more_text, more_vision = (
            measure(_with_depth(config, *depths)) for depths in ((1, 1), (2, 1), (1, 2))
        )
        self.layer = more_text - one
        self.vision_layer = more_vision - one
        self.rest = one - self.layer - self.vision_layer
        self.text = text * self.layer
        self.vision = vision * self.vision_layer
        self.all = self.rest + self.text + self.vision


def _with_depth(config, text: int, vision: int):
    config = copy.deepcopy(config)
    for (holder, name), depth in zip(_depth_names(config), (text, vision), strict=True):
        setattr(holder, name, depth)
        if getattr(holder, "layer_types", None):
            holder.layer_types = (holder.layer_types * depth)[:depth]
    return config


def saved_bytes(model: RewardModel, packed: PackedTrees, precision: str) -> int:
    """Bytes that a forward pass of ``packed`` keeps for the backward pass, without parameters."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that held its own graph would never be freed

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, autocast("cpu", precision):
        log_odds = model(packed)  # keeps the graph alive, so that no address is used twice
    del log_odds
    return sum(kept.values())


def _told_apart(arguments: argparse.Namespace, batch: TrainBatch) -> PackedTrees | None:
    """The trees of ``batch`` that a forward-mode pass scores; None if a gradient is enough.

    The gradient stands for the largest group of trees that share a weight.
    """
    trees = batch.prompts.trees
    if arguments.reweighting == "instance_net" or arguments.hypergradient_batches == "all":
        return batch.prompts
    groups = batch.trees_by_weight(batch.records if arguments.by_instance else batch.domains)
    spared = max(
        groups.values(),
        key=lambda group: sum(trees[number].end - trees[number].start for number in group),
        default=[],
    )
    left = [number for number in range(len(trees)) if number not in spared]
    return batch.prompts.part(left) if left else None


@torch.no_grad()
def _scoring_bytes(model: RewardModel, packed: PackedTrees, precision: str, along: bool) -> int:
    """Bytes that scoring ``packed`` holds at most; ``along``: with forward-mode derivatives."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def score() -> None:
        if not along:
            with autocast("cpu", precision):
                model(packed)
            return
        with (
            without_checkpoints(model),
            forward_ad.dual_level(),
            autocast("cpu", precision),
            sdpa_kernel(SDPBackend.MATH),
        ):
            dual = {name: forward_ad.make_dual(value, value) for name, value in named.items()}
            functional_call(model, dual, (packed,))

    return allocated_bytes(score)[0]


def allocated_bytes(function: Callable[[], None]) -> tuple[int, int]:
    """Bytes of the tensors that ``function`` makes on the CPU: at the peak, and at the end."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # keeps the profiler from printing
    activities = [ProfilerActivity.CPU]
    # acc_events: torch 2.11 warns that events are lost between cycles, of which there is only one.
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    live = list(itertools.accumulate((event.nbytes() for event in events), initial=0))
    return max(live), live[-1]
