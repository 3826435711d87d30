"""The demo world in published layouts: sources of VisualPRM400K-v1.1-Raw, a VisualProcessBench.

The domains are those of the demo, spoiled as stated there. The label of the final answer alone is
always sound, as it is in VisualPRM, where nothing is left to sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from data.make_demo import DOMAINS
from data.world.held_out import held_questions
from data.world.scenes import png
from data.world.simulated_reasoner import MIXED, Chain
from data.world.tasks import Question, draw_question
from data.world.training import Domain, labelled_chain, stream, unsound

ROLLOUTS = 16  # continuations a step
PROMPT = "Give step by step reasoning, and end with 'Final answer: ..'.\n\nQuestion: {}"
SOURCES = ("MMMU", "MathVision", "MathVerse-VO", "DynaMath", "WeMath")


def write_raw(
    folder: Path,
    questions: int,
    domains: Sequence[Domain] = DOMAINS,
    chains: int = 4,
    seed: int = 1,
) -> Path:
    """Write ``annotations/<domain>.jsonl`` with ``chains`` solutions of each question, and images.

    Image paths start from ``folder``. Returns the folder of the annotations.
    """
    annotations = folder / "annotations"
    for domain in (replace(domain, rollouts=ROLLOUTS) for domain in domains):
        rows = []
        for number in range(questions):
            rng = stream(seed, "raw", domain.name, number)
            question = draw_question(rng, domain.name, hint=domain.hint)
            image = f"images/{domain.name}/{number}.png"
            _write(folder / image, png(question.pixels))
            spoiled = rng.random() < domain.share
            if spoiled and domain.corruption == "images swapped":
                image = f"images/{domain.name}/{(number + 1) % questions}.png"
            for _ in range(chains):
                chain, scores = labelled_chain(rng, question, MIXED.scaled(domain.errors), ROLLOUTS)
                if spoiled:
                    scores = tuple(unsound(rng, domain, s, chain.sure) for s in scores)
                rows.append(raw_row(question, chain, scores, image))
        _write(annotations / f"{domain.name}.jsonl", json_lines(rows))
    return annotations


def raw_row(question: Question, chain: Chain, scores: Iterable[int], image: str) -> dict:
    """A row of VisualPRM400K-v1.1-Raw; ``scores`` say how many continuations ended right."""
    steps = [*chain.prefix(len(chain.steps)).split("\n"), f"Final answer: {chain.answer}"]
    counts = [*scores, ROLLOUTS * chain.right]
    return {
        "image": image,
        "question": "<image>\n" + PROMPT.format(question.text),
        "question_orig": "<image>\n" + question.text,
        "answer": question.answer,
        "response": "\n\n".join(steps),
        "num_mc_sequences": ROLLOUTS,
        "steps_with_score": [
            {"step": s, "score": n / ROLLOUTS, "num_mc_correct": n, "num_mc_total": ROLLOUTS}
            for s, n in zip(steps, counts, strict=True)
        ],
    }


def write_benchmark(folder: Path, questions: int, seed: int = 1) -> Path:
    """Write ``test.jsonl`` in the layout of VisualProcessBench, one solution a question, and its
    images. Its labels are sound; its questions are of all kinds of the demo's mixed test set."""
    rows = []
    for number, (question, [chain]) in enumerate(held_questions(seed, "test_mix", questions, 1)):
        image = f"images/{number}.png"
        _write(folder / image, png(question.pixels))
        labels = [1 if right else -1 for right in chain.step_correct]
        steps = chain.prefix(len(chain.steps)).split("\n")
        rows.append(
            {
                "image": [image],
                "question": question.text,
                "answer": question.answer,
                "response": {"steps": steps, "process_correctness": labels},
                "policy_model": "a simulated reasoner",
                "data_source": SOURCES[number % len(SOURCES)],
            }
        )
    _write(folder / "test.jsonl", json_lines(rows))
    return folder / "test.jsonl"


def json_lines(rows: list[dict]) -> bytes:
    """A JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
