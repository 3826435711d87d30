"""Training with less memory: the same numbers, or a stated difference."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import main as program
from benchmarks.bilevel import in_a_process
from benchmarks.memory import run
from reweighting.bilevel import hypergradient
from reweighting.records.dataset import load_data
from reweighting.records.reader import RecordReader
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.compiled import is_compiled
from reweighting.reward_model.prefix_tree import pack
from reweighting.training.arguments import parse_arguments
from reweighting.training.build import make_encoder, make_optimizer
from reweighting.training.statistics import MovedShare
from tests.conftest import TINY, command
from tests.training.test_training import assert_same_run, metrics_of, train, weights_of


def trees(dataset, model: RewardModel, count: int = 3):
    reader = RecordReader(str(dataset / "meta.json"), str(dataset))
    samples = reader.samples(reader.meta_sample)[:count]
    return pack([model.encoder.encode(sample.images, sample.prompts) for sample in samples])


def gradients(model: RewardModel, packed) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(packed).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_checkpointed_gradients_are_the_gradients(dataset, reward_model):
    packed = trees(dataset, reward_model)
    wanted = gradients(copy.deepcopy(reward_model), packed)
    model = copy.deepcopy(reward_model)
    model.checkpoint_gradients()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        loss = model(packed).square().sum()
    loss.backward()
    everything = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: everything.append(t.numel()) or t, lambda t: t
    ):
        reward_model(packed)
    assert sum(kept) < 0.5 * sum(everything)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-6)


def test_a_checkpointed_run_is_the_same_run(dataset, tmp_path):
    plain = train(dataset, tmp_path / "plain")
    saving = train(dataset, tmp_path / "saving", "--gradient_checkpointing")
    assert metrics_of(plain)[-1]["weights"] == pytest.approx(metrics_of(saving)[-1]["weights"])
    assert metrics_of(plain)[-1]["loss"] == pytest.approx(metrics_of(saving)[-1]["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_compiled_run_is_the_same_run(dataset, tmp_path):
    """The flag, with hooks that pull gradients back, forward mode, checkpoints and resuming."""
    flags = ["--hypergradient_batches", "all", "--max_grad_norm", "0.1"]
    plain = train(dataset, tmp_path / "plain", *flags)
    compiled = train(dataset, tmp_path / "compiled", "--compile", *flags)
    for ours, theirs in zip(metrics_of(compiled), metrics_of(plain), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["weights"] == pytest.approx(theirs["weights"], rel=1e-2)
    train(dataset, compiled, "--compile", *flags, "--resume", "--iteration_num", "8")
    assert metrics_of(compiled)[-1]["iteration"] == 8


@pytest.mark.parametrize("flags", [[], ["--compile"]])
def test_the_flag_compiles_every_layer_but_the_last(dataset, tmp_path, flags):
    arguments = parse_arguments(command(dataset, tmp_path / "run", *flags))
    data = load_data(arguments, progress=False)
    model = program.make_engine(arguments, data, make_encoder(arguments, data.system)).lower.module
    decoder = [is_compiled(layer) for layer in model.base_model.get_decoder().layers]
    assert decoder == [bool(flags)] * (len(decoder) - 1) + [False]
    tower = [is_compiled(block) for block in model.base_model.model.visual.blocks]
    assert tower == [bool(flags)] * len(tower)


def test_plain_attention_gives_the_fused_kernels_scores(dataset, reward_model):
    packed = trees(dataset, reward_model)
    model = copy.deepcopy(reward_model)
    model.set_attention("eager")
    with torch.no_grad():
        torch.testing.assert_close(model(packed), reward_model(packed), rtol=1e-5, atol=1e-5)


def test_attention_flag_reaches_the_kernels(dataset, tmp_path, monkeypatch):
    chosen = []
    set_attention = RewardModel.set_attention
    monkeypatch.setattr(
        RewardModel,
        "set_attention",
        lambda self, name: chosen.append(name) or set_attention(self, name),
    )
    for name in ("auto", "sdpa", "eager"):
        train(dataset, tmp_path / name, "--iteration_num", "2", "--attn_implementation", name)
    assert chosen == ["sdpa", "sdpa", "eager"]


def test_adapters_change_no_score_and_alone_are_trained(dataset, reward_model):
    model = copy.deepcopy(reward_model)
    packed = trees(dataset, model)
    with torch.no_grad():
        before = model(packed)
        model.add_adapters(4)
        assert torch.equal(model(packed), before)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[0] for name in trainable} == {"base_model", "LN"}
    assert all(".lora_" in name for name in trainable if name.startswith("base_model"))
    assert not any("visual" in name for name in trainable)
    assert gradients(model, packed).keys() == set(trainable)


def test_a_run_with_adapters_saves_a_plain_checkpoint_and_resumes(dataset, tmp_path):
    flags = ["--lora_rank", "2", "--lr", "1e-3"]
    whole = train(dataset, tmp_path / "whole", *flags)
    start, trained = (RewardModel.from_pretrained(p, device="cpu") for p in (TINY, whole))
    moved = {
        name
        for (name, a), b in zip(start.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert any("q_proj" in name for name in moved) and any("down_proj" in name for name in moved)
    assert all("_proj.weight" in name for name in moved if not name.startswith("LN"))
    assert not any("visual" in name for name in moved)
    assert metrics_of(whole)[-1]["weights"] != metrics_of(whole)[0]["weights"]

    run = train(dataset, tmp_path / "run", *flags, "--iteration_num", "3")
    assert_same_run(train(dataset, run, *flags, "--resume"), whole)


@pytest.mark.slow  # torchao compiles its update first
def test_eight_bit_moments_round_without_bias(dataset, tmp_path):
    """bf16 weights swallow updates of 5e-7 whole; stochastic rounding keeps their mean."""
    pytest.importorskip("torchao")
    flags = ["--optimizer", "adamw_8bit", "--precision", "bf16"]
    arguments = parse_arguments(command(dataset, tmp_path / "x", *flags, "--lr", "5e-7"))
    model = RewardModel.from_pretrained(TINY, device="cpu", dtype=torch.bfloat16)
    weight = model.base_model.model.language_model.layers[0].mlp.up_proj.weight
    start = weight.detach().float().clone()
    moved, optimizer = MovedShare(model), make_optimizer(arguments, model)
    for _ in range(20):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)  # AdamW then moves everything by -lr
        optimizer.step()
    assert weight.dtype == torch.bfloat16
    assert 0.005 < moved.value() < 0.9  # a fraction of a unit in the last place a step
    assert (weight.float() - start).mean().item() == pytest.approx(-20 * 5e-7, rel=0.15)


@pytest.mark.slow  # torchao compiles its update first
def test_a_run_in_eight_bits_learns_and_resumes(dataset, tmp_path):
    pytest.importorskip("torchao")
    flags = ["--optimizer", "adamw_8bit", "--precision", "bf16", "--lr", "1e-3"]
    run = train(dataset, tmp_path / "run", *flags, "--iteration_num", "4")
    assert weights_of(run)["weight"].dtype == torch.float32
    train(dataset, run, *flags, "--iteration_num", "8", "--resume")
    lines = metrics_of(run)
    assert [line["iteration"] for line in lines] == list(range(1, 9))
    assert lines[-1]["weights"] != lines[3]["weights"]
    assert all(line["hypergradient_norm"] > 0 for line in lines[1:])
    assert json.loads((run / "arguments.json").read_text())["optimizer"] == "adamw_8bit"


def test_a_second_moment_that_eight_bits_lose_does_not_blow_up_the_hypergradient():
    """Blocks of 256 share a scale: beside large gradients, the squares of small ones become 0."""
    torchao = pytest.importorskip("torchao.optim")
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8192))
    before = parameter.detach().clone()
    optimizer = torchao.AdamW8bit([parameter], lr=0.01, weight_decay=0.0)
    parameter.grad = torch.randn(8192) * 10 ** (-6 * torch.rand(8192))
    optimizer.step()
    lost = optimizer.state[parameter]["exp_avg_sq"].dequantize() == 0
    assert lost.sum() > 1000
    step = hypergradient.AdamWStep(optimizer, [parameter.grad.clone()], 1.0)
    direction = step.pull_back(0, torch.ones(8192))
    step.finish([direction])
    assert direction.isfinite().all()
    # The step moves every parameter by at most the rate, so no derivative exceeds rate / |g|.
    assert (direction.abs() <= 0.0101 / parameter.grad.abs()).all()
    assert (step.undo()[0] - before).abs().max() <= 0.02


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_eight_bits_need_bf16(dataset, tmp_path, precision, capsys):
    flags = ["--optimizer", "adamw_8bit", "--precision", precision]
    with pytest.raises(SystemExit):
        parse_arguments(command(dataset, tmp_path / "x", *flags))
    assert "needs --precision bf16" in capsys.readouterr().err


def test_scores_of_the_saved_model_are_those_of_the_adapted_one(dataset, tmp_path, reward_model):
    model = copy.deepcopy(reward_model)
    model.add_adapters(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path)
    question, response = "Which colour?", "Step 1: it is red.\nStep 2: so red."
    reader = RecordReader(str(dataset / "meta.json"), str(dataset))
    image = reader.samples(reader.meta_sample)[0].images
    encoded = model.encoder.encode(image, chain_prompts(question, response))
    with torch.no_grad():
        wanted = model(pack([encoded]))
        found = RewardModel.from_pretrained(tmp_path, device="cpu")(pack([encoded]))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    [
        ["--batch_size", "1"],
        ["--batch_by", "cot", "--batch_size", "6", "--meta_batch_size", "6"],
        ["--baseline", "--batch_size", "8", "--gradient_accumulation", "2"],
        ["--batch_size", "8", "--meta_batch_size", "4", "--gradient_checkpointing"],
        ["--batch_size", "8", "--meta_batch_size", "4", "--lora_rank", "4"],
        ["--batch_size", "1", "--max_grad_norm", "0.01"],
        ["--batch_size", "8", "--meta_batch_size", "4", "--hypergradient", "darts"],
    ],
    ids=["batch-1", "chains", "accumulated", "checkpointed", "adapters", "clipped", "darts"],
)
def test_estimated_memory_is_the_measured_peak(dataset, tmp_path, flags):
    estimate, measured = in_a_process(run, command(dataset, tmp_path / "run", *flags), 4)
    assert estimate == pytest.approx(measured, rel=0.15)
