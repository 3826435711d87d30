"""Time and memory of a bilevel cycle: a straightforward loop and ours, side by side.

    python -m benchmarks.bilevel --shape mix
    python -m benchmarks.bilevel --shape vocabulary
    python -m benchmarks.bilevel --shape 2b --device cuda --precision bf16

A cycle is five lower steps and one upper step over a chain of five steps. The straightforward loop
does what the published code does: batch 1, one forward pass per prefix, the logits of the whole
vocabulary at every position, a graph kept for each prefix, and the hypergradient by a central
difference whose passes build graphs. Both run in one process, a cycle of each in turn, over the
same chains and with the same random weights; their scores are first checked to be equal. A ratio
is the median over pairs of neighbouring cycles, so that a machine whose speed varies changes it
little. Batches are prepared beforehand; the share of time spent waiting for them is measured in a
run on the demo data.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import itertools
import json
import logging
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from betty.logging.logger_base import get_logger as betty_logger
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

import main as program
from benchmarks.hypergradient import build
from reweighting.bilevel.batches import (
    CollateTrain,
    EncodedDataset,
    MetaBatch,
    TrainBatch,
    collate_meta,
)
from reweighting.records.samples import MetaSample, TrainSample
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.encoder import PromptEncoder
from reweighting.reward_model.patches import PatchProjection
from reweighting.system.device import autocast
from reweighting.training.memory import allocated_bytes

REPOSITORY = Path(__file__).resolve().parents[1]
TINY = REPOSITORY / "weights" / "tiny-qwen2-vl"
DATA = REPOSITORY / "data"
EIGHT = ["--batch_by", "cot", "--batch_size", "8", "--meta_batch_size", "8"]
UNROLL = 5
QUESTION_TOKENS = 90
STEP_TOKENS = (57, 56, 75, 94, 42)  # as the published chains have, at the median
DOMAINS = ["a", "b"]

# Changes to the tiny checkpoint's configuration. "mix" has the FLOP shares of Qwen2-VL-2B for text,
# vision and head; "vocabulary" its vocabulary; "2b" is its shape, "7b" that of Qwen2-VL-7B.
SHAPES = {
    "tiny": ({}, {}),
    "mix": (
        {"vocab_size": 5120, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8},
        {"embed_dim": 256, "hidden_size": 256, "depth": 5, "num_heads": 8},
    ),
    "vocabulary": (
        {"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 1024},
        {"embed_dim": 256, "hidden_size": 256, "depth": 4, "num_heads": 8},
    ),
    "2b": (
        {"vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960,
         "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2},
        {"embed_dim": 1280, "hidden_size": 1536, "depth": 32, "num_heads": 16},
    ),
    "7b": (
        {"vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944,
         "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4},
        {"embed_dim": 1280, "hidden_size": 3584, "depth": 32, "num_heads": 16},
    ),
}  # fmt: skip


def shaped(shape: str):
    """The configuration of the tiny checkpoint with the changes of ``shape``."""
    config = AutoConfig.from_pretrained(TINY)
    text, vision = SHAPES[shape]
    for part, changes in ((config.text_config, text), (config.vision_config, vision)):
        for name, value in changes.items():
            setattr(part, name, value)
    config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
    head = config.text_config.hidden_size // config.text_config.num_attention_heads
    sections = [head // 8, 3 * head // 16, 3 * head // 16]  # time, height, width, as in Qwen2-VL
    config.text_config.rope_parameters["mrope_section"] = sections
    return config


def make_model(
    shape: str,
    device: str,
    dtype: torch.dtype = torch.float32,
    encoder: PromptEncoder | None = None,
    kind: type[RewardModel] = RewardModel,
) -> RewardModel:
    """A reward model of the real architecture with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(shaped(shape), dtype=dtype)
        model = kind(base, encoder or PromptEncoder(AutoProcessor.from_pretrained(TINY)))
    if model.LN is not None:
        nn.init.normal_(model.LN.weight, std=0.02)
    return model


def chain_texts(count: int, tokenizer, steps: tuple[int, ...] = STEP_TOKENS, seed=0):
    """Images of 336 px, questions and lists of steps; ``steps`` holds the tokens of each step."""
    rng = random.Random(seed)
    words = ["the", "colour", "in", "Bc", "is", "red", "and", "so", "circle", "larger", "level"]

    def text(tokens: int) -> str:
        said = " ".join(rng.choice(words) for _ in range(tokens))
        ids = tokenizer(said)["input_ids"][:tokens]
        return tokenizer.decode(ids).strip()

    for _ in range(count):
        image = Image.effect_noise((336, 336), 60).convert("RGB")
        question = text(QUESTION_TOKENS)
        yield image, question, [f"Step {k}: {text(n - 4)}" for k, n in enumerate(steps, start=1)]


def make_chains(count: int, encoder: PromptEncoder, steps: tuple[int, ...] = STEP_TOKENS, seed=0):
    """Train and meta items of :func:`chain_texts`."""
    rng, train, meta = random.Random(seed), [], []
    texts = chain_texts(count, encoder.processor.tokenizer, steps, seed)
    for number, (image, question, response) in enumerate(texts):
        prompts = chain_prompts(question, "\n".join(response))
        train.append([
            TrainSample(number * len(steps) + k, [prompt], image, DOMAINS[number % 2],
                        [rng.random()], (number,))
            for k, prompt in enumerate(prompts)
        ])  # fmt: skip
        meta.append([MetaSample(number, prompts, image, bool(number % 2))])
    return EncodedDataset(train, encoder), EncodedDataset(meta, encoder)


class Straightforward:
    """The work of the published loop, written plainly: one forward pass per prompt."""

    def __init__(self, model: RewardModel, precision: str) -> None:
        self.base, self.head = model.base_model, model.LN
        self.base.set_attn_implementation("sdpa")
        for module in self.base.modules():
            if isinstance(module, PatchProjection):
                module.__class__ = nn.Conv3d  # as transformers has it
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-6, weight_decay=0.01)
        self.raw_weights = torch.zeros(len(DOMAINS), device=model.LN.weight.device).requires_grad_()
        self.meta_optimizer = torch.optim.AdamW([self.raw_weights], lr=0.01)
        self.precision = precision
        self.forwards = self.tokens = 0

    def log_odds(self, ids: list[int], image) -> torch.Tensor:
        """z of one prompt."""
        device = self.head.weight.device
        tokens = torch.tensor([ids], device=device)
        self.forwards += 1
        self.tokens += len(ids)
        with autocast(device, self.precision):
            logits = self.base(
                input_ids=tokens,
                pixel_values=image.inputs["pixel_values"].to(device),
                image_grid_thw=image.inputs["image_grid_thw"].to(device),
                mm_token_type_ids=(tokens == self.base.config.image_token_id).int(),
            ).logits
        return self.head(logits[:, -1].float())[0, 0]

    def loss(self, item, index: int) -> torch.Tensor:
        """Weighted loss of one record, a function of the raw weights."""
        unit, encoded = item
        z = self.log_odds(encoded.token_ids[index], encoded.images)
        accuracy = torch.tensor(unit[index].accuracies[0], device=z.device)
        positive = F.softplus(self.raw_weights)
        weight = (positive / positive.mean())[DOMAINS.index(unit[index].domain)]
        return weight * F.binary_cross_entropy_with_logits(z, accuracy)

    def lower_step(self, item, index: int) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(item, index)
        loss.backward()
        loss.item()  # the published loop prints it
        self.optimizer.step()

    def upper_step(self, chain, item, index: int) -> None:
        [sample], encoded = chain
        z = torch.stack([self.log_odds(ids, encoded.images) for ids in encoded.token_ids])
        loss = (torch.sigmoid(z.mean()) - float(sample.true_false)).square()
        vector = torch.autograd.grad(loss, self.parameters)
        radius = 0.01 / torch.cat([v.reshape(-1) for v in vector]).norm()
        slopes = []
        for sign in (1, -2):
            with torch.no_grad():
                for parameter, v in zip(self.parameters, vector, strict=True):
                    parameter += sign * radius * v
            slopes.append(torch.autograd.grad(self.loss(item, index), self.raw_weights)[0])
        with torch.no_grad():
            for parameter, v in zip(self.parameters, vector, strict=True):
                parameter += radius * v
        self.raw_weights.grad = -(slopes[0] - slopes[1]) / (2 * radius)
        self.meta_optimizer.step()


class Ours:
    """The trainer's two problems under Betty's engine, batches prepared beforehand."""

    def __init__(self, model: RewardModel, precision: str) -> None:
        self.engine = build(model, DOMAINS, [], [], lr=1e-6, unroll_steps=UNROLL,
                            precision=precision)  # fmt: skip
        self.step = 0
        self.lower_seconds: list[float] = []
        device = model.LN.weight.device
        one_step = self.engine.lower.one_step_descent

        def timed(batch=None):
            started = now(device)
            found = one_step(batch)
            self.lower_seconds.append(now(device) - started)
            return found

        self.engine.lower.one_step_descent = timed

    def cycle(self, train: Iterator[TrainBatch], meta: Iterator[MetaBatch]) -> None:
        self.engine.lower.batches, self.engine.upper.batches = train, meta
        for _ in range(UNROLL):
            self.step += 1
            self.engine.global_step = self.step
            self.engine.train_step()


def now(device) -> float:
    """Seconds, after the device has finished; on a CPU, the process's CPU time."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def measure(arguments) -> dict[str, list[dict[str, float]]]:
    """Seconds of a lower step, an upper step and a cycle, by cycle: both loops, and trees."""
    device, precision = arguments.device, arguments.precision
    model = make_model(arguments.shape, device)
    train, meta = make_chains(16, model.encoder)
    collate = CollateTrain(DOMAINS)
    chains = [train[i] for i in range(len(train))]
    records = [(i, k) for i in range(len(chains)) for k in range(len(STEP_TOKENS))]
    random.Random(1).shuffle(records)
    single = {
        (i, k): collate([([chains[i][0][k]], model.encoder.encode(chains[i][0][k].images,
                                                                 chains[i][0][k].prompts))])
        for i, k in records
    }  # fmt: skip
    metas = [meta[i] for i in range(len(meta))]

    plain = Straightforward(copy.deepcopy(model), precision)
    ours = Ours(model, precision)
    with torch.no_grad():
        i, k = records[0]
        alone = plain.log_odds(chains[i][1].token_ids[k], chains[i][1].images)
        with autocast(device, precision):
            packed = ours.engine.lower.module(single[records[0]].prompts.to(device))[0]
    difference = abs(float(alone - packed))
    print(f"largest difference of a score: {difference:.1e}", flush=True)
    assert difference < (1e-4 if precision == "fp32" else 5e-2)

    seconds = {"plain": [], "ours": [], "trees": []}
    drawn, chosen = itertools.cycle(records), itertools.cycle(metas)
    groups = itertools.cycle([chains[:8], chains[8:]])
    work = {}
    for _ in range(arguments.repetitions + 1):
        batch = [next(drawn) for _ in range(UNROLL)]
        chain = next(chosen)
        plain.forwards = plain.tokens = 0
        times = []
        started = now(device)
        for i, k in batch:
            begin = now(device)
            plain.lower_step(chains[i], k)
            times.append(now(device) - begin)
        begin = now(device)
        plain.upper_step(chain, chains[i], k)
        upper = now(device) - begin
        cycle = now(device) - started
        seconds["plain"].append({"lower": sum(times) / UNROLL, "upper": upper, "cycle": cycle})
        one_by_one = [single[r] for r in batch]
        seconds["ours"].append(run_cycle(ours, device, one_by_one, [collate_meta([chain])]))
        eight, chains_of_eight = collate(next(groups)), collate_meta(metas[:8])
        seconds["trees"].append(run_cycle(ours, device, [eight] * UNROLL, [chains_of_eight]))
        work["plain"] = (plain.forwards, plain.tokens)
        tokens = sum(len(single[r].prompts.input_ids) for r in batch)
        work["ours"] = (UNROLL + 1, tokens + len(collate_meta([chain]).prompts.input_ids))
    for name, (forwards, tokens) in work.items():
        print(f"{name}: {forwards} forward passes and {tokens:,} tokens a cycle", flush=True)
    return {name: cycles[1:] for name, cycles in seconds.items()}  # the first one warms up


def run_cycle(loop: Ours, device, train, meta) -> dict[str, float]:
    """Seconds of a lower step, of the upper step and of the cycle."""
    loop.lower_seconds.clear()
    started = now(device)
    loop.cycle(iter(train), iter(meta))
    total, lower = now(device) - started, sum(loop.lower_seconds)
    return {"lower": lower / UNROLL, "upper": total - lower, "cycle": total}


def growth(arguments) -> list[tuple[int, int, float]]:
    """Seconds of an upper step for chains of 2 to 10 steps with the same text in all."""
    model = make_model(arguments.shape, arguments.device)
    total, found = sum(STEP_TOKENS), []
    ours = Ours(model, arguments.precision)
    train, _ = make_chains(1, model.encoder)
    record = CollateTrain(DOMAINS)([train[0]])
    for steps in (2, 5, 10):
        _, meta = make_chains(1, model.encoder, (total // steps,) * steps)
        batch, times = collate_meta([meta[0]]), []
        for _ in range(arguments.repetitions + 1):
            cycle = run_cycle(ours, arguments.device, [record] * UNROLL, [batch])
            times.append(cycle["upper"])
        found.append((steps, len(batch.prompts.input_ids), statistics.median(times[1:])))
    return found


def memory(arguments, loop: str) -> tuple[int, int]:
    """Peak after lower steps, and what an upper step adds, in bytes."""
    device = arguments.device
    model = make_model(arguments.shape, device)
    train, meta = make_chains(2, model.encoder)
    single = [([train[0][0][-1]], model.encoder.encode(train[0][0][-1].images,
                                                       train[0][0][-1].prompts))]  # fmt: skip
    batch = CollateTrain(DOMAINS)(single)
    if loop == "plain":
        plain = Straightforward(model, arguments.precision)

        def lower_step() -> None:
            plain.lower_step(train[0], -1)

        def upper_step() -> None:
            plain.upper_step(meta[1], train[0], -1)
    else:
        ours = Ours(model, arguments.precision)
        ours.engine.lower.batches = itertools.repeat(batch)
        lower_step = ours.engine.lower.one_step_descent
        chain = itertools.repeat(collate_meta([meta[1]]))

        def upper_step() -> None:  # with the lower steps before it
            ours.cycle(itertools.repeat(batch), chain)

    lower_step()
    lower, left = allocated(device, lower_step)
    upper, _ = allocated(device, upper_step)
    parameters = sum(p.nbytes for p in model.parameters())
    moments = 2 * parameters
    return parameters + moments + lower, max(0, left + upper - lower)


def allocated(device, function: Callable[[], None]) -> tuple[int, int]:
    """Bytes of tensors that ``function`` allocates: their peak, and what is left afterwards."""
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        most, now = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        return most - before, now - before
    return allocated_bytes(function)


def in_a_process(function: Callable, *arguments):
    """``function(*arguments)`` in a fresh process; raises what is raised there, or if it dies."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def apart(function: Callable, arguments, *more):
    """``function(arguments, *more)`` in a process of its own, with no memory taken by another."""
    return in_a_process(_prepared, function, arguments, *more)


def _prepared(function: Callable, arguments, *more):
    torch.set_num_threads(arguments.threads)
    betty_logger().setLevel(logging.WARNING)
    return function(arguments, *more)


def demo_run(folder: str, device: str, precision: str, *flags: str) -> list[str]:
    """Arguments of a run on the demo data with the model in ``folder``."""
    return [
        *("--train_json_file", str(DATA / "train.json"), "--image_root", str(DATA)),
        *("--meta_json_file", str(DATA / "meta.json"), "--reward_model", folder),
        *("--weights_path", str(Path(folder) / "run"), "--device", device),
        *("--precision", precision, *flags),
    ]  # fmt: skip


def waiting(arguments) -> float:
    """Share of its time that a run waits for its two data workers."""
    flags = [*EIGHT, "--num_workers", "2", "--iteration_num", str(arguments.waiting_steps)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(arguments.shape, "cpu").save_pretrained(folder)
        with contextlib.redirect_stdout(io.StringIO()):  # its table of weights
            program.main(demo_run(folder, arguments.device, arguments.precision, *flags))
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])["waiting"]


def utilisation(arguments) -> str:
    """Model FLOP utilisation of one of our lower steps, and its time at the device's peak."""
    model = make_model(arguments.shape, arguments.device)
    train, _ = make_chains(1, model.encoder)
    ours = Ours(model, arguments.precision)
    ours.engine.lower.batches = itertools.repeat(CollateTrain(DOMAINS)([train[0]]))
    with FlopCounterMode(display=False) as counter:
        ours.engine.lower.one_step_descent()
    now(arguments.device)
    started = now(arguments.device)
    ours.engine.lower.one_step_descent()
    seconds = now(arguments.device) - started
    flops = counter.get_total_flops()
    bound = flops / (arguments.peak_tflops * 1e12)
    return (
        f"lower step of one chain as a tree: {flops / 1e12:.2f} TFLOP, {seconds * 1e3:.1f} ms; "
        f"{bound * 1e3:.1f} ms at {arguments.peak_tflops:g} TFLOP/s: utilisation "
        f"{100 * bound / seconds:.0f} %"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shape", choices=list(SHAPES), default="mix")
    add("--device", default="cpu")
    add("--precision", choices=["fp32", "bf16"], default="fp32")
    add("--repetitions", type=int, default=3, help="cycles measured (default: 3)")
    add("--threads", type=int, default=1, help="on the CPU (default: 1)")
    add("--waiting_steps", type=int, default=30, help="lower steps for it (default: 30)")
    add("--peak_tflops", type=float, help="of the device: also print the utilisation")
    arguments = parser.parse_args()

    count = sum(p.numel() for p in make_model(arguments.shape, "meta").parameters())
    print(f"shape {arguments.shape}: {count / 1e6:.1f} M parameters, {arguments.device}, "
          f"{arguments.precision}, torch {torch.__version__}", flush=True)  # fmt: skip
    found = apart(measure, arguments)
    median = statistics.median
    print("\n| seconds (median) | straightforward | ours | ratio |")
    print("|---|---|---|---|")
    for name in ("lower", "upper", "cycle"):
        plain, ours = ([cycle[name] for cycle in found[loop]] for loop in ("plain", "ours"))
        ratio = median(a / b for a, b in zip(plain, ours, strict=True))
        print(f"| {name} | {median(plain):.3f} | {median(ours):.3f} | {ratio:.2f} |")
    lower, upper = (median(c[name] for c in found["trees"]) for name in ("lower", "upper"))
    records = 8 * len(STEP_TOKENS)
    ratio = median(
        (UNROLL * plain["lower"] + plain["upper"])
        / (UNROLL * trees["lower"] / records + trees["upper"] / 8)
        for plain, trees in zip(found["plain"], found["trees"], strict=True)
    )
    print(f"| trees, 8 chains / 8 chains: lower {lower:.3f}, upper {upper:.3f}; "
          f"per train and meta record | | | {ratio:.2f} |")  # fmt: skip

    print("\n| steps of the meta chain | tokens of its tree | upper step, seconds |")
    print("|---|---|---|")
    for steps, tokens, seconds in apart(growth, arguments):
        print(f"| {steps} | {tokens} | {seconds:.3f} |")

    print("\n| peak memory, GiB | after lower steps | added by the upper step |")
    print("|---|---|---|")
    for loop in ("plain", "ours"):
        before, added = apart(memory, arguments, loop)
        print(f"| {loop} | {before / 2**30:.2f} | {added / 2**30:.3f} |", flush=True)
    share = apart(waiting, arguments)
    print(f"\nwaiting for data, 8 chains a step, 2 workers: {100 * share:.1f} % of the time")
    if arguments.peak_tflops:
        print(apart(utilisation, arguments))
    return 0


if __name__ == "__main__":
    sys.exit(main())
