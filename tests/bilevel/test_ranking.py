"""``--meta_loss rank``: pairs of a right and a wrong chain of one question."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import (
    CollateTrain,
    EncodedDataset,
    QuestionStream,
    batch_loader,
    collate_meta,
)
from reweighting.bilevel.objectives import chain_losses, pair_losses
from reweighting.records.chains import questions_of
from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.records.samples import MetaSample
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from tests.bilevel.test_bilevel import Linear, toy
from tests.bilevel.test_half_precision import weighting_of
from tests.conftest import DOMAINS, TINY


def test_every_pair_of_a_question_counts_and_every_question_alike():
    z = torch.tensor([0.3, 2.0, -1.0, 0.5, 0.1])
    losses = pair_losses(z, torch.tensor([1.0, 0, 0, 1, 1]), torch.tensor([0, 1, 0, 1, 0]))
    loss = lambda right, wrong: math.log1p(math.exp(wrong - right))  # noqa: E731
    by_hand = [(loss(0.3, -1.0) + loss(0.1, -1.0)) / 2, loss(0.5, 2.0)]
    assert losses.tolist() == pytest.approx(by_hand)


def test_what_all_scores_of_a_question_share_changes_nothing():
    z, question = torch.randn(6), torch.tensor([0, 0, 0, 1, 1, 1])
    true_false = torch.tensor([1.0, 0, 0, 1, 1, 0])
    wanted = pair_losses(z, true_false, question)
    shifted = z + torch.tensor([5.0, -3.0])[question]
    torch.testing.assert_close(pair_losses(shifted, true_false, question), wanted)
    assert not torch.allclose(chain_losses(shifted, true_false, "bce"),
                              chain_losses(z, true_false, "bce"))  # fmt: skip
    one_score = pair_losses(torch.full((6,), 0.7), true_false, question)
    assert one_score.tolist() == pytest.approx([math.log(2)] * 2)


def test_saturated_pairs_have_finite_losses():
    z = torch.tensor([-300.0, 300.0], requires_grad=True)
    loss = pair_losses(z, torch.tensor([1.0, 0.0]), torch.tensor([0, 0])).sum()
    loss.backward()
    assert loss.item() == 600 and z.grad.tolist() == [-1, 1]


def chains(*questions: str) -> list[MetaSample]:
    """A question for each string of r (right) and w (wrong), their chains interleaved."""
    found = []
    for place in range(max(map(len, questions))):
        for number, labels in enumerate(questions):
            if place < len(labels):
                prompts = chain_prompts(f"Question {number}", f"Step 1: {place}.")
                found.append(MetaSample(len(found) + 1, prompts, ("a.png",), labels[place] == "r"))
    return found


def test_chains_of_one_question_share_image_and_text():
    samples = chains("rw", "wr", "rrw")
    assert questions_of(samples) == [[0, 3], [1, 4], [2, 5, 6]]
    samples[3].images = ("b.png",)
    assert questions_of(samples) == [[0], [1, 4], [2, 5, 6], [3]]


def test_batches_hold_whole_questions_and_an_epoch_every_question_once():
    samples = chains("rw", "wr", "rrw", "rw", "rwww")
    questions = [tuple(question) for question in questions_of(samples)]
    batches = list(itertools.islice(QuestionStream(samples, 4, seed=1), 60))
    assert all(2 <= sum(map(len, batch)) <= 4 for batch in batches)
    visits = list(itertools.chain(*batches))
    epochs = [visits[start : start + 5] for start in range(0, len(visits) - 4, 5)]
    assert all(sorted(epoch) == sorted(questions) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    for size in (4, 3):
        whole = list(itertools.islice(QuestionStream(samples, size, seed=5), 40))
        late = list(itertools.islice(QuestionStream(samples, size, seed=5, start=17), 23))
        assert late == whole[17:]
    assert list(itertools.islice(QuestionStream(samples, 4, seed=6), 60)) != batches


@pytest.mark.parametrize(
    "labels, size, rights", [("rrrrrwwwwww", 6, 3), ("r" + 9 * "w", 4, 1), (9 * "r" + "ww", 5, 3)]
)
def test_of_a_question_larger_than_a_batch_chains_are_drawn_anew_at_each_visit(
    labels, size, rights
):
    samples = chains(labels)
    drawn = [batch for [batch] in itertools.islice(QuestionStream(samples, size, seed=0), 200)]
    for batch in drawn:
        assert len(set(batch)) == size and list(batch) == sorted(batch)
        assert sum(samples[index].true_false for index in batch) == rights
    counts = Counter(itertools.chain(*drawn))
    assert len(counts) == len(labels)  # all have their turn


def with_rivals(dataset: Path, file: Path) -> Path:
    """The meta set of ``dataset`` with more chains for its questions.

    Of the 24 questions 22 have a right and a wrong chain, the first has four chains, one has a
    right chain only, and one a wrong chain only.
    """
    meta = json.loads((dataset / "meta.json").read_text())
    rivals = []
    for record in meta:
        count = {0: 3, 2: 0, 3: 0}.get(record["id"], 1)
        for number in range(count):
            question, _, response = record["input"].partition("\n\n")
            text = question + "\n\n" + response.replace(" is ", f" has {number} times ", 1)
            right = record["true_false"] == (number == 2)
            rivals.append(record | {"input": text, "true_false": right})
    file.write_text(json.dumps(meta + rivals))
    return file


def ranked_samples(dataset: Path, file: Path) -> list[MetaSample]:
    reader = RecordReader(str(with_rivals(dataset, file)), image_root=str(dataset))
    samples, _ = load_meta(reader)
    both = [q for q in questions_of(samples) if len({samples[i].true_false for i in q}) == 2]
    assert len(both) == 22
    return [samples[index] for index in sorted(itertools.chain(*both))]


def test_the_chains_of_a_question_share_a_prefix_tree(dataset, reward_model, tmp_path):
    samples = ranked_samples(dataset, tmp_path / "meta.json")
    units = [[sample] for sample in samples]
    stream = QuestionStream(samples, 5, seed=0)
    made, sent = (
        next(iter(batch_loader(units, reward_model.encoder, collate_meta, stream, n, False)))
        for n in (0, 1)
    )
    [indices] = itertools.islice(stream, 1)
    expected = [number for number, question in enumerate(indices) for _ in question]
    assert made.question.tolist() == sent.question.tolist() == expected
    assert made.records.tolist() == [samples[i].record for q in indices for i in q]
    assert len(made.prompts.trees) == len(indices)
    alone = EncodedDataset(units, reward_model.encoder)
    with torch.no_grad():
        apart = [reward_model(collate_meta([alone[i]]).prompts) for q in indices for i in q]
        torch.testing.assert_close(
            reward_model(made.prompts), torch.cat(apart), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 0.05}, {"accumulation": 3}],
    ids=["batch", "clipped", "accumulated"],
)
def test_hypergradient_equals_float64_autograd_through_adamw(options):
    torch.manual_seed(0)
    accumulation = options.get("accumulation", 1)
    train, meta = toy(3, 4 * accumulation)
    numbers, labels = (
        torch.tensor([0, 0, 1, 1, 1, 1, 2, 2]),
        torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0]),
    )
    meta = [replace(batch, question=numbers, true_false=labels)
            for batch in itertools.islice(meta, 4)]  # fmt: skip
    engine = build(Linear(), ["a", "b"], [], [], lr=0.05, meta_loss="rank", **options)
    ours, exact = hypergradient_and_oracle(engine, list(train), meta, 4)
    assert exact.abs().max() > 1e-5
    torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("head", ["linear", "plus_minus"])
@pytest.mark.parametrize("kind", ["domain", "table", "net"])
def test_hypergradient_of_the_real_architecture(dataset, reward_model, tmp_path, kind, head):
    model = copy.deepcopy(reward_model)
    if head == "plus_minus":
        torch.manual_seed(0)
        model = RewardModel.from_pretrained(TINY, device="cpu", score_head=head)
    samples = ranked_samples(dataset, tmp_path / "meta.json")
    train = load_train(RecordReader(str(dataset / "train.json"), image_root=str(dataset)))
    train_set = EncodedDataset([[sample] for sample in train], model.encoder)
    meta_set = EncodedDataset([[sample] for sample in samples], model.encoder)
    collate = CollateTrain(DOMAINS)
    batches = [collate([train_set[k * 20 + i] for i in (0, 7, 11, 15)]) for k in range(3)]
    metas = [collate_meta([meta_set[question] for question in questions])
             for questions in itertools.islice(QuestionStream(samples, 6, seed=0), 3)]  # fmt: skip
    engine = build(model, DOMAINS, [], [], lr=1e-4, meta_loss="rank",
                   weighting=weighting_of(kind, batches))  # fmt: skip
    ours, exact = hypergradient_and_oracle(engine, batches, metas, 3)
    assert exact.abs().max() > 1e-9
    assert torch.cosine_similarity(ours, exact, dim=0) >= 0.9999
    assert (ours - exact).norm() / exact.norm() <= 1e-3
