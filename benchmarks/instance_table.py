"""Does the size of an instance table cost time? Steps with tables of two sizes, in turn.

    python -m benchmarks.instance_table

Each step is a lower and an upper one of the tiny Qwen2-VL over demo chains, whose records are given
numbers spread over the whole table.
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import sys

import torch
from betty.logging.logger_base import get_logger as betty_logger

from benchmarks.bilevel import allocated, now
from benchmarks.hypergradient import build
from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.bilevel.weighting import InstanceTable
from reweighting.records.reader import RecordReader
from reweighting.reproduce.configs import DEMO
from reweighting.reward_model import RewardModel
from reweighting.system.terminal import quiet


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--rows", type=int, nargs=2, default=[1_000, 10_000_000], help="rows of the two tables")
    add("--batch_size", type=int, default=32, help="train records per step (default: 32)")
    add("--steps", type=int, default=15, help="measured steps of each table (default: 15)")
    add("--threads", type=int, default=1)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(arguments.threads)
    betty_logger().setLevel(logging.WARNING)
    model = RewardModel.from_pretrained("weights/tiny-qwen2-vl", device="cpu")

    def load(file, parse: str, count: int):
        reader = RecordReader(str(file), str(DEMO.image_root))
        samples = reader.samples(getattr(reader, parse))[:count]
        data = EncodedDataset([[sample] for sample in samples], model.encoder)
        return [data[index] for index in range(count)]

    train = load(DEMO.train, "train_sample", arguments.batch_size)
    domains = list(dict.fromkeys(unit[0].domain for unit, _ in train))
    chains = collate_meta(load(DEMO.meta, "meta_sample", 8))
    engines, batches, seconds = {}, {}, {}
    for rows in arguments.rows:
        table = InstanceTable(rows)
        engines[rows] = build(
            copy.deepcopy(model), domains, [], [], lr=1e-5, weighting=table, unroll_steps=1
        )
        batches[rows] = CollateTrain(domains)(train)
        seconds[rows] = []

    def step(rows: int, number: int) -> None:
        engine, batch = engines[rows], batches[rows]
        generator = torch.Generator().manual_seed(number)
        batch.records = torch.randint(1, rows + 1, (arguments.batch_size,), generator=generator)
        engine.lower.batches, engine.upper.batches = iter([batch]), iter([chains])
        engine.global_step = number
        engine.train_step()

    for number in range(1, arguments.steps + 2):
        for rows in arguments.rows:
            started = now("cpu")
            step(rows, number)
            if number > 1:  # the first step warms up
                seconds[rows].append(now("cpu") - started)
    print("| rows | step, seconds (median) | table and its optimizer, bytes a row | more at the "
          "peak of a step, bytes a row |\n|---|---|---|---|")  # fmt: skip
    peaks = {rows: allocated("cpu", lambda rows=rows: step(rows, 99))[0] for rows in arguments.rows}
    for rows in arguments.rows:
        upper = engines[rows].upper
        state = upper.optimizer.state[upper.module.raw_weights]
        held = sum(t.nbytes for t in (upper.module.raw_weights, *state.values()))
        more = max(0, peaks[rows] - peaks[min(arguments.rows)])
        print(f"| {rows:,} | {statistics.median(seconds[rows]):.3f} | {held / rows:.1f} | "
              f"{more / rows:.2f} |")  # fmt: skip
    small, large = (statistics.median(seconds[rows]) for rows in arguments.rows)
    print(f"\nratio: {large / small:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
