"""Reinforcement learning against the reward model: does the truth rise with the reward?

    python -m benchmarks.grpo --weights_path weights/demo/reweighted_seed1 --rule aggregate \
        --work weights/grpo --steps 150

TRL's ``GRPOTrainer`` (``pip install trl``) trains the tiny reasoner on fresh questions of the demo
world. The reward is :func:`reweighting.rewards.trl_reward`; right and wrong are only watched, with
``--rule ps_grpo`` they are a part of the reward. Every ``--eval_steps`` steps the policy answers
held-out questions, several times each, at temperature 1. ``--work`` gets ``history.jsonl``, what
the trainer logs at every step and evaluation, and all responses of the training
(``trainer/completions``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from data.make_questions import write_questions
from reweighting.records.images import load_pixels
from reweighting.records.reader import RecordReader, load_questions
from reweighting.rewards import trl_reward
from reweighting.system.files import write_records

REASONER = Path("weights/tiny-reasoner")
MAX_TOKENS = 160
ANSWERS = 8  # to each question


def rows(folder: Path, name: str, count: int) -> list[dict[str, Any]]:
    """Questions of the demo world as the rows of a data set for ``GRPOTrainer``."""
    path = write_questions(folder, name, count)
    instruction = (REASONER / "instruction.txt").read_text(encoding="utf-8").strip()
    reader = RecordReader(str(path), str(folder))
    return [
        {
            "prompt": [{"role": "user", "content": f"{one.question}\n\n{instruction}"}],
            "image": load_pixels(one.image),
            "question": one.question,
            "answer": one.answer,
        }
        for one in load_questions(reader)
    ]


def make_trainer(
    work: Path,
    reward: Any,
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
    **settings: Any,
) -> Any:
    """A ``GRPOTrainer`` of the tiny reasoner on the CPU.

    Args:
        settings: of ``GRPOConfig``, in place of those below.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    config = {
        "per_device_train_batch_size": 64,
        "per_device_eval_batch_size": 64,
        "num_generations": ANSWERS,
        "max_completion_length": MAX_TOKENS,
        "learning_rate": 5e-5,
        "lr_scheduler_type": "constant",
        "beta": 0.0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "log_completions": True,  # to the folder of the trainer
        "disable_tqdm": True,
        "seed": 1,
    }
    model = AutoModelForImageTextToText.from_pretrained(REASONER, dtype=torch.float32)
    return GRPOTrainer(
        model=model,
        processing_class=AutoProcessor.from_pretrained(REASONER),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(test) if test else None,
        args=GRPOConfig(output_dir=str(work / "trainer"), **{**config, **settings}),
    )


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--weights_path", required=True, help="directory of a run: the reward model")
    add("--rule", default="aggregate", help="aggregate or ps_grpo (default: aggregate)")
    add("--aggregation", default="mean_log_odds", help="of the steps (default: mean_log_odds)")
    add("--work", type=Path, required=True, help="folder for questions and results")
    add("--steps", type=int, default=150, help="steps of the policy (default: 150)")
    add("--eval_steps", type=int, default=15, help="steps between evaluations (default: 15)")
    add("--questions", type=int, default=1000, help="to train on (default: 1000)")
    add("--test", type=int, default=100, help="held-out questions (default: 100)")
    add("--lr", type=float, default=5e-5, help="learning rate (default: 5e-5)")
    add("--seed", type=int, default=1, help="of the training (default: 1)")
    arguments = parser.parse_args()
    reward = trl_reward(arguments.weights_path, arguments.rule, arguments.aggregation, device="cpu")
    trainer = make_trainer(
        arguments.work,
        reward,
        rows(arguments.work, "train", arguments.questions),
        rows(arguments.work, "test", arguments.test),
        max_steps=arguments.steps,
        eval_strategy="steps",
        eval_steps=arguments.eval_steps,
        eval_on_start=True,
        learning_rate=arguments.lr,
        seed=arguments.seed,
    )
    trainer.train()
    write_records(arguments.work / "history.jsonl", trainer.state.log_history, lines=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
