"""The study in the world of overlapping sources: do weights follow quality, and does it pay?

    python -m reweighting.reproduce --config sources --seeds 10 --out weights/sources_study

Every seed has a world of its own, the rotation of the same number (``data/README.md``). Each run is
judged twice: by its last checkpoint, and by the one that was best on the validation set, which is
chosen in the same way for all rows. What a finished run learned and which questions it gets right
is kept in ``--kept`` as one small file, so that the study can go on elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ..records.reader import RecordReader, load_meta
from ..selection.best_of_n import evaluate
from ..system.checkpoints import finding
from ..system.files import complete_lines, read_json, write_json, write_records
from .study import VALIDATION, CommandFailed, Setup, Study, folder_name

DATA = Path("data")
WORLD = DATA / "sources"
BASE = "benchmarks/tiny-beginner"
POOL = 8  # candidates of a question in the validation while training, which must be quick
LAST, BEST = "last", "best"
SIZES = (1, 2, 4, 8, 16, 32)

# What every row of the table is trained with. A row may stand on an earlier one's run.
QUALITY = ["--domain_weights", "{work}/world_{seed}/quality.json"]
RANKED = ["--domain_weights", "{work}/world_{seed}/ranked.json"]
ON_META = ["--baseline", "--train_json_file", "{work}/world_{seed}/sources/meta_as_train.json"]
ON_BOTH = ["--baseline", "--train_json_file", "{work}/world_{seed}/sources/train_and_meta.json"]
RANKING = "ranking loss"
TWO_STAGES = "two stages"
VANILLA, PUBLISHED = "vanilla PRM", "published loss"
TRUE_QUALITY, CLEAN = "true quality", "clean labels"
OUTCOME = "ORM"
ANSWERS = ("one sample", "majority", "oracle")  # ways to choose that need no model
INSTANCE_NET = [
    *("--reweighting", "instance_net", "--net_features", "labels", "--unroll_steps", "1"),
    *("--meta_lr", "0.02"),
]
INSTANCE_TABLE = ["--reweighting", "instance_table", "--unroll_steps", "1"]
COLD = ["--cold_start_iterations", "100"]
RANK = ["--meta_loss", "rank"]
ALL = ["--hypergradient_batches", "all"]  # hears more of the same batches
ROWS: dict[str, list[str]] = {
    VANILLA: ["--baseline"],
    PUBLISHED: ALL,
    RANKING: [*RANK, *ALL],
    TRUE_QUALITY: QUALITY,
    CLEAN: [
        *("--baseline", "--train_json_file", "{work}/world_{seed}/sources/train_clean.json"),
    ],
    TWO_STAGES: RANKED,
    "ranking loss, last": RANK,
    "meta set as training data": ON_META,
    "training and meta set": ON_BOTH,
    OUTCOME: ["--baseline", "--train_subset", "outcome"],
    **{
        f"{name} {size // 100} %": [
            *("--baseline", "--train_subset", rule, "--subset_size", str(size))
        ]
        for name, rule in (("random", "random"), ("BIS", "bis"), ("CaR", "car"))
        for size in (1000, 2500)
    },
    "s1-PRM": [
        *("--baseline", "--train_subset", "s1", "--subset_size", "250"),
        *("--step_length", "44", "57"),
    ],
    "Instance Table": INSTANCE_TABLE,
    "Instance Table, ranking": [*INSTANCE_TABLE, *RANK],
    "Instance Table, ranking, cold start": [*INSTANCE_TABLE, *RANK, *COLD],
    "Instance Net": INSTANCE_NET,
    "Instance Net, ranking": [*INSTANCE_NET, *RANK],
    "Instance Net, ranking, cold start": [*INSTANCE_NET, *RANK, *COLD],
}


@dataclass(frozen=True)
class World:
    """The knobs of ``data/make_demo.py --world sources``."""

    misled: float = 0.4
    meta_types: int = 10
    meta_chains: int = 500
    same_quality: bool = False

    def flags(self) -> list[str]:
        """As words of its command line."""
        words = ["--misled", str(self.misled), "--meta_types", str(self.meta_types)]
        words += ["--meta_chains", str(self.meta_chains)]
        return [*words, *(["--same_quality"] if self.same_quality else [])]


def setup(work: Path, model: str, iterations: int) -> Setup:
    """Train on the rotation of the seed, compare on the sets that all rotations share."""
    world = work / "world_{seed}"
    tests = {name: DATA / f"test_{name}.json" for name in ("combination", "hard", "wording")}
    tests |= {"errors": DATA / "test_errors.json", "mix": WORLD / "test_mix.json"}
    every = max(1, iterations // 6)
    return Setup(
        train=world / "sources" / "train.json",
        meta=world / "sources" / "meta.json",
        validation=WORLD / f"{VALIDATION}.json",
        sets=tests,
        image_root=DATA,
        train_root=world,
        flags=(
            *("--preset", "demo", "--reward_model", model, "--num_workers", "0"),
            *("--iteration_num", str(iterations), "--save_every_iterations", str(iterations)),
            *("--eval_candidates", str(work / f"{VALIDATION}.json"), "--eval_every", str(every)),
            *("--eval_image_root", str(DATA)),
        ),
    )


def make_world(study: Study, world: World, seed: int) -> None:
    """Write the data of a seed, and what the rows of the table need besides.

    Raises:
        CommandFailed: the data could not be made.
    """
    folder = study.work / f"world_{seed}"
    quick = study.work / f"{VALIDATION}.json"
    if not quick.exists():
        several = ("candidates", "true_false", "step_correct")
        questions = read_json(study.setup.validation)
        write_records(quick, [q | {key: q[key][:POOL] for key in several} for q in questions])
    if (folder / "quality.json").exists():
        return
    command = ["data/make_demo.py", "--world", "sources", "--rotation", str(seed), "--clean_labels"]
    if study.run([*command, *world.flags(), "--out", str(folder)]):
        raise CommandFailed(f"{folder}: the world of rotation {seed} could not be made")
    own = folder / "sources"
    meta = outcome_records(own / "meta.json", folder)
    write_records(own / "meta_as_train.json", meta)
    write_records(own / "train_and_meta.json", [*read_json(own / "train.json"), *meta])
    qualities = {source["name"]: source["quality"] for source in read_json(own / "domains.json")}
    write_json(folder / "quality.json", qualities)


def outcome_records(meta: Path, images: Path) -> list[dict]:
    """A meta set as train records: every prefix is labelled with the outcome of its chain."""
    samples, _ = load_meta(RecordReader(str(meta), str(images)))
    return [
        {
            "id": f"meta {sample.record}",
            "sid": number,
            "input": prompt.question,
            "add": "".join(prompt.steps),
            "image_path": [
                str(Path(image).absolute().relative_to(images.absolute()))
                for image in sample.images
            ],
            "dataset": "meta",
            "score": int(sample.true_false),
            "times": 1,
            "accuracy": float(sample.true_false),
        }
        for sample in samples
        for number, prompt in enumerate(sample.prompts, 1)
    ]


def way_to_choose(row: str) -> str:
    """The aggregation by which a row takes the best candidate: an ORM judges whole chains."""
    return "last" if row == OUTCOME else "mean_log_odds"


def file_name(row: str, seed: int) -> str:
    """Of what is kept of a run."""
    return f"{folder_name(row, seed)}.json"


class Kept:
    """What is kept of every finished run: weights, time, and the share of right choices.

    A file holds ``[{"weights": {source: weight} or null, "seconds": s, "curve": {step: accuracy on
    validation}, "right": {"last" or "best": {set: {method: {N: [a share for each question]}}}}}]``.
    """

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder
        best = replace(study.setup, checkpoint=BEST, selected=f"selected_{BEST}")
        self._judged = {
            LAST: study,
            BEST: Study(best, study.work, study.variants, study.seeds, study.run),
        }

    def file(self, variant: str, seed: int) -> Path:
        """Where a run is kept."""
        return self.folder / file_name(variant, seed)

    def run(self, variant: str, seed: int, say: Callable[[str], None]) -> dict:
        """Train and judge what is not kept yet."""
        file = self.file(variant, seed)
        if file.exists():
            [outcome] = read_json(file)
            return outcome
        if variant == TWO_STAGES:
            learned = self.run(RANKING, seed, say)["weights"]
            write_json(self.study.work / f"world_{seed}" / "ranked.json", learned)
        self.study.train_run(variant, seed, say)
        names = [VALIDATION, *self.study.setup.sets]
        for study in self._judged.values():
            study.score_run(variant, seed, names, say)
        run = self.study.folder(variant, seed)
        weights = run / finding.DOMAIN_JSON
        evaluations = complete_lines(run / finding.EVALUATIONS_FILE)
        outcome = {
            "weights": read_json(weights) if weights.exists() else None,
            "seconds": self.study.seconds(variant, seed),
            "curve": {str(e["iteration"]): e["accuracy"] for e in evaluations},
            "right": {
                which: {name: _right(study, variant, seed, name) for name in names}
                for which, study in self._judged.items()
            },
        }
        write_records(file, [outcome])  # thousands of numbers on one line
        return outcome


def _right(study: Study, variant: str, seed: int, name: str) -> dict[str, dict[str, list[float]]]:
    """By the row's own way to choose; with vanilla, also by those that need no model."""
    pools = study.pools(variant, seed, name)
    largest = max(len(pool.right) for pool in pools)
    found = evaluate(pools, [size for size in SIZES if size <= largest])
    methods = [way_to_choose(variant), *(ANSWERS if variant == VANILLA else ())]
    return {
        method: {
            str(n): [round(float(v), 3) for v in values] for n, values in found[method].items()
        }
        for method in methods
    }
