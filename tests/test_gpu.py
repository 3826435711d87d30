"""What only a CUDA device can show; skipped where there is none."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import main as program
from reweighting.bilevel.batches import CollateTrain, EncodedDataset
from reweighting.records.reader import RecordReader, load_train
from reweighting.system.device import autocast
from tests.conftest import DOMAINS, command

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-4), ("bf16", 2e-2), ("fp16", 5e-3)])
def test_scores_on_cuda_equal_those_on_the_processor(dataset, reward_model, precision, tolerance):
    samples = load_train(RecordReader(str(dataset / "train.json"), image_root=str(dataset)))
    items = EncodedDataset([[sample] for sample in samples], reward_model.encoder)
    batch = CollateTrain(DOMAINS)([items[index] for index in range(8)])
    model = copy.deepcopy(reward_model).cuda()
    with torch.no_grad():
        expected = torch.sigmoid(reward_model(batch.prompts))
        with autocast("cuda", precision):
            found = torch.sigmoid(model(batch.to("cuda").prompts)).cpu()
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_and_resuming_on_cuda(dataset, tmp_path, precision):
    flags = ["--device", "cuda", "--precision", precision, "--num_workers", "2"]
    assert program.main(command(dataset, tmp_path / "run", *flags)) == 0
    more = [*flags, "--resume", "--iteration_num", "8"]
    assert program.main(command(dataset, tmp_path / "run", *more)) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == list(range(1, 9))
    assert json.loads(lines[-1])["hypergradient_norm"] > 0
