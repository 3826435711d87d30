"""Bring your own benchmark: from questions to a reward model and its choices, command by command.

    python -m benchmarks.own_benchmark --work weights/own_benchmark

labels chains, trains a reward model and chooses among candidates for questions of the demo world,
with the tiny reasoner as the model that thinks; every command is printed before it runs, and can be
typed by itself in the repository's folder. To use a server instead:

    transformers serve weights/tiny-reasoner --device cpu --port 8000
    python -m benchmarks.own_benchmark --work … --reasoner --model weights/tiny-reasoner \
        --base_url http://127.0.0.1:8000/v1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.commands import show_and_run
from data.make_questions import write_questions

REASONER = Path("weights/tiny-reasoner")


def commands(
    work: Path, reasoner: list[str], training: list[str], label: list[str]
) -> list[list[str]]:
    """The seven commands, each as the words after ``python``."""
    root = ["--image_root", str(work)]
    ask = [*root, *reasoner, "--instruction", str(REASONER / "instruction.txt")]
    ask += ["--max_tokens", "160"]
    tool = ["-m", "reweighting.rollouts"]

    def at(name: str) -> str:
        return str(work / name)

    def chains(name: str, samples: int, *more: str) -> list[str]:
        source = ["--questions", at(f"{name}.jsonl"), "--samples", str(samples)]
        return [*tool, "chains", *source, "--output", at(f"{name}_chains.json"), *more, *ask]

    cpu = ["--device", "cpu", "--precision", "fp32"]
    label_of = ["label", "--candidates", at("train_chains.json"), "--output", at("labelled.json")]
    train = ["--train_json_file", at("train.json"), "--meta_json_file", at("meta.json")]
    train += ["--reward_model", "weights/tiny-qwen2-vl"]
    train += ["--weights_path", at("run"), "--num_workers", "0"]
    choose = ["--weights_path", at("run"), "--candidates", at("test_chains.json")]
    return [
        # a chain for every training question, and how likely each of its prefixes ends right
        chains("train", 1),
        [*tool, *label_of, *label, *ask],
        [*tool, "select", "--labelled", at("labelled.json"), "--output", at("train.json")],
        # right and wrong chains of other questions: the meta set
        chains("meta", 4, "--meta_output", at("meta.json")),
        # the reward model
        ["main.py", *train, *root, *cpu, *training],
        # best of N on questions it has not seen
        chains("test", 8),
        ["-m", "reweighting.selection", *choose, "--output_dir", at("selected"), *root, *cpu],
    ]


def run(steps: list[list[str]]) -> int:
    """Show and run one command after the other until one fails; returns the exit code."""
    return next(filter(None, map(show_and_run, steps)), 0)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument(
        "--questions", type=int, default=60, help="questions in each of the three sets"
    )
    parser.add_argument(
        "--iterations", type=int, default=40, help="lower steps of training (default: 40)"
    )
    parser.add_argument(
        "--reasoner",
        nargs=argparse.REMAINDER,
        default=["--policy", str(REASONER), "--device", "cpu", "--precision", "fp32"],
        help="all further flags: the model that thinks (default: the tiny reasoner, no server)",
    )
    arguments = parser.parse_args()
    for name in ("train", "meta", "test"):
        write_questions(arguments.work, name, arguments.questions)
    training = ["--batch_size", "8", "--meta_batch_size", "8", "--unroll_steps", "2"]
    training += ["--lr", "2e-4", "--meta_lr", "0.05", "--weight_decay", "0"]
    training += ["--iteration_num", str(arguments.iterations)]
    return run(commands(arguments.work, arguments.reasoner, training, []))


if __name__ == "__main__":
    sys.exit(main())
