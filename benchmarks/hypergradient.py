"""How well a hypergradient agrees with float64 autograd through the AdamW step.

    python -m benchmarks.hypergradient --draws 50

Every draw trains a copy of the tiny Qwen2-VL with a random head for three lower steps on random
demo records. The derivative of the meta loss with respect to the raw domain weights, through the
third step, is compared with the exact one: float64 gradients of every record, the AdamW update and
the meta loss written out and differentiated by autograd. The finite differences leave out the
optimizer; they are first scaled by the factor that fits best, so that only their direction counts.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
from betty.configs import Config, EngineConfig
from betty.engine import Engine
from betty.logging.logger_base import get_logger as betty_logger
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.bilevel.objectives import chain_losses, mean_log_odds, record_losses
from reweighting.bilevel.problems import Lower, Upper
from reweighting.bilevel.weighting import DomainTable, make_meta_optimizer
from reweighting.records.reader import RecordReader
from reweighting.reward_model import RewardModel
from reweighting.reward_model.prefix_tree import PackedTrees
from reweighting.system.terminal import quiet

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 3


class OnItsDevice(Engine):
    """Betty's engine, but the reward model stays on its device."""

    def configure_systems(self) -> dict:
        found = super().configure_systems()
        self.device = next(self.problems[-1].module.parameters()).device
        return found


def build(
    module,
    domains,
    train,
    meta,
    lr,
    meta_lr=0.05,
    unroll_steps=1,
    kind="unrolled",
    lower_class=Lower,
    weighting=None,
    meta_loss="mse",
    **options,
):
    """Lower and Upper in a plain Betty engine, set up as in training."""
    device = next(module.parameters()).device
    weighting = (weighting or DomainTable(domains)).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.01, fused=True)
    lower = lower_class(
        name="lower",
        config=Config(type=kind, unroll_steps=unroll_steps),
        module=module,
        optimizer=optimizer,
        batches=iter(train),
        **options,
    )
    upper = Upper(
        name="upper",
        config=Config(retain_graph=True),
        module=weighting,
        optimizer=make_meta_optimizer(weighting, meta_lr, weight_decay=0.0),
        batches=iter(meta),
        loss=meta_loss,
        precision=options.get("precision", "fp32"),
    )
    dependencies = {"u2l": {upper: [lower]}, "l2u": {lower: [upper]}}
    return OnItsDevice([upper, lower], EngineConfig(strategy="cpu"), dependencies)


def oracle(engine, state, batches, meta) -> torch.Tensor:
    """dL_meta/dα by float64 autograd on the CPU through one AdamW step, written out in full."""
    module = copy.deepcopy(engine.lower.module).cpu().double()
    module.load_state_dict({k: v.double() for k, v in state["module"].items()})
    names = [name for name, _ in module.named_parameters()]
    weighting = copy.deepcopy(engine.upper.module).cpu().double()
    weighting.load_state_dict({k: v.double() for k, v in state["weighting"].items()})
    g = weighted_gradient(module, weighting, batches)
    if engine.lower.max_grad_norm:
        norm = torch.sqrt(sum(x.square().sum() for x in g))
        g = [x * torch.clamp(engine.lower.max_grad_norm / norm, max=1) for x in g]
    group = state["optimizer"]["param_groups"][0]
    (beta1, beta2), rate = group["betas"], group["lr"]
    after = {}
    for index, (name, parameter) in enumerate(module.named_parameters()):
        moments = state["optimizer"]["state"].get(index)
        time = (float(moments["step"]) if moments else 0.0) + 1
        zero = torch.zeros_like(parameter)
        mean = (moments["exp_avg"].cpu().double() if moments else zero) * beta1 + (1 - beta1) * g[
            index
        ]
        square = moments["exp_avg_sq"].cpu().double() if moments else zero
        square = square * beta2 + (1 - beta2) * g[index].square()
        # Rows of the vocabulary that nothing reaches: sqrt has no derivative at 0, but g is 0 too.
        root = torch.where(square > 0, square, 1.0).sqrt() * (square > 0)
        change = (mean / (1 - beta1**time)) / (root / math.sqrt(1 - beta2**time) + group["eps"])
        after[name] = parameter.detach() * (1 - rate * group["weight_decay"]) - rate * change
    assert list(after) == names
    log_odds = functional_call(module, after, (as_double(meta.prompts),))
    aggregated = mean_log_odds(log_odds, meta.chain, len(meta.true_false))
    if engine.upper.loss == "rank":
        loss = ranking_loss(aggregated, meta)
    else:
        loss = chain_losses(aggregated, meta.true_false.double(), engine.upper.loss).mean()
    return flat(torch.autograd.grad(loss, weighting.parameters()))


def ranking_loss(aggregated, meta) -> torch.Tensor:
    """Mean over questions of the mean of -log σ(z_right - z_wrong) over their pairs, spelt out."""
    by_question = []
    for question in meta.question.unique():
        right, wrong = (
            aggregated[(meta.question == question) & (meta.true_false == label)] for label in (1, 0)
        )
        pairs = [-torch.log(torch.sigmoid(a - b)) for a in right for b in wrong]
        by_question.append(sum(pairs) / len(pairs))
    return sum(by_question) / len(by_question)


def weighted_gradient(module, weighting, batches) -> list[torch.Tensor]:
    """g = 1/B ∇_φ Σ_j w_j ℓ_j in float64, a function of the weighting's parameters."""
    parameters = list(module.parameters())
    count = sum(len(batch.records) for batch in batches)
    total, g = 0.0, [0.0] * len(parameters)
    for batch in batches:
        batch = replace(batch, accuracy=batch.accuracy.double())
        with contextlib.nullcontext() if weighting.detached else sdpa_kernel(SDPBackend.MATH):
            if weighting.needs == "hidden":
                log_odds, hidden = module(as_double(batch.prompts), True)
            else:
                log_odds, hidden = module(as_double(batch.prompts)), None
        features = None
        if weighting.needs is not None:
            features = weighting.features(batch, log_odds, hidden).double()
        losses = record_losses(log_odds, batch.accuracy, "bce")
        means = [losses[batch.record_of_prompt == record].mean()
                 for record in range(len(batch.records))]  # fmt: skip
        if not weighting.detached:
            total = total + (weighting(batch, features) * torch.stack(means)).sum() / count
            continue
        weights = weighting(batch, None if features is None else features.detach())
        for weight, loss in zip(weights, means, strict=True):
            gradients = torch.autograd.grad(
                loss, parameters, retain_graph=True, materialize_grads=True
            )  # a record without an image does not reach the vision tower
            g = [x + weight * gradient / count for x, gradient in zip(g, gradients, strict=True)]
    if weighting.detached:
        return g
    return list(torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True))


def flat(gradients) -> torch.Tensor:
    """All numbers of some gradients, dense or sparse, as one vector."""
    return torch.cat([(g.to_dense() if g.is_sparse else g).reshape(-1) for g in gradients])


def as_double(prompts):
    if not isinstance(prompts, PackedTrees):
        return prompts.double()
    prompts = copy.copy(prompts)
    prompts.images = [
        {name: v.double() if v.is_floating_point() else v for name, v in image.items()}
        for image in prompts.images
    ]
    return prompts


def hypergradient_and_oracle(engine, train, meta, steps: int):
    """Take ``steps`` lower steps and return our hypergradient at the last and the exact one."""
    lower, upper = engine.lower, engine.upper
    found = []
    upper.grad_callback = lambda: found.append(flat(p.grad for p in upper.module.parameters()))
    lower.batches, upper.batches = iter(train), iter(meta)
    for step in range(1, steps + 1):
        state = {
            "module": copy.deepcopy(lower.module.state_dict()),
            "optimizer": copy.deepcopy(lower.optimizer.state_dict()),
            "weighting": copy.deepcopy(upper.module.state_dict()),
        }
        upper.hypergradient_norm = 0.0
        engine.global_step = step
        engine.train_step()
    batches = train[-lower.accumulation :]
    return found[-1].cpu().double(), oracle(engine, state, batches, meta[-1])


class PublishedLower(Lower):
    """The lower level as Betty's own ``darts`` needs it: differentiable in the weights."""

    def training_step(self, batch):
        if not isinstance(batch, list):
            return super().training_step(batch)
        total = sum((self.upper.module(b) * self.record_losses(b)).sum() for b in batch)
        return total / sum(len(b.records) for b in batch)


# name: (records a step, precision of the parameters, options of the lower level, scale-free)
ROWS = {
    "unrolled, fp32, 1 record": (1, torch.float32, {}, False),
    "unrolled, fp32, 8 records": (8, torch.float32, {}, False),
    "unrolled, bf16 over fp32 weights, 1 record": (
        1, torch.float32, {"precision": "bf16"}, False,
    ),
    "unrolled, bf16 over fp32 weights, 8 records": (
        8, torch.float32, {"precision": "bf16"}, False,
    ),
    "darts (ours), fp32, 8 records": (8, torch.float32, {"kind": "finite_difference"}, True),
    "darts (published), bf16 weights, 8 records": (
        8, torch.bfloat16, {"kind": "darts", "lower_class": PublishedLower}, True,
    ),
}  # fmt: skip


def draw(row: str, seed: int, train, meta, base: RewardModel, domains) -> dict[str, float]:
    """One random draw: cosine, relative error and sign errors of one row."""
    records, dtype, options, scale_free = ROWS[row]
    rng = random.Random(seed)
    torch.manual_seed(seed)
    module = copy.deepcopy(base)
    nn.init.normal_(module.LN.weight)
    module.base_model.to(dtype)
    collate = CollateTrain(domains)
    pick = lambda data, count: [data[rng.randrange(len(data))] for _ in range(count)]  # noqa: E731
    batches = [collate(pick(train, records)) for _ in range(STEPS)]
    chains = [collate_meta(pick(meta, 4)) for _ in range(STEPS)]
    with torch.no_grad():  # log-odds of size 1: a saturated sigmoid has no gradient to compare
        module.LN.weight /= module(chains[0].prompts).abs().mean()
    engine = build(module, domains, [], [], lr=1e-4, **options)
    ours, exact = hypergradient_and_oracle(engine, batches, chains, STEPS)
    if scale_free:
        ours = ours * (ours @ exact) / (ours @ ours)
    clear = exact.abs() > 0.01 * exact.abs().max()
    return {
        "cosine": torch.cosine_similarity(ours, exact, dim=0, eps=0.0).item(),
        "error": ((ours - exact).norm() / exact.norm()).item(),
        "signs": int((ours.sign() != exact.sign())[clear].sum()),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=50, help="random draws a row (default: 50)")
    parser.add_argument("--rows", default="", help="only rows whose name contains this")
    arguments = parser.parse_args()
    quiet()
    base = RewardModel.from_pretrained(REPOSITORY / "weights" / "tiny-qwen2-vl", device="cpu")
    root = REPOSITORY / "data"

    def load(name: str, parse: str) -> EncodedDataset:
        reader = RecordReader(str(root / f"{name}.json"), str(root))
        samples = reader.samples(getattr(reader, parse))
        return EncodedDataset([[sample] for sample in samples], base.encoder)

    train, meta = load("train", "train_sample"), load("meta", "meta_sample")
    domains = list(dict.fromkeys(unit[0].domain for unit in train.units))
    betty_logger().setLevel(logging.WARNING)
    print("| hypergradient | cosine: median, least | error: median, two largest | wrong signs |")
    print("|---|---|---|---|")
    for row in (name for name in ROWS if arguments.rows in name):
        found = [draw(row, seed, train, meta, base, domains) for seed in range(arguments.draws)]
        column = lambda key: torch.tensor([f[key] for f in found], dtype=torch.float64)  # noqa: B023, E731
        cosine, error, signs = column("cosine"), column("error"), column("signs")
        print(
            f"| {row} | {cosine.median():.7f}, {cosine.min():.7f} | "
            f"{error.median():.1e}, {', '.join(f'{e:.1e}' for e in error.sort().values[-2:])} | "
            f"{int(signs.sum())} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
