"""Rewards: the rules, and calls as TRL and verl make them."""

from __future__ import annotations

import functools
import importlib
import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from reweighting.reward_model import RewardModel
from reweighting.reward_model.aggregation import AGGREGATIONS
from reweighting.rewards import trl_reward
from reweighting.rewards.judging import Asked, Rule, drops, judge, ps_grpo, right_answers
from reweighting.rewards.trl import _images, _said
from tests.conftest import REPOSITORY

# What a real GRPOTrainer of TRL 1.16.0 passed for two questions with two completions each, with
# the tiny reasoner; images and objects are described.
RECORDED = Path(__file__).with_name("trl_arguments.json")
CHAIN = "Step 1: look.\nStep 2: it is {}.\nFinal answer: {}"


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (84, 84, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def recorded() -> dict:
    """The arguments, with a picture for each question in the place of the described ones."""
    pictures = {}

    def restored(value, question):
        if isinstance(value, dict) and "<PIL image>" in value:
            return pictures.setdefault(question, picture(len(pictures), value["mode"]))
        if isinstance(value, dict):
            return {name: restored(inner, question) for name, inner in value.items()}
        if isinstance(value, list):
            return [restored(inner, question) for inner in value]
        return value

    found = json.loads(RECORDED.read_text(encoding="utf-8"))
    for name in ("prompts", "image"):
        pairs = zip(found[name], found["question"], strict=True)
        found[name] = [restored(value, question) for value, question in pairs]
    logged: dict[str, list] = {}
    found["log_extra"] = lambda name, values: logged.setdefault(name, []).extend(values)
    found["log_metric"] = lambda name, value: logged.setdefault(name, []).append(value)
    return found | {"logged": logged}


def call(reward, without: tuple[str, ...] = (), **changes):
    """The rewards of the recorded batch, and what was logged."""
    arguments = {k: v for k, v in {**recorded(), **changes}.items() if k not in without}
    logged = arguments.pop("logged")
    return reward(**arguments), logged


def test_a_drop_is_relative_to_the_step_before():
    assert drops([0.9, 0.7]) is False
    assert drops([1.0, 0.7]) and drops([0.2, 0.9, 0.5, 0.6])
    assert drops([0.1, 0.07 - 1e-9]) and not drops([0.1, 0.0701])
    assert drops([0.9, 0.7], 0.2) and not drops([0.3, 0.9]) and not drops([0.4]) and not drops([])


def test_ps_grpo_halves_the_outcome():
    assert [ps_grpo(*case) for case in [(True, False), (True, True)]] == [1.0, 0.5]
    assert [ps_grpo(*case) for case in [(False, False), (False, True)]] == [0.0, 0.0]
    assert ps_grpo(None, False) is None
    z = [2.0, -2.0]
    assert Rule("ps_grpo").judge(z, True).reward == 0.5
    assert Rule("ps_grpo", drop=0.9).judge(z, True).reward == 1.0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_aggregate_lies_between_0_and_1(aggregation):
    v = [1 / (1 + math.exp(-z)) for z in (2.0, -0.5, 1.0)]
    expected = {
        "mean_log_odds": 1 / (1 + math.exp(-2.5 / 3)),
        "sum_log_odds": 1 / (1 + math.exp(-2.5)),
        "mean": sum(v) / 3,
        "min": v[1],
        "max": v[0],
        "product": math.prod(v),
        "last": v[2],
    }[aggregation]
    judged = Rule(aggregation=aggregation).judge([2.0, -0.5, 1.0], None)
    assert judged.reward == judged.aggregate == pytest.approx(expected, abs=1e-6)
    assert Rule(aggregation=aggregation).judge([], None).reward == 0.0


def test_trl_gets_a_reward_for_every_completion(reward_model):
    rewards, logged = call(trl_reward(reward_model))
    given = recorded()
    scores = [
        reward_model.score(image, question, completion[-1]["content"])
        for image, question, completion in zip(
            given["image"], given["question"], given["completions"], strict=True
        )
    ]
    z = [torch.tensor(v, dtype=torch.float64).logit().mean() for v in scores]
    assert rewards == pytest.approx(torch.stack(z).sigmoid().tolist(), abs=1e-5)
    steps = logged["process_aggregate/step_scores"]
    assert [len(v) for v in steps] == [5] * 4
    assert np.array(steps) == pytest.approx(np.array(scores), abs=1e-5)
    assert logged["process_aggregate/aggregate"] == [pytest.approx(np.mean(rewards))]
    assert logged["process_aggregate/right"] == [0.0], "as the recorded answers are"


def test_trl_and_ps_grpo(reward_model):
    reward = trl_reward(reward_model, rule="ps_grpo", drop=1.0)
    assert reward.__name__ == "process_ps_grpo"
    rewards, logged = call(reward, answer=["7", "7", "red", "black"])
    assert rewards == [1.0, 1.0, 1.0, 0.0] and logged["process_ps_grpo/right"] == [0.75]
    assert call(reward, answer=["7", None, "red", None])[0] == [1.0, None, 1.0, None]
    dropping = trl_reward(reward_model, rule="ps_grpo", drop=1e-6)
    dropped = [drops(v, 1e-6) for v in call(dropping)[1]["process_ps_grpo/step_scores"]]
    assert any(dropped)
    rewards, logged = call(dropping, answer=["7", "7", "red", "purple"])
    assert rewards == [0.5 if found else 1.0 for found in dropped]
    assert logged["process_ps_grpo/dropped"] == [pytest.approx(np.mean(dropped))]
    with pytest.raises(ValueError, match="needs a column 'answer'"):
        call(reward, without=("answer",))


def test_where_trl_has_question_and_images(reward_model):
    reward = trl_reward(reward_model)
    usual, _ = call(reward)
    assert call(reward, without=("image",))[0] == usual, "those in the prompt are the same"
    images = [[image] for image in recorded()["image"]]
    assert call(reward, without=("image",), images=images)[0] == usual
    assert call(reward, image=[None] * 4)[0] != usual
    whole, _ = call(reward, without=("question", "log_extra", "log_metric"))
    questions = [f"{text}\n\nAnswer step by step." for text in recorded()["question"]]
    assert whole == call(reward, question=questions)[0] != usual
    plain = [prompt[0]["content"][1]["text"] for prompt in recorded()["prompts"]]
    said = [completion[0]["content"] for completion in recorded()["completions"]]
    assert call(reward, without=("question",), prompts=plain, completions=said)[0] == whole


def test_settings_that_do_not_exist_are_refused(reward_model):
    for settings, said in [
        ({"rule": "best"}, "rule 'best' is none of aggregate, ps_grpo"),
        ({"aggregation": "median"}, "aggregation 'median' is none of"),
        ({"drop": 0.0}, r"drop must lie in \(0, 1\], is 0.0"),
    ]:
        with pytest.raises(ValueError, match=said):
            trl_reward(reward_model, **settings)


def test_what_cannot_be_scored_gets_nothing_and_stops_nothing(reward_model):
    responses = [
        CHAIN.format("red", "red"),
        "Step 1: <|vision_start|> Final answer: red",
        "\n".join(f"Step {k}: on." for k in range(1, 1002)) + "\nFinal answer: red",
        "",
        CHAIN.format("blue", "blue"),
    ]
    asked = [Asked([picture()], "Which colour?", text, "red") for text in responses]
    found = judge(reward_model, asked, Rule())
    assert [len(one.scores) for one in found] == [2, 0, 0, 0, 2]
    assert [one.right for one in found] == [True, True, True, False, False]
    assert [one.reward > 0 for one in found] == [True, False, False, False, True]
    alone = reward_model.score(picture(), "Which colour?", responses[4])
    assert found[4].scores == pytest.approx(alone, abs=1e-5)
    with pytest.raises(ValueError, match="control token"):
        judge(reward_model, [Asked([picture()], "<|im_end|>", "Step 1: a")], Rule())


@pytest.fixture(scope="module")
def run(reward_model, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("rewards")
    reward_model.save_pretrained(folder / "run")
    for seed in range(3):
        picture(seed).save(folder / f"{seed}.png")
    return str(folder / "run")


def as_verl(run: str, **settings):
    """The function as verl 0.9.1 loads it by its name, with the configured arguments."""
    function = importlib.import_module("reweighting.rewards.verl").compute_score
    return functools.partial(function, weights_path=run, device="cpu", **settings)


def call_as_verl(score, response: str, truth: object, **about):
    """As ``NaiveRewardManager.run_single`` calls it."""
    extra = {"num_turns": np.int32(2), "rollout_reward_scores": {}, **about}
    return score(data_source="x", solution_str=response, ground_truth=truth, extra_info=extra)


def test_verl_gets_numbers_it_can_stack(run):
    model = RewardModel.from_pretrained(run, device="cpu").eval()
    image = str(Path(run).parent / "1.png")
    about = {"question": "Which colour?", "images": np.array([image], dtype=object)}
    score = as_verl(run, drop=1.0)
    found = [
        call_as_verl(score, CHAIN.format("red", "red"), "red", **about),
        call_as_verl(score, "", "red", **about),
        call_as_verl(score, CHAIN.format("(A)", "A"), "red", **about, choices=["red", "blue"]),
    ]
    expected = model.score(image, "Which colour?", CHAIN.format("red", "red"))
    assert json.loads(found[0]["step_scores"]) == pytest.approx(expected, abs=1e-4)
    assert found[0]["lowest"] == pytest.approx(min(expected), abs=1e-5)
    assert [one["score"] for one in found] == [1.0, 0.0, 1.0]
    assert [one["acc"] for one in found] == [1.0, 0.0, 1.0] and found[1]["step_scores"] == "[]"
    for name in found[0]:  # as verl puts those of a batch together
        assert np.array([one[name] for one in found]).shape == (3,)


def test_verl_without_the_right_answer(run):
    about = {"question": "Which colour?"}
    found = call_as_verl(as_verl(run, rule="aggregate"), CHAIN.format("a", "a"), None, **about)
    assert "acc" not in found and 0 < found["score"] == found["aggregate"] < 1
    last = as_verl(run, rule="aggregate", aggregation="last")
    last_found = call_as_verl(last, CHAIN.format("a", "a"), "", **about)
    assert last_found["score"] == pytest.approx(json.loads(found["step_scores"])[-1], abs=1e-4)
    with pytest.raises(ValueError, match="needs the right answer"):
        call_as_verl(as_verl(run), "Step 1: a", "", **about)
    with pytest.raises(ValueError, match="needs the 'question'"):
        call_as_verl(as_verl(run), "Step 1: a", "a")


def test_verl_from_many_threads_and_with_images_as_bytes(run):
    score = as_verl(run, rule="aggregate")
    paths = [str(Path(run).parent / f"{number % 3}.png") for number in range(12)]

    def ask(image):
        about = {"question": "Which colour?", "images": [image]}
        return call_as_verl(score, CHAIN.format("red", "red"), "red", **about)

    alone = [ask(path) for path in paths]
    assert len({one["score"] for one in alone}) == 3
    with ThreadPoolExecutor(8) as pool:
        bodies = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
        assert list(pool.map(ask, bodies)) == alone


def test_neither_library_is_imported():
    check = (
        "import sys, reweighting.rewards.trl, reweighting.rewards.verl\n"
        "sys.exit(str({'trl', 'verl', 'datasets'} & set(sys.modules) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.strip() == "", done.stderr


def test_a_real_trainer_calls_it(reward_model, tmp_path, monkeypatch):
    pytest.importorskip("trl", reason="pip install trl")
    from benchmarks.grpo import make_trainer, rows

    monkeypatch.chdir(REPOSITORY)
    reward = trl_reward(reward_model, rule="ps_grpo")
    train = rows(tmp_path, "train", 2)
    settings = {"max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 4}
    trainer = make_trainer(tmp_path, reward, train, [], **settings)
    before = [value.clone() for value in trainer.model.parameters()]
    trainer.train()
    [line] = [line for line in trainer.state.log_history if "reward" in line]
    assert 0 <= line["reward"] <= line["process_ps_grpo/right"] <= 1
    assert line["rewards/process_ps_grpo/mean"] == pytest.approx(line["reward"])
    moved = [not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)]
    assert any(moved) or line["reward_std"] == 0


@pytest.mark.parametrize(
    ("held", "known"),
    [
        ("green", ["green"]),
        (5, ["5"]),
        (["green", "verde"], ["green", "verde"]),
        (np.array(["green"]), ["green"]),
        (None, []),
        ("", []),
        ([""], []),
    ],
)
def test_a_data_set_may_hold_right_answers_in_any_of_these_ways(held, known):
    assert right_answers(held) == known


def test_an_answer_of_another_kind_is_named():
    with pytest.raises(TypeError, match="not dict"):
        right_answers({"target": "green"})


def test_only_what_the_policy_said_is_judged():
    said = [{"role": "assistant", "content": "Step 1: a"}, {"role": "tool", "content": "42"}]
    assert _said(said, "assistant") == "Step 1: a"
    assert _said([{"role": "assistant", "content": None}], "assistant") == _said([], "user") == ""


def test_images_of_a_prompt_are_found_or_missed_aloud():
    turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}
    assert _images({}, 0, [turn]) == ["a.png"]
    with pytest.raises(ValueError, match="no column 'images'"):
        _images({}, 0, [{"role": "user", "content": [{"type": "image"}]}])
