"""The hypergradient of batches that mix text alone, one image and two."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel import hypergradient
from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.records.reader import RecordReader, load_meta, load_train
from tests.conftest import DOMAINS
from tests.support.mixed import write_mixed


@pytest.fixture(scope="module")
def items(tmp_path_factory, reward_model):
    """Encoded train and meta records by their number of images."""
    folder = write_mixed(tmp_path_factory.mktemp("mixed") / "data")
    options = {"image_root": str(folder)}
    train = load_train(RecordReader(str(folder / "train.json"), **options))
    meta, _ = load_meta(RecordReader(str(folder / "meta.json"), **options))

    def by_images(samples) -> dict[int, list]:
        found = EncodedDataset([[sample] for sample in samples], reward_model.encoder)
        return {
            count: [found[i] for i, sample in enumerate(samples) if len(sample.images) == count]
            for count in range(3)
        }

    return by_images(train), by_images(meta)


def batches(items, train_images: tuple[int, ...], meta_images: tuple[int, ...], steps: int = 3):
    """Batches of records and chains with so many images each."""
    train, meta = items
    pick = lambda data, counts, step: [  # noqa: E731
        data[count][(7 * step + 3 * place) % len(data[count])] for place, count in enumerate(counts)
    ]
    collate = CollateTrain(DOMAINS)
    return (
        [collate(pick(train, train_images, step)) for step in range(steps)],
        [collate_meta(pick(meta, meta_images, step)) for step in range(steps)],
    )


@pytest.mark.parametrize(
    ("train_images", "meta_images"),
    [
        ((0, 1, 2, 0), (0, 1, 2)),
        ((2, 0, 1), (0, 0)),
        ((0, 0, 0), (1, 2)),
        ((0, 0, 0), (0, 0)),
        ((0,), (2, 0)),
    ],
    ids=["mixed", "meta-texts", "train-texts", "texts", "one-text"],
)
def test_hypergradient_equals_float64_autograd(
    reward_model, items, monkeypatch, train_images, meta_images
):
    """Forward mode goes through trees without pixels; the vision tower's gradient may be zero."""
    train, meta = batches(items, train_images, meta_images)
    if len(train_images) > 1:  # so that some records always need forward mode
        for batch in train:
            batch.domains = torch.arange(len(train_images)) % 3
    passed = []
    real = hypergradient.directional_derivatives
    monkeypatch.setattr(
        hypergradient, "directional_derivatives", lambda *a: passed.append(1) or real(*a)
    )
    engine = build(copy.deepcopy(reward_model), DOMAINS, [], [], lr=1e-4)
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert bool(passed) == (len(train_images) > 1)
    assert exact.norm() > 0
    assert torch.cosine_similarity(ours, exact, dim=0) >= 0.9999
    assert (ours - exact).norm() / exact.norm() <= 1e-3
