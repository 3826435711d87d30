"""The reward model from Python: what it takes, what it refuses, and what it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reweighting.records import steps as step_limit
from reweighting.records.images import to_pixels
from reweighting.records.steps import Prompt
from reweighting.reward_model import RewardModel
from reweighting.reward_model import network as module
from reweighting.reward_model.aggregation import AGGREGATIONS, aggregate
from reweighting.reward_model.encoder import response_prompts
from reweighting.reward_model.prefix_tree import pack
from reweighting.system.checkpoints.finding import CheckpointError
from tests.conftest import TINY

QUESTION = "Which colour is it?"
STEPS = ["Step 1: it is large.", "Step 2: it is red."]
RESPONSES = ["\n".join(STEPS), "Step 1: it is large.\nStep 2: it is blue.\nStep 3: so blue."]
PIXELS = np.random.default_rng(0).integers(0, 256, (84, 56, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)


def test_every_way_to_give_an_image_gives_the_same_scores(reward_model, tmp_path):
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    expected = reward_model.score(path, QUESTION, RESPONSES[0])
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for image in (str(path), path.read_bytes(), PICTURE, PIXELS, tensor, tensor.double() / 255):
        assert reward_model.score(image, QUESTION, RESPONSES[0]) == expected


def test_steps_may_be_given_apart(reward_model):
    whole = reward_model.log_odds(PICTURE, QUESTION, RESPONSES[:1])
    assert reward_model.log_odds(PICTURE, QUESTION, [STEPS]) == whole
    assert reward_model.score(PICTURE, QUESTION, STEPS) == reward_model.score(
        PICTURE, QUESTION, RESPONSES[0]
    )
    assert len(reward_model.score(PICTURE, QUESTION, ["no", "marker", "at all"])) == 3


@pytest.mark.parametrize("apart", [True, False])
def test_a_response_has_so_many_steps_at_most(reward_model, monkeypatch, apart):
    monkeypatch.setattr(step_limit, "MAX_STEPS", 3)

    def response(count: int):
        steps = [f"Step {k}: it is red." for k in range(1, count + 1)]
        return steps if apart else "\n".join(steps)

    assert len(reward_model.score(PICTURE, QUESTION, response(3))) == 3
    said = "response 2 has 4 steps, at most 3 can be scored"
    with pytest.raises(ValueError, match=rf"^{said}"):
        reward_model.log_odds(PICTURE, QUESTION, [response(1), response(4)])
    with pytest.raises(ValueError, match=rf"^item 1: {said}"):
        reward_model.log_odds_many([(PICTURE, QUESTION, [response(1), response(4)])])
    with pytest.raises(ValueError, match=r"^has 4 steps"):
        response_prompts(QUESTION, response(4))


def test_tags_of_the_image_are_left_out_as_in_training(reward_model):
    expected = reward_model.log_odds(PICTURE, QUESTION, RESPONSES)
    assert reward_model.log_odds(PICTURE, f"<image>\n{QUESTION}", RESPONSES) == expected


def test_an_empty_response_has_no_steps_and_loses(reward_model):
    assert reward_model.log_odds(PICTURE, QUESTION, ["", *RESPONSES, " \n", []])[0::3] == [[], []]
    assert reward_model.score(PICTURE, QUESTION, "") == []
    assert reward_model.select(PICTURE, QUESTION, ["", RESPONSES[0]]) == 1
    assert reward_model.chain_score(PICTURE, QUESTION, "") == -float("inf")


@pytest.mark.parametrize(
    "token",
    ["<|image_pad|>", "<|vision_start|>", "<|video_pad|>", "<|endoftext|>", "<|vision_pad|>"],
)
def test_control_tokens_are_named(reward_model, token):
    with pytest.raises(ValueError, match="the question holds the control token") as error:
        reward_model.score(PICTURE, f"see {token}", RESPONSES[0])
    assert token in str(error.value)
    with pytest.raises(ValueError, match="response 2 holds the control token"):
        reward_model.log_odds(PICTURE, QUESTION, [RESPONSES[0], f"Step 1: {token}"])
    with pytest.raises(ValueError, match="response 1: step 2 holds the control token"):
        reward_model.score(PICTURE, QUESTION, ["a", token])


def test_tokens_that_the_tokenizer_alone_knows_are_named_too():
    """No list of ours holds them: they are the checkpoint's own."""
    model = RewardModel.from_pretrained(TINY, device="cpu")
    model.encoder.processor.tokenizer.add_special_tokens({"extra_special_tokens": ["[JUDGE]"]})
    with pytest.raises(ValueError, match=r"response 1 holds the control token \[JUDGE\]"):
        model.score(PICTURE, QUESTION, "Step 1: a [JUDGE] b")


def test_wrong_arguments_are_told_what_is_accepted(reward_model):
    with pytest.raises(TypeError, match="NoneType: an image is a path, an http"):
        reward_model.score([None], QUESTION, RESPONSES[0])
    with pytest.raises(ValueError, match="there are no responses to select from"):
        reward_model.select(PICTURE, QUESTION, [])
    with pytest.raises(TypeError, match="responses must be a list of responses, is str"):
        reward_model.log_odds(PICTURE, QUESTION, RESPONSES[0])
    with pytest.raises(TypeError, match="the question must be text, is NoneType"):
        reward_model.score(PICTURE, None, RESPONSES[0])
    with pytest.raises(TypeError, match="response 1 must be text, is int"):
        reward_model.score(PICTURE, QUESTION, 7)
    with pytest.raises(ValueError, match="holds half of a surrogate pair"):
        reward_model.score(PICTURE, QUESTION, "Step 1: \ud83d")
    with pytest.raises(TypeError, match="responses must be a list of responses, is generator"):
        reward_model.select(PICTURE, QUESTION, (response for response in RESPONSES))
    for item in ((PICTURE, QUESTION), "abc", None, (PICTURE, QUESTION, RESPONSES, 1)):
        with pytest.raises(TypeError, match="item 2 must be an image, a question and its resp"):
            reward_model.log_odds_many([(PICTURE, QUESTION, RESPONSES), item])
    with pytest.raises(ValueError, match="aggregation 'median' is none of mean_log_odds"):
        reward_model.select(PICTURE, QUESTION, RESPONSES, aggregation="median")


def test_many_questions_score_as_they_do_alone(reward_model):
    """Some pictures are made on the fly and take each other's place in memory."""
    items = [
        (Image.new("RGB", (28 + 28 * (n % 3), 56), (4 * n, 0, 0)), f"{QUESTION} {n}", RESPONSES)
        for n in range(12)
    ]
    items.append((PIXELS, QUESTION, [STEPS, ""]))
    alone = [reward_model.log_odds(*item) for item in items]
    for tokens in (50, 600, 8192):  # a tree a response; some together; all together
        together = reward_model.log_odds_many(iter(items), max_tokens_per_batch=tokens)
        assert [[len(z) for z in question] for question in together] == [[2, 3]] * 12 + [[2, 0]]
        for ours, theirs in zip(together, alone, strict=True):
            for z, expected in zip(ours, theirs, strict=True):
                assert z == pytest.approx(expected, abs=1e-5)
    assert reward_model.log_odds_many([]) == []
    with pytest.raises(ValueError, match="item 2: the question holds the control token"):
        reward_model.log_odds_many([items[0], (PICTURE, "<|im_end|>", RESPONSES)])


ITEMS = [
    (PICTURE, QUESTION, RESPONSES),
    (None, f"<image>\n{QUESTION}", [STEPS, "", RESPONSES[1] + "\nFinal answer: blue"]),
    ([PICTURE, PIXELS], QUESTION, RESPONSES[:1]),
    (PICTURE, QUESTION, []),
]


@pytest.mark.parametrize("tokens", [50, 8192])
def test_rows_of_many_questions_are_those_of_each(reward_model, tokens):
    rows = reward_model.score_many(iter(ITEMS), "min", max_tokens_per_batch=tokens)
    steps = reward_model.steps_many(iter(ITEMS), max_tokens_per_batch=tokens)
    assert [(row["item"], row["response"]) for row in rows] == [
        *((0, 0), (0, 1), (1, 0), (1, 1), (1, 2), (2, 0))
    ]
    for row in rows:
        image, question, responses = ITEMS[row["item"]]
        response = responses[row["response"]]
        alone = reward_model.score(image, question, response)
        assert row["scores"] == pytest.approx(alone, abs=1e-5) and row["steps"] == len(alone)
        chain_score = reward_model.chain_score(image, question, response, "min")
        assert row["chain_score"] == pytest.approx(chain_score, abs=1e-5)
        chosen = reward_model.select(image, question, responses, "min")
        assert row["chosen"] is (row["response"] == chosen)
        own = [s for s in steps if (s["item"], s["response"]) == (row["item"], row["response"])]
        known = reward_model.steps(image, question, response)
        assert [s["number"] for s in own] == list(range(1, len(known) + 1))
        assert [s["step"] for s in own] == [k["step"] for k in known]
        for name in ("log_odds", "score"):
            assert [s[name] for s in own] == pytest.approx([k[name] for k in known], abs=1e-5)
    assert len(steps) == sum(row["steps"] for row in rows) == 12
    # A table as such: every row has the same columns.
    assert len({tuple(row) for row in rows}) == len({tuple(row) for row in steps}) == 1


def test_questions_share_forward_passes_up_to_a_number_of_tokens(reward_model):
    sizes = []
    hook = reward_model.register_forward_hook(lambda _, args, __: sizes.append(args[0]))
    items = [(PICTURE, f"{QUESTION} {number}", RESPONSES) for number in range(12)]
    try:
        reward_model.score_many(items)
        assert [len(packed.trees) for packed in sizes] == [12]
        tokens = len(sizes.pop().input_ids)
        reward_model.steps_many(items, max_tokens_per_batch=tokens // 3)
    finally:
        hook.remove()
    assert 3 <= len(sizes) <= 4 and sum(len(packed.trees) for packed in sizes) == 12
    assert all(len(packed.input_ids) <= tokens // 3 for packed in sizes)


def test_errors_of_many_questions_name_the_item(reward_model, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    wrong = [(str(tmp_path / "none.png"), OSError), (str(broken), OSError)]
    wrong += [(7, TypeError), (np.zeros((3, 3)), ValueError), ("data:,x", ValueError)]
    for image, kind in wrong:
        items = [ITEMS[0], (image, QUESTION, RESPONSES)]
        for method in (reward_model.score_many, reward_model.steps_many):
            with pytest.raises(kind, match=r"^item 2: "):
                method(items)
    with pytest.raises(ValueError, match="aggregation 'median' is none of"):
        reward_model.score_many(ITEMS, "median")
    with pytest.raises(TypeError, match="item 2: responses must be a list of responses"):
        reward_model.steps_many([ITEMS[0], (PICTURE, QUESTION, "Step 1: a")])


def test_temporary_pictures_do_not_share_a_tree(reward_model):
    """Each takes the place, and the id(), of the one before; images of their own are the truth."""

    def picture(n: int) -> Image.Image:
        return Image.new("RGB", (56, 56), (4 * n, 255 - 4 * n, 4 * n))

    kept = [picture(n) for n in range(60)]
    expected = [reward_model.score(image, QUESTION, "a")[0] for image in kept]
    assert len(set(expected)) == 60
    assert [reward_model.score(picture(n), QUESTION, "a")[0] for n in range(60)] == expected
    items = ((picture(n), QUESTION, ["a"]) for n in range(60))
    together = [z for [[z]] in reward_model.log_odds_many(items)]
    assert torch.sigmoid(torch.tensor(together)).tolist() == pytest.approx(expected, abs=1e-6)
    prompts = [Prompt(QUESTION, ("a",))]
    packed = pack([reward_model.encoder.encode(picture(n), prompts) for n in range(60)])
    assert len(packed.trees) == 60
    with torch.no_grad():
        scores = torch.sigmoid(reward_model(packed))
    assert scores.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_table_of_steps(reward_model):
    rows = reward_model.steps(PICTURE, QUESTION, RESPONSES[0] + "\nFinal answer: red")
    assert [row["step"] for row in rows] == STEPS
    [log_odds] = reward_model.log_odds(PICTURE, QUESTION, RESPONSES[:1])
    assert [row["log_odds"] for row in rows] == log_odds
    assert [row["score"] for row in rows] == reward_model.score(PICTURE, QUESTION, RESPONSES[0])
    assert reward_model.steps(PICTURE, QUESTION, STEPS) == rows


def test_the_choice_follows_the_aggregation(reward_model):
    """Of enough chains, different aggregations choose different ones."""
    chains = ["\n".join(f"Step {k}: word {n * k}" for k in range(1, 2 + n)) for n in range(1, 9)]
    log_odds = reward_model.log_odds(PICTURE, QUESTION, chains)
    chosen = {}
    for name in AGGREGATIONS:
        scores = [aggregate(z, name) for z in log_odds]
        chosen[name] = reward_model.select(PICTURE, QUESTION, chains, aggregation=name)
        assert chosen[name] == scores.index(max(scores))
        assert reward_model.chain_score(PICTURE, QUESTION, chains[0], name) == pytest.approx(
            scores[0], abs=1e-5
        )
    assert reward_model.select(PICTURE, QUESTION, chains) == chosen["mean_log_odds"]
    assert len(set(chosen.values())) > 1


def test_transparency_of_a_picture_in_memory_is_white(reward_model):
    clear = Image.new("LA", (56, 56), (0, 0))
    assert to_pixels(clear).getpixel((0, 0)) == (255, 255, 255)
    white = reward_model.score(Image.new("RGB", (56, 56), "white"), QUESTION, "a")
    assert reward_model.score(clear, QUESTION, "a") == white


def test_the_default_device_is_the_accelerator_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert RewardModel.from_pretrained(TINY).device.type == expected


@pytest.mark.parametrize("spoilt", ["embedding", "head"])
@pytest.mark.parametrize("trees", [True, False])
def test_a_model_without_finite_scores_is_not_opened(tmp_path, monkeypatch, spoilt, trees):
    """With packed trees and, as of other architectures, with separate forwards."""
    monkeypatch.setattr(module, "packs_trees", lambda config: trees)
    model = RewardModel.from_pretrained(TINY, device="cpu", fresh_head=True)
    with torch.no_grad():
        if spoilt == "head":
            model.LN.weight.fill_(torch.nan)
        else:
            model.base_model.get_input_embeddings().weight.fill_(torch.nan)
    path = tmp_path / "spoilt"
    path.mkdir()
    model.save_pretrained(path)
    with pytest.raises(CheckpointError, match=f"^{path}: gives no finite score"):
        RewardModel.from_pretrained(path, device="cpu")
