"""The data card of ``select``."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import DatasetCard, metadata_load

from reweighting.rollouts import __main__ as rollouts


def write_labelled(folder):
    counts = [(0, 4), (4, 4), (1, 4), (3, 12), (8, 8)]
    records = [
        {
            "id": number // 2,
            "sid": number % 2 + 1,
            "input": f"Question {number // 2}?",
            "add": "Step 1: a",
            "image_path": "a.png",
            "dataset": "map" if number < 3 else "a | b\n<script>",
            "score": score,
            "times": times,
            "accuracy": score / times,
        }
        for number, (score, times) in enumerate(counts)
    ]
    (folder / "labelled.json").write_text(json.dumps(records))
    words = ["select", "--labelled", str(folder / "labelled.json")]
    return [*words, "--output", str(folder / "train.json"), "--card", str(folder / "README.md")]


def test_the_card_tells_what_each_domain_holds(tmp_path):
    assert rollouts.main([*write_labelled(tmp_path), "--reasoner", "a tiny model"]) == 0
    text = (tmp_path / "README.md").read_text()
    assert "| map | 2 | 3 | 0.417 | 1 | 1 |" in text
    assert "| a \\| b <script> | 2 | 2 | 0.625 | 0 | 1 |" in text
    assert "The reasoner: a tiny model." in text and "completions is coarse: 6.4 on" in text


def test_the_hub_can_read_the_card(tmp_path):
    """As far as that goes without the hub, whose own validation takes a connection."""
    assert rollouts.main([*write_labelled(tmp_path), "--per_domain", "2"]) == 0
    found = DatasetCard.load(tmp_path / "README.md")
    assert found.data.to_dict() == metadata_load(tmp_path / "README.md")
    assert found.data.size_categories == "n<1K"
    assert found.data.configs == [{"config_name": "default", "data_files": "train.json"}]
    assert "| map | 2 | 2 |" in found.text and "**to be named" in found.text


def test_a_reasoner_without_a_card_is_refused(tmp_path, capsys):
    words = write_labelled(tmp_path)[:-2]
    with pytest.raises(SystemExit) as stop:
        rollouts.main([*words, "--reasoner", "x"])
    assert stop.value.code == 2 and "give --card too" in capsys.readouterr().err
