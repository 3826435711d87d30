"""Best-of-N scoring: one forward pass per prefix compared with one prefix tree per question.

    python -m benchmarks.selection --questions 40
    python -m benchmarks.selection --questions 40 --one_chain 8

prints candidates per second, tokens forwarded and peak memory of both, for the same questions of a
demo set and the tiny model. Both run in turns in one process; memory is measured in one process
each. With ``--one_chain`` every question has one chain of so many steps, as step benchmarks do
(``reweighting.evaluate``).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.bilevel import allocated, in_a_process, now
from reweighting.records.reader import RecordReader, load_candidates
from reweighting.records.samples import CandidatesSample
from reweighting.records.steps import cut_steps
from reweighting.reward_model import RewardModel
from reweighting.reward_model.aggregation import LogOdds
from reweighting.reward_model.encoder import response_prompts
from reweighting.reward_model.prefix_tree import pack
from reweighting.reward_model.scoring import score_candidates
from reweighting.system.terminal import quiet

REPOSITORY = Path(__file__).resolve().parents[1]


class Counted(RewardModel):
    """A reward model that counts the tokens of its forward passes."""

    tokens = 0

    def forward(self, packed):
        self.tokens += len(packed.input_ids)
        return super().forward(packed)


def load(arguments) -> tuple[Counted, list[CandidatesSample]]:
    torch.manual_seed(0)
    model = Counted.from_pretrained(arguments.model, device=arguments.device).eval()
    reader = RecordReader(
        str(REPOSITORY / "data" / f"{arguments.set}.json"), str(REPOSITORY / "data")
    )
    samples = load_candidates(reader)[: arguments.questions]
    if arguments.one_chain:
        samples = [replace(s, candidates=[one_chain(s, arguments.one_chain)]) for s in samples]
    return model, samples


def one_chain(sample: CandidatesSample, length: int) -> list[str]:
    """A list of ``length`` steps: those of the candidates one after another."""
    steps = [step for candidate in sample.candidates for step in cut_steps(candidate)]
    return steps[:length]


@torch.no_grad()
def separately(model: Counted, samples: list[CandidatesSample]) -> list[LogOdds]:
    """One forward pass per prefix."""
    device = model.device
    return [
        [
            [
                model(pack([model.encoder.encode(sample.images, [prompt])]).to(device)).item()
                for prompt in response_prompts(sample.question, candidate)
            ]
            for candidate in sample.candidates
        ]
        for sample in samples
    ]


def by_trees(model: Counted, samples: list[CandidatesSample]) -> list[LogOdds]:
    """One tree per question, as many questions per forward pass as fit."""
    return [question for batch in score_candidates(model, samples) for question in batch]


METHODS = {"one forward per prefix": separately, "prefix trees": by_trees}


def memory(arguments, method: str) -> int:
    """Bytes that scoring adds to a loaded model; for a process of its own."""
    torch.set_num_threads(arguments.threads)
    model, samples = load(arguments)
    METHODS[method](model, samples[:1])
    return allocated(arguments.device, lambda: METHODS[method](model, samples))[0]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", default=str(REPOSITORY / "weights" / "tiny-qwen2-vl"))
    add("--set", default="validation", help="demo set (default: validation)")
    add("--questions", type=int, default=40)
    add(
        "--one_chain", type=int, default=0, help="steps of the only chain (default: all candidates)"
    )
    add("--repetitions", type=int, default=3)
    add("--device", default="cpu")
    add("--threads", type=int, default=2)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(arguments.threads)
    model, samples = load(arguments)
    candidates = sum(len(sample.candidates) for sample in samples)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    tokens, scores = {}, {}
    for _ in range(arguments.repetitions):
        for name, method in METHODS.items():
            model.tokens = 0
            started = now(arguments.device)
            scores[name] = method(model, samples)
            seconds[name].append(now(arguments.device) - started)
            tokens[name] = model.tokens
    flat = [
        torch.tensor([z for question in found for chain in question for z in chain])
        for found in scores.values()
    ]
    difference = (flat[0].sigmoid() - flat[1].sigmoid()).abs().max()
    print(f"{time.strftime('%Y-%m-%d')}, torch {torch.__version__}, {arguments.device}, ", end="")
    print(f"{arguments.threads} threads, {candidates} candidates of {arguments.set}; ", end="")
    print(f"largest difference of a score {difference:.1e}")
    print("\n| | candidates per second | tokens forwarded | memory added, MiB |\n|---|---|---|---|")
    rates = {name: candidates / statistics.median(values) for name, values in seconds.items()}
    for name in METHODS:
        added = in_a_process(memory, arguments, name)
        print(f"| {name} | {rates[name]:.1f} | {tokens[name]:,} | {added / 2**20:.0f} |")
    one, trees = METHODS
    print(f"\nratio: {rates[trees] / rates[one]:.1f} in time, {tokens[one] / tokens[trees]:.1f} in "
          "tokens")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
