"""The derivative of the meta loss with respect to a domain's weight, on many records.

    s = -⟨∇ℓ(φ), u⟩ / n,   u = (∂U/∂g)ᵀ ∇L_meta(φ')

is what the hypergradient of a run adds up for the records of a batch
(:mod:`reweighting.bilevel.hypergradient`), taken through the same AdamW step φ' = U(φ, g), the last
one. Here the records are a sample of every domain and the meta chains a whole group. s > 0 means:
more weight lowers the meta loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ...bilevel.adamw_step import AdamWStep
from ...bilevel.batches import (
    CollateTrain,
    EncodedDataset,
    MetaBatch,
    TrainBatch,
    collate_meta,
    filled,
)
from ...bilevel.hypergradient import products_along
from ...reward_model.encoder import PromptEncoder
from ..engine import ReweightingEngine
from .sampling import DomainSample, MetaQuestions


def train_sample(
    domains: list[DomainSample], encoder: PromptEncoder, size: int
) -> list[TrainBatch]:
    """All sampled units of all domains in batches of ``size``, domain after domain."""
    units = [unit for domain in domains for unit in domain.units]
    batches = [
        list(range(len(units)))[start : start + size] for start in range(0, len(units), size)
    ]
    collate = CollateTrain([domain.name for domain in domains])
    return list(_loaded(units, encoder, collate, batches))


def meta_sample(group: list, encoder: PromptEncoder, size: int) -> Iterator[MetaBatch]:
    """The units of a group in batches of at most ``size`` chains."""
    size, end = max(size, *map(len, group)), len(group)

    def length(index: int) -> int:
        return size if index == end else len(group[index])  # the end closes the last batch

    yield from _loaded(group, encoder, collate_meta, filled(range(end + 1), size, length))


def _loaded(units: list, encoder: PromptEncoder, collate, batches: Iterable[list[int]]) -> Iterator:
    dataset = EncodedDataset(units, encoder)
    return (collate([dataset[index] for index in batch]) for batch in batches)


def direction(
    engine: ReweightingEngine, step: AdamWStep, batches: Iterator[MetaBatch], loss: str
) -> list[torch.Tensor]:
    """u of the mean meta loss over all units of ``batches``; it takes the memory of φ."""
    lower, upper = engine.lower, engine.upper
    upper.loss, units = loss, 0
    parameters = lower.trainable_parameters()
    for batch in batches:
        batch = batch.to(lower.device)
        count = len(batch.question.unique())
        loss_sum = upper.training_step_exec(batch) * (count * upper.loss_scale)
        upper.check_finite(loss_sum, batch.records)
        loss_sum.backward()
        units += count
    vector = []
    for number, parameter in enumerate(parameters):
        v = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        vector.append(step.pull_back(number, v.div_(units * upper.loss_scale)))
    step.finish(vector)
    lower.zero_grad()
    return vector


def measure(
    engine: ReweightingEngine,
    sample: list[TrainBatch],
    questions: MetaQuestions,
    encoder: PromptEncoder,
    size: int,
) -> torch.Tensor:
    """-⟨∇ℓ_j, u⟩ of every sampled record and meta group at the last lower step, ``[J, G]``.

    One vector u exists at a time: a group takes a backward pass of its meta chains and a
    forward-mode pass of all train records, and no gradient of a train batch is kept.
    """
    lower, columns = engine.lower, []
    for group in questions.groups:
        step = lower.last_step.again()
        vector = direction(engine, step, meta_sample(group, encoder, size), questions.loss)
        with torch.no_grad():
            products = products_along(lower, step, vector)
            found = [products(batch.to(lower.device)).losses.double().cpu() for batch in sample]
        columns.append(-torch.cat(found))
    return torch.stack(columns, dim=1)
