"""The data card of train records: how they came about, and what each domain holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from huggingface_hub import DatasetCard, DatasetCardData

from ..system.markdown import cell, table

_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}
_TAGS = ["process-reward-model", "reward-model", "multimodal", "dreamprm"]

_BODY = """\
# {name}

Beginnings of chains of thought about images, each with the estimated probability that a reasoner
who goes on from there ends right. They train a process reward model.

## How the labels came about

A reasoner wrote chains to questions whose answers are known. Each chain was cut into its prefixes
of steps, and the reasoner completed every prefix several times. `accuracy` is the share of
completions that end with the right answer, or its posterior mean within the domain. Answers were
compared by a program, not by people. The reasoner: {reasoner}.

## Fields

| field | meaning |
| --- | --- |
| `input` | the question |
| `add` | the first steps of a chain |
| `image_path` | the image or the images, relative to the folder of the images |
| `dataset` | the domain |
| `accuracy` | the label, from 0 to 1 |
| `score`, `times` | completions that ended right, and all of them |
| `id`, `sid` | the question's number, and the number of steps |
| `ground_truth` | the right answer |

## Domains

{domains}

"Never right" are the prefixes of which no completion ended right, "always right" those of which
every one did.

## Intended use

Training and examining process reward models.

## Limits

- A label says how often *this* reasoner ends right from there, not whether the last step is true. A
  weak reasoner fails after right steps, and a lucky one ends right after wrong ones.
- A label from a few completions is coarse: {rollouts} on average.
- Texts and labels come from models. Nobody has read them all.
- The licences of the questions, the images and the reasoner's output apply; none is claimed here.
"""


def data_card(records: Sequence[dict], file: Path, reasoner: str | None) -> str:
    """The text of a ``README.md`` for the hub.

    Args:
        records: train records as ``label`` writes them; those of other origin may lack the counts.
        file: that holds them.
        reasoner: who wrote and completed the chains, if the user says so.
    """
    size = next((name for most, name in _SIZES.items() if len(records) < most), "n>1M")
    data = DatasetCardData(
        pretty_name=file.stem,
        size_categories=size,
        task_categories=["image-text-to-text"],
        annotations_creators="machine-generated",
        tags=_TAGS,
        configs=[{"config_name": "default", "data_files": file.name}],
    )
    times = [record["times"] for record in records if record.get("times")]
    body = _BODY.format(
        name=file.stem,
        reasoner=cell(reasoner) if reasoner else "**to be named by whoever publishes this**",
        domains=_domains(records),
        rollouts=f"{fmean(times):.1f}" if times else "how many is not known",
    )
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _domains(records: Sequence[dict]) -> str:
    by_domain: dict[str, list[dict]] = {}
    for record in records:
        by_domain.setdefault(record["dataset"], []).append(record)
    rows = []
    for name, own in sorted(by_domain.items()):
        labels = [record["accuracy"] for record in own]
        # --estimate posterior never says 0 or 1.
        shares = [r["score"] / r["times"] if r.get("times") else r["accuracy"] for r in own]
        counts = [sum(share == end for share in shares) for end in (0, 1)]
        questions = len({(str(record.get("image_path")), record["input"]) for record in own})
        rows.append([cell(name), str(questions), str(len(own)), f"{fmean(labels):.3f}"]
                    + [str(count) for count in counts])  # fmt: skip
    head = ["domain", "questions", "prefixes", "mean label", "never right", "always right"]
    return table(head, rows)
