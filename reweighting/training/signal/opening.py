"""The two levels of a run, at its start or at its newest checkpoint, without starting it."""

from __future__ import annotations

import argparse

import torch
from betty.configs import Config

from ...bilevel.hypergradient import UNROLLED
from ...bilevel.problems import Lower, Upper
from ...records.dataset import Data
from ...reward_model.encoder import PromptEncoder
from .. import build
from ..engine import ReweightingEngine


def open_levels(
    arguments: argparse.Namespace, data: Data, encoder: PromptEncoder, state: dict | None
) -> ReweightingEngine:
    """The pair of problems of ``main.py``, whose lower level takes its steps with all weights 1.

    Args:
        state: of the checkpoint that is opened; None for the start.
    """
    a = arguments
    progress = build.make_progress(a, data, state)
    torch.manual_seed(a.seed)
    model = build.make_model(a, encoder, state)
    optimizer, lr_scheduler = build.lower_optimization(a, model, progress)
    lower = Lower(
        name="lower",
        config=Config(type=UNROLLED, unroll_steps=a.unroll_steps),
        module=model,
        batches=build.train_batches(a, data, encoder, progress),
        loss=a.loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        max_grad_norm=a.max_grad_norm,
        accumulation=a.gradient_accumulation,
        precision=a.precision,
        loss_scaler=build.make_loss_scaler(a),
        window=build.window(a),
        cold=True,  # all weights are 1
        compiled=a.compile,
    )
    weighting = build.make_weighting(a, data, model)
    optimizer, lr_scheduler = build.upper_optimization(a, weighting, progress)
    upper = Upper(
        name="upper",
        config=Config(),
        module=weighting,
        batches=iter(()),  # the meta chains are given to it group by group
        loss=a.meta_loss,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        precision=a.precision,
    )
    engine = ReweightingEngine(a, data, progress, lower, upper, state)
    engine.train()
    return engine


def advance(engine: ReweightingEngine, iteration: int) -> None:
    """Take lower steps, all weights 1, until ``iteration`` of them are done."""
    progress, lower = engine.progress, engine.lower
    while progress.iteration < iteration:
        lower.one_step_descent()
        progress.iteration += 1
        if progress.iteration == progress.cold_steps < iteration:
            later = build.lower_optimization(engine.arguments, lower.module, progress)
            lower.optimizer, lower.lr_scheduler = later
