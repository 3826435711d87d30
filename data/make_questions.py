"""Fresh questions of the demo world for a reasoner: python data/make_questions.py --output DIR

Writes `train.jsonl`, `meta.jsonl` and `test.jsonl` with their images, in the format of questions
for `reweighting.rollouts` (`question`, `image_path`, `answer`, `dataset`). They come from random
streams of their own: none is in a file of this folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.make_demo import DOMAINS, stream
from data.world.scenes import png
from data.world.tasks import draw_question


def write_questions(folder: Path, name: str, count: int, seed: int = 1) -> Path:
    """``count`` questions, the types in turn, as ``folder/name.jsonl``; returns that path."""
    (folder / "images" / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        rng = stream(seed, "questions", name, number)
        question = draw_question(rng, DOMAINS[number % len(DOMAINS)].name)
        image = f"images/{name}/{number:05d}.png"
        (folder / image).write_bytes(png(question.pixels))
        record = {
            "id": f"{name}-{number}",
            "question": question.text,
            "image_path": image,
            "answer": question.answer,
            "dataset": question.dataset,
        }
        lines.append(json.dumps(record) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def main() -> None:
    """Write all three files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=60, help="questions (default: 60)")
    parser.add_argument("--meta", type=int, default=60, help="questions (default: 60)")
    parser.add_argument("--test", type=int, default=60, help="questions (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: 1)")
    arguments = parser.parse_args()
    for name in ("train", "meta", "test"):
        write_questions(arguments.output, name, getattr(arguments, name), arguments.seed)


if __name__ == "__main__":
    main()
