"""Batches of real records for the tests of both levels."""

from __future__ import annotations

import pytest

from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.records.reader import RecordReader, load_meta, load_train
from tests.conftest import DOMAINS


@pytest.fixture(scope="module")
def batches(dataset, reward_model):
    """Encoded train and meta batches of the real processor, by batch size."""
    options = {"image_root": str(dataset)}
    train = load_train(RecordReader(str(dataset / "train.json"), **options))
    meta, _ = load_meta(RecordReader(str(dataset / "meta.json"), **options))
    train_set = EncodedDataset([[sample] for sample in train], reward_model.encoder)
    meta_set = EncodedDataset([[sample] for sample in meta], reward_model.encoder)
    collate = CollateTrain(DOMAINS)

    def make(batch_size: int, steps: int):
        pick = lambda data, k, step: [data[(k * step + i) * 5 % len(data)] for i in range(k)]  # noqa: E731
        return (
            [collate(pick(train_set, batch_size, step)) for step in range(steps)],
            [collate_meta(pick(meta_set, 3, step)) for step in range(steps)],
        )

    return make
