"""The order of the data, and chains as units."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import is_dataclass
from multiprocessing.reduction import ForkingPickler

import pytest
import torch

from reweighting.bilevel.batches import (
    CollateTrain,
    EncodedDataset,
    ShuffledStream,
    batch_loader,
    collate_meta,
)
from reweighting.records.chains import chains_of
from reweighting.records.reader import RecordReader, load_meta, load_train
from tests.conftest import DOMAINS, REPOSITORY


@pytest.mark.parametrize("size, batch_size", [(10, 3), (7, 7), (3, 8)])
def test_every_item_comes_once_an_epoch_in_batches_of_one_size(size, batch_size):
    batches = list(itertools.islice(ShuffledStream(size, batch_size, seed=1), 2 * size))
    assert {len(batch) for batch in batches} == {batch_size}
    drawn = [index for batch in batches for index in batch]
    epochs = [drawn[start : start + size] for start in range(0, len(drawn) - size + 1, size)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1


def test_a_stream_starts_anywhere_and_depends_on_its_seed():
    whole = list(itertools.islice(ShuffledStream(11, 3, seed=5), 12))
    late = list(itertools.islice(ShuffledStream(11, 3, seed=5, start=7), 5))
    assert late == whole[7:]
    assert list(itertools.islice(ShuffledStream(11, 3, seed=6), 12)) != whole


@pytest.fixture(scope="module")
def samples(dataset):
    return load_train(RecordReader(str(dataset / "train.json"), image_root=str(dataset)))


def test_chains_are_found_from_question_image_and_text_alone(dataset, samples):
    records = json.loads((dataset / "train.json").read_text())
    chains = chains_of(samples)
    assert sorted(index for chain in chains for index in chain) == list(range(len(samples)))
    for chain in chains:
        assert len({records[index]["id"] for index in chain}) == 1
        assert [records[index]["sid"] for index in chain] == list(range(1, len(chain) + 1))
    assert len(chains) == len({record["id"] for record in records})


def test_two_chains_of_one_question_stay_apart(tmp_path):
    steps = ["Step 1: a.", "Step 1: b.", "Step 1: a.\nStep 2: c.", "Step 1: b.\nStep 2: d."]
    image = str(next((REPOSITORY / "data" / "images" / "train").iterdir()))
    path = tmp_path / "train.json"
    record = {"input": "Q", "image_path": image, "dataset": "x", "accuracy": 0.5}
    path.write_text(json.dumps([record | {"add": add} for add in steps]))
    samples = load_train(RecordReader(str(path), allow_external_images=True))
    assert chains_of(samples) == [[0, 2], [1, 3]]


def test_a_chain_is_one_tree_with_the_losses_of_its_records(reward_model, samples):
    collate = CollateTrain(DOMAINS)
    chains = [[samples[index] for index in chain] for chain in chains_of(samples)[:3]]
    together = EncodedDataset(chains, reward_model.encoder)
    alone = EncodedDataset([[s] for chain in chains for s in chain], reward_model.encoder)
    cot = collate([together[index] for index in range(len(together))])
    records = collate([alone[index] for index in range(len(alone))])
    assert cot.records.tolist() == records.records.tolist()
    assert len(cot.prompts.input_ids) < 0.6 * cot.prompts.prompt_tokens
    singles = [collate([alone[index]]) for index in range(len(alone))]
    with torch.no_grad():
        one_by_one = torch.cat([reward_model(batch.prompts) for batch in singles])
        torch.testing.assert_close(reward_model(cot.prompts), one_by_one, atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", ["train", "meta"])
def test_a_batch_comes_from_a_worker_as_it_was_made(dataset, reward_model, samples, level):
    """Images of several sizes; they alone go through shared memory."""
    if level == "train":
        units, collate = [[sample] for sample in samples], CollateTrain(DOMAINS)
    else:
        meta, _ = load_meta(RecordReader(str(dataset / "meta.json"), image_root=str(dataset)))
        units, collate = [[sample] for sample in meta], collate_meta
    made, sent = (
        next(iter(batch_loader(units, reward_model.encoder, collate, stream, workers, False)))
        for stream, workers in [(ShuffledStream(len(units), 5, seed=0), n) for n in (0, 1)]
    )
    assert len({len(image["pixel_values"]) for image in made.prompts.images}) > 1
    assert flat(sent) == flat(made)
    shared = []

    def note(tensor: torch.Tensor) -> tuple:
        shared.append(tensor.shape)
        return int, ()

    pickler = ForkingPickler(io.BytesIO())
    pickler.dispatch_table = pickler.dispatch_table | {torch.Tensor: note}
    pickler.dump(made)
    assert shared == [made.prompts.image_inputs()["pixel_values"].shape]


def flat(value) -> list:
    """All that is in a batch."""
    if isinstance(value, torch.Tensor):
        return [value.dtype, value.tolist()]
    if isinstance(value, dict):
        return [name for pair in value.items() for name in (pair[0], flat(pair[1]))]
    if isinstance(value, list):
        return [flat(item) for item in value]
    return flat(vars(value)) if is_dataclass(value) else [value]
