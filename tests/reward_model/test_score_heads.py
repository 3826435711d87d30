"""The head plus_minus: conversations, labels of earlier steps, and what a checkpoint knows."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

import main as program
from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.export.recipe import recipe
from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.records.steps import Prompt, chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.encoder import INSTRUCTION, PromptEncoder
from reweighting.reward_model.prefix_tree import pack
from reweighting.selection import __main__ as selection
from tests.conftest import TINY, command, write_dataset

QUESTION = "Which colour?"
RESPONSE = "Step 1: it is red.\nStep 2: so red.\nStep 3: red.\nFinal answer: red"
PLUS_MINUS = ("--score_head", "plus_minus")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return RewardModel.from_pretrained(TINY, device="cpu", score_head="plus_minus")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> Path:
    """The dataset of the other tests, a conversation a chain; two domains."""
    folder = write_dataset(tmp_path_factory.mktemp("conversations") / "data")
    for name in ("train", "meta"):
        chains: dict[int, list[dict]] = {}
        for record in json.loads((folder / f"{name}.json").read_text()):
            chains.setdefault(record["id"], []).append(record)
        made = []
        for number, records in chains.items():
            turns = [{"from": "system", "value": "Judge every step."}]
            turns.append({"from": "human", "value": f"<image>\nWhich colour has object {number}?"})
            text = records[-1]["add" if name == "train" else "input"]
            for step in text[text.index("Step 1") :].split("\n"):
                turns.append({"from": "human", "value": step})
                accuracy = records[len(turns) // 2 - 2].get("accuracy") if name == "train" else 1
                turns.append({"from": "gpt", "value": "+" if accuracy > 0.5 else "-"})
            record = {"id": number, "image": records[0]["image_path"], "conversations": turns}
            if name == "train":
                record["dataset"] = records[0]["dataset"]
            else:
                record |= {"true_false": records[0]["true_false"], "response": text}
            made.append(record)
        (folder / f"{name}.json").write_text(json.dumps(made))
    return folder


def train(dataset: Path, run: Path, *flags: str) -> Path:
    assert program.main(command(dataset, run, *flags)) == 0
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "base_model" / "model.safetensors")


def some_image(folder: Path) -> str:
    return str(folder / "images" / "0.png")


def test_a_prompt_is_a_conversation_up_to_its_last_label(model, dataset):
    prompt = Prompt("Q", ("Step 1: a", "\nStep 2: b", "\nStep 3: c"), labels=(False,))
    image = model.encoder.encode_image(some_image(dataset))
    [ids] = model.encoder.encode(some_image(dataset), [prompt]).token_ids
    assert model.encoder.processor.tokenizer.decode(ids) == (
        f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{image.placeholders[0]}<|vision_end|>Q\n\nStep 1: a"
        "<|im_end|>\n<|im_start|>assistant\n-<|im_end|>\n"
        "<|im_start|>user\nStep 2: b<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
        "<|im_start|>user\nStep 3: c<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_default_instruction_speaks_of_an_image_only_where_there_is_one(model, monkeypatch):
    prompt = Prompt("Q", ("Step 1: a",))
    encoder = model.encoder
    with_image, alone = encoder.turns(prompt)[0], encoder.turns(prompt, images=0)[0]
    assert with_image["content"][0]["text"] == INSTRUCTION
    assert alone["content"][0]["text"] == INSTRUCTION.replace("question about an image", "question")
    assert recipe(model)["system_without_image"] == alone["content"][0]["text"]
    own = PromptEncoder(encoder.processor, score_head="plus_minus", system="Judge the image.")
    assert own.turns(prompt, images=0)[0]["content"][0]["text"] == "Judge the image."
    monkeypatch.setattr(model, "encoder", own)
    assert "system_without_image" not in recipe(model)


def test_all_steps_of_a_chain_are_read_from_one_plain_sequence(model, dataset):
    prompts = chain_prompts(QUESTION, RESPONSE)
    encoded = model.encoder.encode(some_image(dataset), prompts)
    packed = pack([encoded])
    assert packed.trees[0].is_chain  # every prompt goes on where the last one ended
    assert len(packed.input_ids) == len(encoded.token_ids[-1])
    plus, minus = model.encoder.label_ids
    with torch.no_grad():
        ids = torch.tensor([encoded.token_ids[-1]])
        logits = AutoModelForImageTextToText.from_pretrained(TINY)(
            input_ids=ids,
            mm_token_type_ids=(ids == model.base_model.config.image_token_id).int(),
            attention_mask=torch.ones_like(ids),
            **encoded.images.inputs,
        ).logits[0, [len(prompt) - 1 for prompt in encoded.token_ids]]
        probability = torch.softmax(logits[:, [plus, minus]], dim=-1)[:, 0]
        torch.testing.assert_close(torch.sigmoid(model(packed)), probability, atol=1e-5, rtol=0)


def test_the_head_has_no_parameter_and_training_moves_the_labels_apart(model, dataset):
    assert model.LN is None
    assert sum(p.numel() for p in model.parameters()) == model.base_model.num_parameters()
    trained = copy.deepcopy(model)
    packed = pack([model.encoder.encode(some_image(dataset), chain_prompts(QUESTION, RESPONSE))])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    targets = torch.tensor([1.0, 1.0, 0.0])
    for _ in range(10):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(trained(packed), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before, after = model(packed), trained(packed)
    assert ((after - before).sign() == targets * 2 - 1).all()


def test_the_hypergradient_of_conversations_equals_float64_autograd(conversations):
    torch.manual_seed(0)
    model = RewardModel.from_pretrained(TINY, device="cpu", score_head="plus_minus")
    options = {"image_root": str(conversations)}
    samples = load_train(RecordReader(str(conversations / "train.json"), **options)).with_labels()
    chains, _ = load_meta(RecordReader(str(conversations / "meta.json"), **options))
    domains = list(dict.fromkeys(sample.domain for sample in samples))
    train_set = EncodedDataset([[sample] for sample in samples], model.encoder)
    meta_set = EncodedDataset([[chain] for chain in chains], model.encoder)
    batches = [CollateTrain(domains)([train_set[i], train_set[i + 1]]) for i in (0, 4, 8)]
    assert all(len(batch.accuracy) > len(batch.records) == 2 for batch in batches)
    metas = [collate_meta([meta_set[i], meta_set[i + 1]]) for i in (0, 2, 4)]
    engine = build(model, domains, [], [], lr=1e-4)
    ours, exact = hypergradient_and_oracle(engine, batches, metas, 3)
    assert torch.cosine_similarity(ours, exact, dim=0) >= 0.9999
    assert (ours - exact).norm() / exact.norm() <= 1e-3


@pytest.mark.parametrize("head", ["linear", "plus_minus"])
def test_conversations_train_from_end_to_end(conversations, tmp_path, head):
    run = train(conversations, tmp_path / "run", "--score_head", head)
    stored = json.loads((run / "score_head.json").read_text())
    assert (run / "LN_weights.pt").exists() == (head == "linear")
    if head == "plus_minus":  # the data's own instruction goes with the model
        assert stored["score_head"] == "plus_minus" and stored["system"] == "Judge every step."
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["hypergradient_norm"] > 0 and len(metrics[-1]["weights"]) == 3


def test_one_system_turn_serves_all_prompts_of_a_model(conversations, tmp_path, capsys):
    folder = write_dataset(tmp_path / "data")
    records = json.loads((conversations / "train.json").read_text())
    for record in records[:3]:
        record["conversations"][0]["value"] = "Something else."
    (folder / "train.json").write_text(json.dumps(records))
    run = train(folder, tmp_path / "run", *PLUS_MINUS, "--iteration_num", "2")
    assert (
        "2 different system turns; all prompts get the most common one" in capsys.readouterr().err
    )
    assert RewardModel.from_pretrained(run).encoder.system == "Judge every step."


def test_a_run_resumes_with_its_head(conversations, tmp_path):
    whole = train(conversations, tmp_path / "whole", *PLUS_MINUS, "--iteration_num", "6")
    run = train(conversations, tmp_path / "run", *PLUS_MINUS, "--iteration_num", "3")
    train(conversations, run, *PLUS_MINUS, "--iteration_num", "6", "--resume")
    ours, theirs = weights_of(run), weights_of(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_head_of_a_checkpoint_is_kept(dataset, conversations, tmp_path, capsys):
    """Loaded from Python, as a starting point and by selection, without saying it again."""
    run = train(conversations, tmp_path / "run", *PLUS_MINUS)
    model = RewardModel.from_pretrained(run, device="cpu")
    assert model.LN is None and model.encoder.system == "Judge every step."
    scores = model.score(some_image(dataset), QUESTION, RESPONSE)
    assert len(scores) == 3 and all(0 < score < 1 for score in scores)

    flags = ["--reward_model", str(run), "--baseline", "--iteration_num", "1", "--lr", "1e-12"]
    assert program.main(command(dataset, tmp_path / "linear", *flags)) == 2
    assert "was trained with --score_head plus_minus" in capsys.readouterr().err
    more = train(dataset, tmp_path / "more", *flags, *PLUS_MINUS)  # records without instruction
    assert RewardModel.from_pretrained(more).encoder.system == "Judge every step."

    records = [{"question": QUESTION, "image_path": "images/0.png", "candidates": [RESPONSE]}]
    (tmp_path / "test.json").write_text(json.dumps(records))
    out = ["--output_dir", str(tmp_path / "out"), "--device", "cpu", "--precision", "fp32"]
    select = ["--candidates", str(tmp_path / "test.json"), "--image_root", str(dataset), *out]
    assert selection.main(["--weights_path", str(run), *select]) == 0
    line = json.loads((tmp_path / "out" / "test" / "samples.jsonl").read_text())
    assert line["step_scores"][0] == pytest.approx(scores, abs=1e-5)
    assert selection.main(["--weights_path", str(run), *select]) == 0  # the same model: goes on
    other = train(conversations, tmp_path / "other", *PLUS_MINUS, "--seed", "2")
    capsys.readouterr()
    assert selection.main(["--weights_path", str(other), *select]) == 2
    assert "holds results of another model" in capsys.readouterr().err


def test_history_changes_what_training_sees_and_not_selection(dataset, tmp_path):
    flags = ["--baseline", "--iteration_num", "4", *PLUS_MINUS]
    plus = train(dataset, tmp_path / "plus", *flags)
    gold = train(dataset, tmp_path / "gold", *flags, "--history", "gold")
    ours, theirs = weights_of(plus), weights_of(gold)
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    image, candidates = some_image(dataset), chain_prompts(QUESTION, RESPONSE)
    encoded = [RewardModel.from_pretrained(run).encoder for run in (plus, gold)]
    [left, right] = [encoder.encode(image, candidates).token_ids for encoder in encoded]
    assert left == right


def test_history_means_nothing_to_the_linear_head(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit):
        program.main(command(dataset, tmp_path / "run", "--history", "gold"))
    assert "--history gold needs --score_head plus_minus" in capsys.readouterr().err


def test_published_checkpoints_have_the_linear_head(reward_model, tmp_path):
    reward_model.save_pretrained(tmp_path)
    (tmp_path / "score_head.json").unlink()  # the published code writes no such file
    found = RewardModel.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(found.LN.weight, reward_model.LN.weight)
    assert found.encoder.score_head == "linear"


def test_labels_must_be_single_tokens(reward_model):
    class Spelled:
        """A tokenizer that spells signs."""

        def __call__(self, text, **options):
            return {"input_ids": [1, 2] if text == "-" else [1]}

    encoder = PromptEncoder(reward_model.encoder.processor, score_head="plus_minus")
    encoder.processor = copy.copy(encoder.processor)
    encoder.processor.tokenizer = Spelled()
    with pytest.raises(ValueError, match="2 tokens of the label '-'"):
        _ = encoder.label_ids
