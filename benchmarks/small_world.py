"""Does domain reweighting find the bad data, and does it help? In a world where both are known.

    python -m benchmarks.small_world --seeds 5

trains, for every seed, the vanilla reward model, the reweighted one and the one weighted by the
true quality, at batch 8/8, and the reweighted one at the paper's batch 1/1; scores the candidates
of all held-out sets; prints the rank correlation of learned weight and stated quality and the
accuracy of best-of-8 against one sample, majority vote and the oracle. Finished runs are kept in
``--work`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from reweighting.reward_model import RewardModel
from reweighting.samples import CandidatesSample, RecordReader, load_candidates
from reweighting.selection import LogOdds, majority, score_candidates, select

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY / "data"
TESTS = ["test_combination", "test_hard", "test_wording", "test_errors", "test_mix"]
DRAWS = 2000  # of the bootstrap

# Chosen on the validation set, see the results file; the test sets were not looked at for it.
RECIPE = ["--lr", "2e-4", "--meta_lr", "0.05", "--unroll_steps", "2", "--weight_decay", "0"]
BATCH_8 = ["--batch_size", "8", "--meta_batch_size", "8", "--iteration_num", "600"]
BATCH_1 = ["--batch_size", "1", "--meta_batch_size", "1", "--iteration_num", "4800"]


def variants(work: Path) -> dict[str, list[str]]:
    """Flags of every kind of run, by name."""
    quality = work / "quality.json"
    return {
        "vanilla": [*BATCH_8, "--baseline"],
        "reweighted": BATCH_8,
        "true quality": [*BATCH_8, "--domain_weights", str(quality)],
        "reweighted 1/1": BATCH_1,
    }


def qualities() -> dict[str, float]:
    """The stated quality of every domain."""
    return {d["name"]: d["quality"] for d in json.loads((DATA / "domains.json").read_text())}


def train(run: Path, seed: int, flags: list[str]) -> float:
    """Train unless done; returns the seconds it took."""
    finished = run / "seconds.json"
    if finished.exists():
        return json.loads(finished.read_text())
    started = time.monotonic()
    command = [
        *(sys.executable, "main.py", "--train_json_file", "data/train.json"),
        *("--meta_json_file", "data/meta.json", "--image_root", "data"),
        *("--weights_path", str(run), "--reward_model", "weights/tiny-qwen2-vl"),
        *("--device", "cpu", "--precision", "fp32", "--num_workers", "1", "--seed", str(seed)),
        *("--save_every_iterations", "200", "--resume", *RECIPE, *flags),
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    finished.write_text(json.dumps(seconds))
    return seconds


def load(name: str) -> list[CandidatesSample]:
    return load_candidates(RecordReader(str(DATA / f"{name}.json"), image_root=str(DATA)))


def scores(run: Path, name: str) -> list[LogOdds]:
    """Log-odds of every prefix of every candidate of a set, kept beside the run."""
    path = run / f"scores_{name}.json"
    if not path.exists():
        model = RewardModel.from_pretrained(run).eval()
        batches = score_candidates(model, load(name))
        path.write_text(json.dumps([question for batch in batches for question in batch]))
    return json.loads(path.read_text())


def chosen(samples: list[CandidatesSample], log_odds: list[LogOdds]) -> np.ndarray:
    """1 where best-of-N is right, ``[questions]``."""
    return np.array(
        [s.true_false[select(z)] for s, z in zip(samples, log_odds, strict=True)], dtype=float
    )


def auroc(positive: list[float], negative: list[float]) -> float:
    """Chance that a positive scores above a negative, ties counting half."""
    values = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def spearman(left: list[float], right: list[float]) -> float:
    """Rank correlation (no ties)."""
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(ranks)[0, 1])


def prefix_auroc(name: str, log_odds: list[LogOdds]) -> float:
    """How well z tells sound prefixes from unsound ones."""
    records = json.loads((DATA / f"{name}.json").read_text())
    flat = [
        (z, sound)
        for record, chains in zip(records, log_odds, strict=True)
        for steps, correct in zip(chains, record["step_correct"], strict=True)
        for z, sound in zip(steps, correct, strict=True)
    ]
    return auroc([z for z, sound in flat if sound], [z for z, sound in flat if not sound])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % bootstrap interval over questions, ``values`` ``[questions]``."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (DRAWS, len(values)))].mean(1)
    return float(values.mean()), *map(float, np.percentile(means, [2.5, 97.5]))


def report(work: Path, names: list[str], seeds: list[int], sets: list[str]) -> str:
    """All tables, as Markdown."""
    quality = qualities()
    corrupted = [name for name, value in quality.items() if value < 1]
    lines = [
        "| run | seed | Spearman (corrupted) | weights | prefix AUROC (validation) | seconds |"
    ]
    lines.append("|---|---|---|---|---|---|")
    weights_by_run: dict[str, list[dict[str, float]]] = {}
    for name in names:
        for seed in seeds:
            run = folder(work, name, seed)
            seconds = json.loads((run / "seconds.json").read_text())
            area = prefix_auroc("validation", scores(run, "validation"))
            rho = spread = "-"
            if (run / "domain_weights.json").exists():
                weights = json.loads((run / "domain_weights.json").read_text())
                weights_by_run.setdefault(name, []).append(weights)
                order = spearman([weights[d] for d in corrupted], [quality[d] for d in corrupted])
                rho = f"{order:.2f}"
                spread = f"{min(weights.values()):.2f} … {max(weights.values()):.2f}"
            lines.append(f"| {name} | {seed} | {rho} | {spread} | {area:.3f} | {seconds:.0f} |")
    for name, runs in weights_by_run.items():
        lines += ["", f"Weights of *{name}* (mean ± standard deviation over seeds):", ""]
        lines += [
            "| domain | stated quality | weight | \\|mean - 1\\| / deviation |",
            "|---|---|---|---|",
        ]
        for domain, value in quality.items():
            found = [weights[domain] for weights in runs]
            mean = statistics.mean(found)
            deviation = statistics.stdev(found) if len(found) > 1 else float("nan")
            ratio = abs(mean - 1) / deviation if deviation else float("nan")
            lines.append(f"| {domain} | {value:.2f} | {mean:.2f} ± {deviation:.2f} | {ratio:.1f} |")

    lines += ["", "| set | one sample | majority | oracle |" + "".join(f" {n} |" for n in names)]
    lines.append("|---" * (4 + len(names)) + "|")
    pooled: dict[str, list[np.ndarray]] = {name: [] for name in ("one sample", "majority", *names)}
    for name_of_set in sets:
        samples = load(name_of_set)
        single = np.array([np.mean(s.true_false) for s in samples])
        vote = np.array([float(s.true_false[majority(s.candidates)]) for s in samples])
        oracle = np.array([float(any(s.true_false)) for s in samples])
        row = [f"{x.mean():.3f}" for x in (single, vote, oracle)]
        pooled["one sample"].append(single)
        pooled["majority"].append(vote)
        for name in names:
            runs = [
                chosen(samples, scores(folder(work, name, seed), name_of_set)) for seed in seeds
            ]
            row.append(f"{np.mean(runs):.3f}")
            pooled[name].append(np.mean(runs, axis=0))
        lines.append(f"| {name_of_set} | " + " | ".join(row) + " |")
    lines += ["", "Differences over all questions of these sets, points (95 % interval):", ""]
    for better, worse in (("reweighted", "one sample"), ("reweighted", "vanilla"),
                          ("reweighted", "majority"), ("true quality", "vanilla")):  # fmt: skip
        if better in pooled and worse in pooled:
            gap = np.concatenate(pooled[better]) - np.concatenate(pooled[worse])
            mean, low, high = (100 * x for x in interval(gap))
            lines.append(f"- {better} - {worse}: {mean:+.1f} ({low:+.1f} … {high:+.1f})")
    return "\n".join(lines)


def folder(work: Path, name: str, seed: int) -> Path:
    return work / f"{name.replace(' ', '_').replace('/', '_')}_seed{seed}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="training seeds 1 … N (default: 5)")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "weights" / "small_world")
    parser.add_argument("--variants", nargs="*", help="only these kinds of run")
    parser.add_argument("--sets", nargs="*", default=TESTS, help="held-out sets to report")
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    (work / "quality.json").write_text(json.dumps(qualities()))
    flags = variants(work)
    names = arguments.variants or list(flags)
    seeds = list(range(1, arguments.seeds + 1))
    for seed in seeds:
        for name in names:
            train(folder(work, name, seed), seed, flags[name])
    text = report(work, names, seeds, arguments.sets)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
