"""Prompts without an image and with several: scores are those of the processor and the model."""

from __future__ import annotations

import functools
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from reweighting.records.steps import Prompt, chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.encoder import INSTRUCTION
from reweighting.reward_model.prefix_tree import pack
from tests.conftest import TINY
from tests.support.backbones import BACKBONES, make_backbone

QUESTIONS = ["Which colour is at row 2, column 3?", "What is the sum of 2 and 3?"]
RESPONSES = [
    "Step 1: row 2, column 3.\nStep 2: it is red.\nStep 3: so red.",
    "Step 1: row 2, column 3.\nStep 2: it is blue.",
]
APART = "llava_onevision-llama"  # has no trees
NAMES = ["qwen2_vl", *BACKBONES]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """The path and the model of a backbone, made once."""
    folder = tmp_path_factory.mktemp("backbones")

    @functools.cache
    def made(name: str, score_head: str):
        path = folder / name
        if name == "qwen2_vl":
            path = TINY
        elif not path.exists():
            make_backbone(name, path)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of separate forwards
            return path, RewardModel.from_pretrained(path, device="cpu", score_head=score_head)

    return made


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Of several shapes, with sides that are whole visual tokens of Qwen, which resizes nothing."""
    pixels = np.random.default_rng(seed)
    shapes = ((84, 84, 3), (112, 56, 3), (56, 112, 3), (28, 28, 3))[:count]
    return [Image.fromarray(pixels.integers(0, 255, shape, dtype=np.uint8)) for shape in shapes]


def cases() -> list[tuple[list[Image.Image], list[Prompt]]]:
    """Text alone, one image, two and three, and text alone again with another question."""
    by_question = [
        [prompt for response in RESPONSES for prompt in chain_prompts(question, response)]
        for question in QUESTIONS
    ]
    several = pictures(4)
    return [
        ([], by_question[0]),
        (several[:1], by_question[0]),
        (several[1:3], by_question[0]),
        ([], by_question[1]),
        ([several[3], several[0], several[2]], by_question[1]),
        (several[2:0:-1], by_question[0]),  # the order counts
    ]


def turns(prompt: Prompt, images: list[Image.Image], score_head: str, system: str) -> list[dict]:
    """The conversation as transformers documents it: images are contents before the text."""
    shown = [{"type": "image", "image": image} for image in images]
    text = lambda role, words: {"role": role, "content": [{"type": "text", "text": words}]}  # noqa: E731
    if score_head == "linear":
        first = text("user", prompt.text)
        return [{**first, "content": shown + first["content"]}]
    steps = [step.strip() for step in prompt.steps]
    first = text("user", f"{prompt.question}\n\n{steps[0]}")
    found = [text("system", system), {**first, "content": shown + first["content"]}]
    for step in steps[1:]:
        found += [text("assistant", "+"), text("user", step)]
    return found


def by_the_book(path, model: RewardModel, score_head: str) -> torch.Tensor:
    """z of every prompt of :func:`cases`: the processor's chat template, the plain model."""
    plain, processor = AutoModelForImageTextToText.from_pretrained(path), AutoProcessor
    processor, rows = processor.from_pretrained(path), []
    for images, prompts in cases():
        encoded = model.encoder.encode(images, prompts)
        for prompt, ids in zip(prompts, encoded.token_ids, strict=True):
            system = INSTRUCTION if images else INSTRUCTION.replace(" about an image", "")
            conversation = turns(prompt, images, score_head, system)
            inputs = processor.apply_chat_template(
                conversation,
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            assert inputs["input_ids"][0].tolist() == ids
            assert ("pixel_values" in inputs) == bool(images)
            with torch.no_grad():
                rows.append(plain(**inputs).logits[0, -1])
    logits = torch.stack(rows)
    if score_head == "linear":
        return model.LN(logits)[:, 0].detach()
    plus, minus = processor.tokenizer.convert_tokens_to_ids(["+", "-"])
    return logits[:, plus] - logits[:, minus]


@pytest.mark.parametrize("score_head", ["linear", "plus_minus"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_processor_and_the_model(load, name, score_head):
    path, model = load(name, score_head)
    assert model.packs_trees == (name != APART)
    expected = by_the_book(path, model, score_head)
    groups = [model.encoder.encode(images, prompts) for images, prompts in cases()]
    together = pack(groups)
    assert len(together.trees) == len(groups)
    with torch.no_grad():
        torch.testing.assert_close(model(together), expected, atol=1e-5, rtol=1e-5)
        sent = pickle.loads(pickle.dumps(together))  # as a data worker sends it
        assert torch.equal(model(sent), model(together))
        alone = torch.cat([model(together.part([n])) for n in range(len(groups))])
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.01
    per = len(expected) // len(groups)
    in_order, reversed_order = expected[2 * per : 3 * per], expected[5 * per :]
    assert not torch.allclose(in_order, reversed_order, atol=1e-4)


def test_a_batch_of_texts_alone_takes_no_pixels_and_gives_the_vision_tower_no_gradient(load):
    _, model = load("qwen2_vl", "linear")
    texts = pack([model.encoder.encode(None, prompts) for images, prompts in cases() if not images])
    assert texts.image_inputs() == {} and texts.images == [{}, {}]
    assert pickle.loads(pickle.dumps(texts)).images == [{}, {}]
    model.zero_grad()
    model(texts).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached and not any("visual" in name for name in reached)


def test_texts_of_one_question_share_a_tree_and_others_do_not(load):
    _, model = load("qwen2_vl", "linear")
    first, other = (chain_prompts(question, RESPONSES[0]) for question in QUESTIONS)
    groups = [model.encoder.encode((), prompts) for prompts in (first, other, first[:2])]
    packed = pack(groups)
    assert len(packed.trees) == 2
    with torch.no_grad():
        scores = model(packed)
        assert torch.equal(scores[-2:], scores[:2])


def test_images_are_told_apart_by_their_list(load):
    _, model = load("qwen2_vl", "linear")
    one, two = pictures(2)
    prompts = chain_prompts(QUESTIONS[0], RESPONSES[0])
    keys = {model.encoder.encode(i, prompts).image_key for i in (one, [one], (one,))}
    assert len(keys) == 1
    others = ([one, two], [two, one], [two], [one, one], None)
    assert len(keys | {model.encoder.encode(i, prompts).image_key for i in others}) == 6


def test_python_users_give_none_one_or_several(load):
    _, model = load("qwen2_vl", "linear")
    one, two = pictures(2)
    question, response = QUESTIONS[0], RESPONSES[0]
    alone, single, both = (model.score(i, question, response) for i in (None, one, [one, two]))
    assert alone != single != both
    assert model.score([one], question, response) == single
    assert model.score([], question, response) == alone
    many = model.log_odds_many([(None, question, [response]), ([one, two], question, [response])])
    for [log_odds], scores in zip(many, (alone, both), strict=True):
        assert torch.sigmoid(torch.tensor(log_odds)).tolist() == pytest.approx(scores, abs=1e-5)
    assert model.select([one, two], question, RESPONSES) in (0, 1)
    assert model.select(None, question, RESPONSES) in (0, 1)
