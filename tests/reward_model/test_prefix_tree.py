"""Packed prefix trees against one forward per prompt."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from reweighting.reward_model.prefix_tree import Tree, ancestors, build_trie, pack
from tests.conftest import TINY

QUESTION = "Which colour is at row 2, column 3?"
STEPS = "Step 1: row 2, column 3.\nStep 2: it is red.\nStep 3: so red.\nFinal answer: red"


def test_a_trie_shares_what_is_equal_and_keeps_who_sees_whom():
    prompts = [[1, 2, 3], [1, 2, 4, 5], [1, 2, 3], [9]]
    nodes, depths, paths, branches = build_trie(prompts)
    assert nodes == [1, 2, 3, 4, 5, 9]
    assert depths == [0, 1, 2, 2, 3, 0]
    assert paths == [[0, 1, 2], [0, 1, 3, 4], [0, 1, 2], [5]]
    assert branches == [(-1, 3), (1, 2), (-1, 1)]
    tree = Tree(0, 6, prompts[1], branches, sorted(path[-1] for path in paths))
    seen = [ancestors(branches)[node].nonzero().flatten().tolist() for node in range(6)]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5]]
    assert [tree.path(node) for node in range(6)] == seen
    assert not tree.is_chain
    assert Tree(0, 3, [], build_trie([[1, 2], [1, 2, 3]])[3], [1, 2]).is_chain  # needs no mask


@pytest.fixture(scope="module")
def groups(reward_model):
    from reweighting.records.steps import Prompt, chain_prompts

    pixels = np.random.default_rng(0)
    images = [
        Image.fromarray(pixels.integers(0, 255, size, dtype=np.uint8))
        for size in ((84, 84, 3), (112, 84, 3), (140, 56, 3))
    ]
    prompts = [
        chain_prompts(QUESTION, STEPS),
        [Prompt(QUESTION, ("Step 1: something shorter.",))],
        [*chain_prompts(QUESTION, STEPS.replace("red", "blue")), Prompt("no step at all")],
    ]
    return [
        (image, texts, reward_model.encoder.encode(image, texts))
        for image, texts in zip(images, prompts, strict=True)
    ]


def separate_log_odds(reward_model, base_model, groups) -> torch.Tensor:
    """z by the published recipe: one forward a prompt, full logits, no packing."""
    processor = reward_model.encoder.processor
    rows = []
    for image, texts, _ in groups:
        for prompt in texts:
            turn = [{"type": "image"}, {"type": "text", "text": prompt.text}]
            chat = processor.apply_chat_template(
                [{"role": "user", "content": turn}], tokenize=False, add_generation_prompt=True
            )
            inputs = processor(text=[chat], images=[image], return_tensors="pt")
            rows.append(base_model(**inputs).logits[0, -1])
    return reward_model.LN(torch.stack(rows))[:, 0]


def test_scores_and_gradients_equal_separate_forwards(reward_model, groups):
    reference = AutoModelForImageTextToText.from_pretrained(TINY)
    head = copy.deepcopy(reward_model.LN)
    packed = pack([encoded for _, _, encoded in groups])
    assert len(packed.input_ids) < packed.prompt_tokens

    ours = reward_model(packed)
    theirs = separate_log_odds(reward_model, reference, groups)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    reward_model.zero_grad()
    (ours * torch.linspace(-1, 1, len(ours))).sum().backward()
    ours_gradients = {n: p.grad for n, p in reward_model.base_model.named_parameters()}
    head_gradient = reward_model.LN.weight.grad
    reward_model.LN.weight.grad = None
    (theirs * torch.linspace(-1, 1, len(theirs))).sum().backward()
    for name, parameter in reference.named_parameters():
        error = (ours_gradients[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-4, (name, error)
    expected = reward_model.LN.weight.grad
    assert (head_gradient - expected).norm() / expected.norm() < 1e-4
    assert torch.equal(head.weight, reward_model.LN.weight)
    reward_model.zero_grad()


def test_a_causal_mask_alone_would_be_noticed(reward_model, groups):
    """The comparison above can fail: without the tree mask the scores are others."""
    packed = pack([encoded for _, _, encoded in groups])
    with torch.no_grad():
        right = reward_model(packed)
        packed.trees = [replace(t, branches=[(-1, t.end - t.start)]) for t in packed.trees]
        wrong = reward_model(packed)
    assert (right - wrong).abs().max() > 1e-3


def test_a_batch_gives_the_losses_of_its_samples_one_by_one(reward_model, groups):
    encoded = [group for _, _, group in groups]
    with torch.no_grad():
        together = reward_model(pack(encoded))
        alone = torch.cat([reward_model(pack([group])) for group in encoded])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_equal_images_are_computed_once(reward_model, groups):
    """Records of one image share its tree, and the order of the prompts is kept."""
    first, second = groups[0][2], groups[2][2]
    packed = pack([first, second, first])
    assert len(packed.images) == 2
    with torch.no_grad():
        scores = reward_model(packed)
    count = len(first.token_ids)
    torch.testing.assert_close(scores[:count], scores[-count:], atol=1e-6, rtol=0)


def test_part_of_a_batch_scores_as_within_it(reward_model, groups):
    packed = pack([encoded for _, _, encoded in groups])
    part = packed.part([0, 2])
    chosen = packed.tree_of_prompt() != 1
    assert part.tree_of_prompt().tolist() == [0] * 3 + [1] * 4
    assert part.prompt_tokens == pack([groups[0][2], groups[2][2]]).prompt_tokens
    with torch.no_grad():
        torch.testing.assert_close(reward_model(part), reward_model(packed)[chosen])


def test_bf16_scores_stay_close(reward_model, groups):
    packed = pack([encoded for _, _, encoded in groups])
    with torch.no_grad():
        exact = torch.sigmoid(reward_model(packed))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = torch.sigmoid(reward_model(packed))
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() <= 2e-2


def test_score_returns_one_value_a_step(reward_model, groups):
    scores = reward_model.score(groups[0][0], QUESTION, STEPS)
    with torch.no_grad():
        expected = torch.sigmoid(reward_model(pack([groups[0][2]])))
    assert scores == pytest.approx(expected.tolist(), abs=1e-6)
