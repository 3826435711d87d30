"""The parts of a run, made from its arguments; main.py puts them together."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    get_cosine_schedule_with_warmup,
)

from ..bilevel.batches import (
    CollateTrain,
    MetaBatch,
    QuestionStream,
    Share,
    ShuffledStream,
    TrainBatch,
    batch_loader,
    collate_meta,
)
from ..bilevel.weighting import (
    DomainTable,
    InstanceNet,
    InstanceTable,
    Weighting,
    make_meta_optimizer,
)
from ..records.dataset import Data, Units, total_steps, train_units
from ..reward_model.encoder import PromptEncoder
from ..reward_model.model import RewardModel
from ..system.checkpoints import finding, opening, weight_tables
from ..system.processes import Processes
from ..system.terminal import printable, warning
from .progress import Progress


class SetupError(Exception):
    """The run cannot start: its model cannot be opened, or there is something to lose."""


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    kind: str,
    steps: int,
    warmup_share: float,
    step_size: int,
    gamma: float,
) -> torch.optim.lr_scheduler.LRScheduler:
    """``step``: cuts by ``gamma``; ``cosine_with_warmup``: up, then down to 0 over ``steps``."""
    if kind == "cosine_with_warmup":
        return get_cosine_schedule_with_warmup(optimizer, int(warmup_share * steps), steps)
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma)


def make_progress(arguments: argparse.Namespace, data: Data, state: dict | None) -> Progress:
    """How many steps the run has, and how many of them ``state`` has behind it."""
    units = len(train_units(arguments, data.train))
    cold_steps = arguments.cold_start_iterations
    total = cold_steps + total_steps(arguments, units)
    iteration = state["iteration"] if state else 0
    return Progress(total, cold_steps, arguments.unroll_steps, units, iteration)


def window(arguments: argparse.Namespace) -> int:
    """Number of lower steps whose records enter the hypergradient."""
    return arguments.unroll_steps if arguments.hypergradient_batches == "all" else 1


def train_batches(
    arguments: argparse.Namespace,
    data: Data,
    encoder: PromptEncoder,
    progress: Progress,
    processes: Processes | None = None,
) -> Iterator[TrainBatch]:
    """Endless micro-batches of the lower level, from where the run stands.

    A resumed run begins earlier by the steps that the next hypergradient still needs, see
    :meth:`~..bilevel.problems.Lower.replay`.
    """
    processes = processes or Processes()
    replayed = progress.since_upper_step if window(arguments) > 1 else 0
    units = train_units(arguments, data.train)
    stream = ShuffledStream(
        len(units),
        arguments.batch_size * processes.count,
        seed=2 * arguments.seed,
        start=(progress.iteration - replayed) * arguments.gradient_accumulation,
    )

    def losses(batch: list[int]) -> int:
        return sum(len(units.members(unit)) for unit in batch)

    collate = CollateTrain(data.domains)
    return _batches(arguments, units, encoder, collate, stream, processes, losses)


def meta_batches(
    arguments: argparse.Namespace,
    data: Data,
    encoder: PromptEncoder,
    progress: Progress,
    processes: Processes | None = None,
) -> Iterator[MetaBatch]:
    """Endless batches of the upper level, from where the run stands."""
    processes = processes or Processes()
    size = arguments.meta_batch_size * processes.count
    seed, start = 2 * arguments.seed + 1, progress.upper_steps
    stream: QuestionStream | ShuffledStream
    if arguments.meta_loss == "rank":
        stream = QuestionStream(data.meta, size, seed, start)
    else:
        stream = ShuffledStream(len(data.meta), size, seed, start)
    prefixes = data.meta.counts("lengths")

    def losses(batch: list) -> int:  # of chains, or of whole questions
        return int(prefixes[batch].sum()) if arguments.meta_target == "prefix" else len(batch)

    units = Units(data.meta)
    return _batches(arguments, units, encoder, collate_meta, stream, processes, losses)


def _batches(
    arguments: argparse.Namespace,
    units: Units,
    encoder: PromptEncoder,
    collate: Callable,
    stream: ShuffledStream | QuestionStream,
    processes: Processes,
    losses: Callable[[list], int],
) -> Iterator:
    """The batches of ``stream``, or the share of each that is this process's.

    Args:
        losses: how many losses a batch of units has.
    """
    pinned, workers = torch.device(arguments.device).type == "cuda", arguments.num_workers
    if processes.count == 1:
        return iter(batch_loader(units, encoder, collate, stream, workers, pinned))
    share = Share(stream, processes.rank, processes.count)
    loader = batch_loader(units, encoder, collate, share, workers, pinned)
    # iter() draws a random number, and must do so when one process does: weights are drawn next.
    return share.shares(iter(loader), losses)


def make_weighting(arguments: argparse.Namespace, data: Data, model: RewardModel) -> Weighting:
    """What ``--reweighting`` learns, at its start, on the device of the run."""
    return _weighting(arguments, data, model).to(arguments.device)


def _weighting(arguments: argparse.Namespace, data: Data, model: RewardModel) -> Weighting:
    if arguments.reweighting == "instance_table":
        rows = int(data.train.numbers.max())
        return InstanceTable(
            rows, arguments.weight_bounds, arguments.weight_activation, data.fixed_weights
        )
    if arguments.reweighting == "instance_net":
        return InstanceNet(
            arguments.net_features,
            model.base_model.config.get_text_config().hidden_size,
            arguments.net_width,
            arguments.net_layers,
            arguments.weight_bounds,
            arguments.detach_features,
            data.fixed_weights,
        )
    weighting = DomainTable(data.domains)
    if arguments.init_domain_weights is not None:
        path = weight_tables.domain_file(arguments.init_domain_weights)
        raw = weight_tables.load_domain_weights(path, data.domains)
        weighting.raw_weights.data.copy_(raw)
    return weighting


def check_start(
    arguments: argparse.Namespace, data: Data, resumed: Path | None = None
) -> list[str]:
    """Look at all that a run starts from, without loading it.

    Args:
        resumed: the checkpoint it goes on from, if it does.

    Returns:
        sentences about it for the user.

    Raises:
        CheckpointError: weights do not fit the architecture, or another file is damaged.
    """
    said = []
    start = resumed or arguments.reward_model
    source = finding.base_source(start)
    if Path(source).is_dir():  # of a hub name it would fetch all weights
        base = opening.open_base(source, meta=True)
        if arguments.score_head == "linear":
            vocabulary = base.config.get_text_config().vocab_size
            opening.load_head(start, vocabulary)
    if resumed is not None:
        return said
    if arguments.init_domain_weights is not None:
        path = weight_tables.domain_file(arguments.init_domain_weights)
        raw = weight_tables.load_domain_weights(path, data.domains)
        weighting = DomainTable(data.domains)
        weighting.raw_weights.data.copy_(raw)
        weights = ", ".join(
            f"{printable(name)} {weight:.3f}" for name, weight in weighting.named_weights().items()
        )
        order = "" if weight_tables.names_domains(path) else " (taken in order: it has no names)"
        said.append(f"domain weights start from {path}{order}: {weights}")
    elif (
        arguments.reweighting == "domain"
        and arguments.learn_weights
        and weight_tables.domain_file(arguments.reward_model).is_file()
    ):
        said.append(
            f"domain weights start at 1; --init_domain_weights {arguments.reward_model} starts "
            "from those beside the reward model"
        )
    return said


def make_encoder(arguments: argparse.Namespace, system: str) -> PromptEncoder:
    """The prompt encoder of ``--reward_model``.

    Args:
        system: the system turn of the data; "": that of the checkpoint, or our own.

    Raises:
        SetupError: there is no such model, or it is none that can be trained.
        CheckpointError: its file about the head is damaged.
    """
    name = f"--reward_model {arguments.reward_model}"
    source = finding.base_source(arguments.reward_model)
    head = opening.saved_head(arguments.reward_model)
    if arguments.score_head == "linear" and head.get("score_head") == "plus_minus":
        raise SetupError(
            f"{name}: was trained with --score_head plus_minus; a new linear head starts from "
            f"{source}"
        )
    options = {"score_head": arguments.score_head, "step_pattern": arguments.step_pattern}
    if system or "system" in head:
        options["system"] = system or head["system"]
    try:
        processor, note = opening.open_processor(source, arguments.processor)
    except finding.CheckpointError as error:
        flag = "--reward_model" if arguments.processor is None else "--processor"
        raise SetupError(f"{flag}: {error}") from error
    if note:
        warning(note)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SetupError(f"{name}: {reason}") from error
    if not hasattr(processor, "image_processor"):
        raise SetupError(f"{name}: does not read images")
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise SetupError(f"{name}: {config.model_type} makes no text from images and text")
    try:
        encoder = PromptEncoder(
            processor,
            max_image_size=arguments.max_image_size,
            min_pixels=arguments.min_pixels,
            max_pixels=arguments.max_pixels,
            cache_bytes=arguments.image_cache_mib * 2**20,
            **options,
        )
        encoder.check()
    except ValueError as error:
        raise SetupError(f"{name}: {error}") from error
    return encoder


def make_model(
    arguments: argparse.Namespace, encoder: PromptEncoder, state: dict | None
) -> RewardModel:
    """The reward model on the device of the run, at its start or as ``state`` has it."""
    source = arguments.reward_model
    if state is not None and not arguments.lora_rank:  # a checkpoint has its adapters merged
        source = finding.current(Path(arguments.weights_path))
    # Stochastic rounding lets bf16 weights move; AdamW proper needs fp32 masters.
    dtype = torch.bfloat16 if arguments.optimizer == "adamw_8bit" else torch.float32
    model = RewardModel.from_pretrained(
        source, dtype=dtype, device="cpu", fresh_head=True, encoder=encoder
    )
    model.set_attention("eager" if arguments.attn_implementation == "eager" else "sdpa")
    if arguments.lora_rank:
        model.add_adapters(arguments.lora_rank)
        if state is not None:
            model.load_state_dict(state["trained"], strict=False)
    if arguments.gradient_checkpointing:
        model.checkpoint_gradients()
    if arguments.compile:
        model.compile_layers()
    return model.to(arguments.device)


def make_optimizer(
    arguments: argparse.Namespace, model: RewardModel, cold: bool = False
) -> torch.optim.Optimizer:
    """``--optimizer`` over the trainable parameters, for the ``cold`` start or what follows."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"lr": arguments.lr, "weight_decay": arguments.weight_decay}
    if cold:
        options = {"lr": arguments.cold_start_lr, "weight_decay": arguments.cold_start_weight_decay}
    if arguments.optimizer == "adamw_8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(parameters, bf16_stochastic_round=True, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def lower_optimization(
    arguments: argparse.Namespace, model: RewardModel, progress: Progress
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and learning-rate schedule of the part of the run that comes next."""
    optimizer = make_optimizer(arguments, model, progress.cold)
    if progress.cold:
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    return optimizer, make_scheduler(
        optimizer,
        arguments.scheduler_type,
        progress.total - progress.cold_steps,
        arguments.warmup_share,
        arguments.scheduler_step_size,
        arguments.scheduler_gamma,
    )


def upper_optimization(
    arguments: argparse.Namespace, weighting: Weighting, progress: Progress
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimizer and learning-rate schedule of the upper level."""
    optimizer = make_meta_optimizer(weighting, arguments.meta_lr, arguments.meta_weight_decay)
    return optimizer, make_scheduler(
        optimizer,
        arguments.meta_scheduler_type,
        (progress.total - progress.cold_steps) // arguments.unroll_steps,
        arguments.warmup_share,
        arguments.meta_scheduler_step_size,
        arguments.meta_scheduler_gamma,
    )


def make_loss_scaler(arguments: argparse.Namespace) -> torch.amp.GradScaler:
    """Keeps fp16 gradients from vanishing; does nothing in other precisions."""
    device = torch.device(arguments.device).type
    return torch.amp.GradScaler(device, enabled=arguments.precision == "fp16")


def make_fixed_weights(arguments: argparse.Namespace, data: Data) -> torch.Tensor | None:
    """The weights ``[K]`` of ``--domain_weights``, in the order of the domains."""
    if data.fixed_weights is None:
        return None
    return torch.tensor(data.fixed_weights, device=arguments.device)
