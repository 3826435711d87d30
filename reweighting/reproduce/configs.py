"""What the study runs: data, settings and variants, and the numbers of the papers beside them."""

from __future__ import annotations

from pathlib import Path

from ..records.reader import RecordReader, load_candidates
from ..records.steps import join
from ..system.files import write_records
from .study import VALIDATION, Setup

DATA = Path("data")
PAPER_DATA = DATA / "paper"

DEMO = Setup(
    train=DATA / "train.json",
    meta=DATA / "meta.json",
    validation=DATA / f"{VALIDATION}.json",
    sets={
        name: DATA / f"test_{name}.json"
        for name in ("combination", "hard", "wording", "errors", "mix")
    },
    image_root=DATA,
    flags=("--preset", "demo", "--num_workers", "1", "--save_every_iterations", "200"),
)
PAPER = Setup(
    train=PAPER_DATA / "train.json",
    meta=PAPER_DATA / "meta.json",
    validation=PAPER_DATA / f"{VALIDATION}.json",
    sets={
        name: PAPER_DATA / f"{name}.json"
        for name in ("WeMath", "MathVista", "MathVision", "MMVet", "MMStar")
    },
    image_root=PAPER_DATA / "images",
    flags=("--preset", "paper", "--device", "cuda"),
    device="cuda",
    precision="bf16",
)
SETUPS = {"demo": DEMO, "paper": PAPER}

# How the paper names each variant, and its flags.
COMMON = {
    "vanilla PRM": ["--baseline"],
    "DreamPRM": [],
    "ORM": ["--baseline", "--train_subset", "outcome"],
    "without aggregation loss": ["--meta_target", "prefix"],
}
# DreamPRM-1.5: one lower step before each upper step. In a run of this length, the table sees each
# record of the demo once or twice.
INSTANCE = {
    "Instance Table": ["--reweighting", "instance_table", "--unroll_steps", "1"],
    "Instance Net": [
        *("--reweighting", "instance_net", "--net_features", "labels", "--unroll_steps", "1"),
        *("--meta_lr", "0.02", "--cold_start_iterations", "60"),
    ],
}
SANITY = "DreamPRM, meta set from the tests"
# The bounds of s1 are the middle half of the demo's step lengths; the published bounds belong to
# the published data.
SUBSETS = {
    "demo": {
        "random subset": ["--baseline", "--train_subset", "random", "--subset_size", "2000"],
        "s1-PRM": [
            *("--baseline", "--train_subset", "s1", "--subset_size", "400"),
            *("--step_length", "44", "57"),
        ],
    },
    "paper": {
        "random subset": ["--baseline", "--train_subset", "random", "--subset_size", "10000"],
        "s1-PRM": ["--baseline", "--train_subset", "s1", "--subset_size", "2000"],
    },
}

# DreamPRM (arXiv 2505.20241), main table: InternVL-2.5-8B-MPO on five benchmarks, per cent.
PUBLISHED_SETS = ("WeMath", "MathVista", "MathVision", "MMVet", "MMStar")
PUBLISHED = {
    "zero-shot": (51.7, 65.4, 20.4, 55.9, 58.9),
    "self-consistency": (56.4, 67.1, 20.7, 57.4, 59.6),
    "ORM": (56.9, 65.3, 20.5, 55.9, 60.1),
    "vanilla PRM": (54.2, 67.2, 20.6, 58.9, 60.8),
    "CaR-PRM": (54.7, 67.5, 21.0, 60.6, 61.1),
    "s1-PRM": (57.1, 65.8, 20.2, 60.1, 60.4),
    "DreamPRM": (57.4, 68.9, 22.1, 61.4, 62.3),
}
COMPARABLE = {
    "demo": "The demo's numbers and the paper's are **not comparable** in size: another model (1.4 "
    "M parameters, pre-trained on this world), another kind of question, a simulated reasoner, and "
    "labels spoiled on purpose. What can be compared is the pattern: which method is above which.",
    "paper": "Numbers are comparable where candidates, benchmark version and answer checking are "
    "the paper's; it used a judge model for some benchmarks, this study uses the rules of "
    "reweighting/records/answers.",
}


def meta_from_tests(setup: Setup, work: Path) -> Path:
    """Write a meta set made of the test questions: a right and a wrong chain of each.

    The paper's sanity check (DreamPRM-1.5): how much could be gained if the meta set fitted
    perfectly? Its row is not a result, because it has seen the answers.
    """
    records = []
    images = str(setup.image_root.absolute())
    for file in setup.sets.values():
        for sample in load_candidates(RecordReader(str(file), images)):
            for label in (True, False):
                if label in sample.true_false:
                    chain = sample.candidates[sample.true_false.index(label)]
                    records.append({"input": join(sample.question, chain), "true_false": label,
                                    "image_path": list(sample.images)})  # fmt: skip
    path = work / "meta_from_tests.json"
    write_records(path, records)
    return path
