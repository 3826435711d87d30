"""Do instance weights find single corrupted records, where these are known?

    python -m benchmarks.instances --seeds 3

Chains of the demo's train set keep the labels they had before their domain was spoiled; a random
part of them has its accuracies inverted (1 - accuracy). A table learns a weight for each record
it trains on; a net is asked about records it has never seen. Both are judged by the AUROC: the
chance that a sound record weighs more than a corrupted one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

import main as program
from benchmarks.small_world import clean_records
from reweighting.bilevel.batches import CollateTrain, EncodedDataset
from reweighting.bilevel.weighting import InstanceNet
from reweighting.evaluate.metrics import Counts, auroc
from reweighting.records.reader import RecordReader, load_train
from reweighting.reproduce.configs import DEMO
from reweighting.reward_model import RewardModel
from reweighting.system.checkpoints import finding
from reweighting.system.checkpoints.finding import INSTANCE_FILE, INSTANCE_PARQUET
from reweighting.system.terminal import quiet

MODEL = "weights/tiny-qwen2-vl"
CORRUPTED = 0.4  # of the chains
COMMON = [
    *("--batch_by", "cot", "--batch_size", "8", "--meta_batch_size", "8", "--unroll_steps", "1"),
    *("--lr", "1e-4", "--weight_decay", "0", "--precision", "fp32", "--device", "cpu"),
    *("--num_workers", "1", "--save_every_iterations", "100000"),
]
NET = [
    *("--reweighting", "instance_net", "--meta_lr", "0.02"),
    *("--cold_start_iterations", "60"),  # the net looks at scores: they should mean something
]
VARIANTS = {
    "table": [
        *("--reweighting", "instance_table", "--meta_lr", "0.05", "--cold_start_iterations", "10"),
    ],
    "net, labels": [*NET, "--net_features", "labels"],
    "net, scores": [*NET, "--net_features", "scores"],
    "net, hidden": [*NET, "--net_features", "hidden"],
}
# Chains to train on; as many are held out. A table needs visits to every record, a net needs many
# records.
CHAINS = {"table": 160, "net, labels": 480, "net, scores": 480, "net, hidden": 480}


def write_records(work: Path, chains: int) -> tuple[Path, Path, set[int]]:
    """Train and held-out file of ``chains`` chains each, and the ids of the corrupted ones."""
    by_id: dict[int, list[dict]] = {}
    for record in clean_records():
        record = {name: value for name, value in record.items() if name not in ("score", "times")}
        by_id.setdefault(record["id"], []).append(record)
    work.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    chosen = rng.sample(sorted(by_id), 2 * chains)
    corrupted = {name for name in chosen if rng.random() < CORRUPTED}
    paths = []
    for name, part in (("train", chosen[:chains]), ("held_out", chosen[chains:])):
        records = [record for name in part for record in by_id[name]]
        for record in records:
            if record["id"] in corrupted:
                record["accuracy"] = 1 - record["accuracy"]
        paths.append(work / f"{name}.json")
        paths[-1].write_text(json.dumps(records))
    return *paths, corrupted


def table_weights(run: Path) -> tuple[list[str], np.ndarray, float]:
    """Ids and weights of the records a table has learned from, and their mean visits."""
    table = parquet.read_table(run / INSTANCE_PARQUET).to_pydict()
    seen = [row for row, weight in enumerate(table["weight"]) if weight is not None]
    visits = np.mean([table["visits"][row] for row in seen])
    pick = lambda name: [table[name][row] for row in seen]  # noqa: E731
    return pick("id"), np.array(pick("weight")), float(visits)


@torch.no_grad()
def net_weights(run: Path, file: Path) -> tuple[list[str], np.ndarray]:
    """Ids of the records of ``file`` and what the run's net gives them."""
    trained = json.loads((run / "arguments.json").read_text())
    model = RewardModel.from_pretrained(run, device="cpu").eval()
    hidden_size = model.base_model.config.get_text_config().hidden_size
    net = InstanceNet(trained["net_features"], hidden_size, trained["net_width"],
                      trained["net_layers"], trained["weight_bounds"])  # fmt: skip
    net.load_state_dict(torch.load(run / INSTANCE_FILE, weights_only=True)["module"])
    samples = load_train(RecordReader(str(file), str(DEMO.image_root)), progress=False)
    collate = CollateTrain(list(dict.fromkeys(sample.domain for sample in samples)))
    dataset, weights = EncodedDataset([[sample] for sample in samples], model.encoder), []
    for start in range(0, len(samples), 32):
        batch = collate([dataset[i] for i in range(start, min(start + 32, len(samples)))])
        log_odds, hidden = model(batch.prompts, True)
        weights += net(batch, net.features(batch, log_odds, hidden)).tolist()
    return [sample.id for sample in samples], np.array(weights)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--seeds", type=int, default=3, help="training seeds 1 … N (default: 3)")
    add("--iterations", type=int, default=200, help="lower and upper steps (default: 200)")
    add("--variants", nargs="*", choices=list(VARIANTS), default=list(VARIANTS))
    add("--work", type=Path, default=Path("weights/instances"))
    add("--threads", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(arguments.threads)
    print("| weights | seed | AUROC | sound: mean weight | corrupted | visits a record | seconds |")
    print("|---|---|---|---|---|---|---|")
    for variant in arguments.variants:
        work = arguments.work / str(CHAINS[variant])
        train, held_out, corrupted = write_records(work, CHAINS[variant])
        for seed in range(1, arguments.seeds + 1):
            run = work / f"{variant.replace(', ', '_')}_seed{seed}"
            started = time.monotonic()
            flags = [*COMMON, *VARIANTS[variant], "--iteration_num", str(arguments.iterations)]
            with contextlib.redirect_stdout(sys.stderr):
                code = program.main([
                    *("--train_json_file", str(train), "--meta_json_file", str(DEMO.meta)),
                    *("--image_root", str(DEMO.image_root), "--reward_model", MODEL),
                    *("--weights_path", str(run), "--seed", str(seed), *flags),
                    *(["--resume"] if finding.exists(run) else []),
                ])  # fmt: skip
            if code:
                return code
            visits = "never trained on"
            if variant == "table":
                ids, weights, mean_visits = table_weights(run)
                visits = f"{mean_visits:.1f}"
            else:
                ids, weights = net_weights(run, held_out)
            spoiled = np.array([int(name) in corrupted for name in ids])
            print(
                f"| {variant} | {seed} | {auroc(Counts.of(weights, ~spoiled)):.3f} "
                f"| {weights[~spoiled].mean():.2f} | {weights[spoiled].mean():.2f} | {visits} "
                f"| {time.monotonic() - started:.0f} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
