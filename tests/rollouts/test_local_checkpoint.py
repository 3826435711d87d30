"""Rollouts from a local checkpoint, compared with plain generation."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch

from data.make_questions import write_questions as make_questions
from reweighting.rollouts.local_checkpoint import GumbelNoise, Policy
from reweighting.rollouts.reasoner import Query
from tests.conftest import REPOSITORY

REASONER = REPOSITORY / "weights" / "tiny-reasoner"
INSTRUCTION = REASONER / "instruction.txt"


@pytest.fixture(scope="module")
def policy():
    instruction = INSTRUCTION.read_text().strip()
    return Policy(REASONER, instruction, max_tokens=120, precision="fp32")


@pytest.fixture(scope="module")
def demo_questions(tmp_path_factory) -> Path:
    """A file of questions of the demo world."""
    return make_questions(tmp_path_factory.mktemp("demo"), "policy", 2)


def query_of(questions: Path, number: int, prefix: str = "") -> Query:
    record = json.loads(questions.read_text().splitlines()[number])
    return Query(record["question"], str(questions.parent / record["image_path"]), prefix)


def sample(policy, query: Query, seeds) -> list:
    return asyncio.run(policy.sample(query, seeds))


def test_shared_prefill_gives_what_a_plain_forward_gives(policy, demo_questions):
    query = query_of(demo_questions, 0, "Step 1: the question asks for the colour.")
    policy.temperature, temperature = 0.0, policy.temperature
    try:
        ours = sample(policy, query, [1, 2])
    finally:
        policy.temperature = temperature
    inputs = policy._inputs(query)
    plain = policy.model.generate(**inputs, do_sample=False, max_new_tokens=120)
    theirs = policy._rollout(plain[0, inputs["input_ids"].shape[1] :].tolist(), 0).text
    assert ours[0].text == ours[1].text == theirs
    assert ours[0].finish_reason == "stop" and "Final answer:" in theirs


def test_a_rollout_depends_on_its_seed_alone(policy, demo_questions):
    query = query_of(demo_questions, 1)
    together = [rollout.text for rollout in sample(policy, query, range(6))]
    assert len(set(together)) > 1
    assert [sample(policy, query, [seed])[0].text for seed in (4, 2)] == [
        together[4],
        together[2],
    ]


def test_samples_follow_the_models_probabilities(policy, demo_questions):
    """The shares of the tokens drawn, compared with the softmax."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(4000, 1)
    drawn = GumbelNoise(range(4000), 0.7)(torch.zeros(4000, 1), logits).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares.tolist() == pytest.approx(torch.softmax(logits[0] / 0.7, 0).tolist(), abs=0.03)
