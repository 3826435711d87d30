"""Teach a copy of the tiny Qwen2-VL to answer in steps, mistakes included: a reasoner.

    python weights/teach_reasoner.py

It goes on from `tiny-qwen2-vl/`, which looks things up and judges but was never asked for a chain,
and imitates the simulated reasoner of the demo world (`data/world/simulated_reasoner.py`, mixed
profile), as a whole answer and as the continuation of a given beginning, in the words of
`reweighting/rollouts/reasoner.py`. Sampled at temperature 1 it then makes mistakes about as often
as the one it imitates; it cannot know which questions have a trap.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from data.world.scenes import draw_scene  # noqa: E402
from data.world.simulated_reasoner import MIXED, STEPS, sample_chain, set_trap  # noqa: E402
from data.world.tasks import TASKS  # noqa: E402
from reweighting.rollouts.reasoner import user_text  # noqa: E402
from weights.curriculum import Layout, Sheet, Spoken, ask  # noqa: E402
from weights.pretrain import forward, make_optimizer, rate  # noqa: E402

TINY = REPOSITORY / "weights" / "tiny-qwen2-vl"
OUT = REPOSITORY / "weights" / "tiny-reasoner"
INSTRUCTION = "instruction.txt"
TURN = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


def lesson(rng: random.Random, grid: int, instruction: str) -> Sheet:
    """A scene with one question: a whole answer, and the end of another after its beginning."""
    question = None
    while question is None:
        task = TASKS[rng.choice(list(TASKS))]
        sheet = Sheet(draw_scene(rng, task.scene, grid))
        question = ask(rng, sheet.scene, (task,), int(rng.random() < 0.2))
    trap = set_trap(rng, question, MIXED)
    whole, begun = (sample_chain(rng, question, MIXED, trap) for _ in range(2))
    prefix = begun.prefix(rng.randint(1, STEPS))
    rest = begun.text[len(prefix) :].lstrip("\n")
    for given, said in (("", whole.text), (prefix, rest)):
        text = user_text(question.text, instruction, given)
        sheet.spoken.append(Spoken([(text + TURN, False), (said + END, True)], 1.0))
    return sheet


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=TINY, help="folder to start from")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--batch_size", type=int, default=16, help="sheets (images) per step")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=50, help="steps between two lines")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    instruction = (arguments.out / INSTRUCTION).read_text(encoding="utf-8").strip()
    processor = AutoProcessor.from_pretrained(arguments.base)
    layout = Layout(processor.tokenizer)
    model = Qwen2VLForConditionalGeneration.from_pretrained(arguments.base, dtype=torch.float32)
    model.train()
    optimizer = make_optimizer(model, arguments.lr)
    start, seen = time.time(), []
    for step in range(arguments.steps):
        rng = random.Random(f"reasoner/{arguments.seed}/{step}")
        grid = rng.choice((3, 3, 3, 4))
        sheets = [lesson(rng, grid, instruction) for _ in range(arguments.batch_size)]
        batch = layout.collate(sheets)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, arguments.steps, arguments.lr)
        loss = F.cross_entropy(forward(model, batch), batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seen.append(loss.item())
        if (step + 1) % arguments.report == 0:
            speed = (time.time() - start) / (step + 1)
            mean = sum(seen[-arguments.report :]) / arguments.report
            print(f"{step + 1} {speed:.3f}s/step loss {mean:.4f}", flush=True)
    model.generation_config.do_sample = True  # `transformers serve` reads this
    # Half the size of float32; sampling at temperature 1 does not notice.
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    processor.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
