"""What only a CUDA device can show; skipped where there is none."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import main as program
from benchmarks.hypergradient import build, hypergradient_and_oracle
from reweighting.bilevel.batches import CollateTrain, EncodedDataset, collate_meta
from reweighting.bilevel.weighting import DomainTable, InstanceTable
from reweighting.records.images import Source
from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.records.steps import chain_prompts
from reweighting.reward_model import RewardModel
from reweighting.reward_model.prefix_tree import pack
from reweighting.system.device import autocast
from tests.conftest import DOMAINS, TINY, command
from tests.support.backbones import BACKBONES, make_backbone

pytestmark = pytest.mark.gpu


def picture(seed: int) -> Source:
    pixels = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (84, 56, 3), generator=pixels, dtype=torch.uint8).numpy()


def prompts_of_chains():
    chains = ["Step 1: row 2.\nStep 2: it is red.\nStep 3: so red.", "Step 1: row 2.\nStep 2: no."]
    return [prompt for text in chains for prompt in chain_prompts("Which colour?", text)]


@pytest.fixture(scope="module")
def both_files(dataset, reward_model):
    """Encoded train and meta records."""
    options = {"image_root": str(dataset)}
    train = load_train(RecordReader(str(dataset / "train.json"), **options))
    meta, _ = load_meta(RecordReader(str(dataset / "meta.json"), **options))
    return (
        EncodedDataset([[sample] for sample in train], reward_model.encoder),
        EncodedDataset([[sample] for sample in meta], reward_model.encoder),
    )


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 2e-2), ("fp16", 5e-3)])
@pytest.mark.parametrize("name", ["qwen2_vl", *BACKBONES])
def test_scores_on_cuda_equal_those_on_the_processor(tmp_path, name, precision, tolerance):
    path = TINY if name == "qwen2_vl" else make_backbone(name, tmp_path / name)
    torch.manual_seed(0)
    model = RewardModel.from_pretrained(path, device="cpu", fresh_head=True)
    prompts = prompts_of_chains()
    packed = pack([model.encoder.encode(picture(seed), prompts) for seed in range(3)])
    with torch.no_grad():
        expected = torch.sigmoid(model(packed))
        model.cuda()
        with autocast("cuda", precision):
            found = torch.sigmoid(model(packed.to("cuda")))
        if model.packs_trees:
            model.packs_trees = False
            model.base_model.set_attn_implementation("sdpa")
            with autocast("cuda", precision):
                apart = torch.sigmoid(model(packed.to("cuda")))
            torch.testing.assert_close(found, apart, atol=tolerance, rtol=0)
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-3), ("bf16", 0.15), ("fp16", 0.05)])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("domain", {}),
        ("domain", {"max_grad_norm": 1e-3}),
        ("domain", {"accumulation": 2}),
        ("table", {}),
    ],
    ids=["domain", "clipped", "accumulated", "table"],
)
def test_hypergradients_on_cuda_are_the_float64_derivative(
    both_files, reward_model, kind, options, precision, tolerance
):
    train_set, meta_set = both_files
    collate = CollateTrain(DOMAINS)
    train = [
        collate([train_set[(4 * step + k) * 5 % len(train_set)] for k in range(4)])
        for step in range(3 * options.get("accumulation", 1))
    ]
    meta = [collate_meta([meta_set[3 * step + k] for k in range(3)]) for step in range(3)]
    rows = max(int(batch.records.max()) for batch in train)
    engine = build(
        copy.deepcopy(reward_model).cuda(), DOMAINS, [], [], lr=1e-4, precision=precision,
        weighting=DomainTable(DOMAINS) if kind == "domain" else InstanceTable(rows), **options,
        loss_scaler=torch.amp.GradScaler("cuda", enabled=precision == "fp16", init_scale=2**14),
    )  # fmt: skip
    ours, exact = hypergradient_and_oracle(engine, train, meta, 3)
    assert (ours - exact).norm() / exact.norm() <= tolerance


@pytest.mark.parametrize(
    "flags",
    [
        "--precision bf16",
        "--precision fp16 --lora_rank 4 --reweighting instance_table",
        "--precision fp32 --hypergradient_batches all",
        pytest.param("--precision bf16 --optimizer adamw_8bit", marks=pytest.mark.slow),
        pytest.param("--precision bf16 --compile", marks=pytest.mark.slow),
        "--precision bf16 --batch_by cot --gradient_checkpointing --gradient_accumulation 2",
        "--precision bf16 --score_head plus_minus --reweighting instance_net",
        "--precision bf16 --hypergradient darts --attn_implementation eager",
        "--precision bf16 --meta_loss rank --max_grad_norm 0.1 --batch_by cot",
    ],
)
def test_an_interrupted_run_on_cuda_goes_on_as_if_it_had_not_been(dataset, tmp_path, flags):
    flags = ["--device", "cuda", "--num_workers", "2", *flags.split()]
    if "rank" in flags:
        ranked = dataset / "ranked.json"
        pairs = json.loads((dataset / "meta.json").read_text())
        ranked.write_text(
            json.dumps([{**r, "true_false": v} for r in pairs for v in (True, False)])
        )
        flags += ["--meta_json_file", str(ranked)]
    whole, parts = (
        command(dataset, tmp_path / "whole", *flags),
        command(dataset, tmp_path / "parts"),
    )
    constant = ["--scheduler_type", "step", "--meta_scheduler_type", "step"]
    assert program.main([*whole, *constant, "--iteration_num", "8"]) == 0
    assert program.main([*parts, *flags, *constant, "--iteration_num", "4"]) == 0
    assert program.main([*parts, *flags, *constant, "--resume", "--iteration_num", "8"]) == 0
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [line["iteration"] for line in lines[1]] == list(range(1, 9))
    last, again = lines[0][-1], lines[1][-1]
    assert last["hypergradient_norm"] > 0
    # Kernels that add in any order make runs differ in the last bits.
    for name in ("weighted_loss", "meta_loss"):
        assert again[name] == pytest.approx(last[name], rel=1e-3)
    assert again["weights"] == pytest.approx(last["weights"], rel=1e-3)
