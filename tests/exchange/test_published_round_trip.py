"""Demo records, written in the layout of each published set, come back as they were."""

from __future__ import annotations

import itertools

import pytest

from reweighting.records.reader import RecordReader, load_meta, load_train
from reweighting.system.files import write_records
from reweighting.system.record_files import read_records
from tests.conftest import REPOSITORY
from tests.exchange.layouts import PROMPT, convert, write_lines

DATA = REPOSITORY / "data"


@pytest.fixture(scope="module")
def demo() -> list[dict]:
    """The first records of the demo, chains of all ten domains among them."""
    records = read_records(DATA / "train.json")
    domains = {record["dataset"] for record in records}
    kept = {domain: 0 for domain in domains}
    found: list[dict] = []
    for chain in by_chain(records):
        if kept[chain[0]["dataset"]] < 8:
            kept[chain[0]["dataset"]] += 1
            found += [record | {"id": sum(kept.values()) - 1} for record in chain]
    return found


def by_chain(records: list[dict]) -> list[list[dict]]:
    return [list(group) for _, group in itertools.groupby(records, lambda record: record["id"])]


def steps_of(chain: list[dict]) -> list[str]:
    """The texts of the steps, without what lies between them."""
    texts = ["", *(record["add"] for record in chain)]
    return [after[len(before) :].strip() for before, after in itertools.pairwise(texts)]


def without(records: list[dict], *names: str, **other) -> list[dict]:
    return [
        {name: value for name, value in record.items() if name not in names} | other
        for record in records
    ]


def with_blank_lines(records: list[dict]) -> list[dict]:
    """Sets without the response itself have a blank line between steps."""
    return [record | {"add": record["add"].replace("\nStep", "\n\nStep")} for record in records]


def raw_row(chain: list[dict]) -> dict:
    """The chain in the layout of VisualPRM400K-v1.1-Raw, with a last step of the final answer."""
    final = "Final answer: " + chain[0]["ground_truth"]
    scored = [
        {
            "step": step,
            "score": record["accuracy"],
            "num_mc_correct": record["score"],
            "num_mc_total": record["times"],
        }
        for step, record in zip(steps_of(chain), chain, strict=True)
    ]
    scored.append({"step": final, "score": 1.0, "num_mc_correct": 2, "num_mc_total": 2})
    return {
        "image": chain[0]["image_path"],
        "question": "<image>\n" + PROMPT.format(chain[0]["input"]),
        "question_orig": chain[0]["input"],
        "answer": chain[0]["ground_truth"],
        "response": chain[-1]["add"] + "\n" + final,
        "num_mc_sequences": 16,
        "steps_with_score": scored,
    }


def test_visualprm_raw(demo, tmp_path):
    by_domain: dict[str, list[dict]] = {}
    for chain in by_chain(demo):
        by_domain.setdefault(chain[0]["dataset"], []).append(raw_row(chain))
    for domain, rows in by_domain.items():
        write_lines(tmp_path / "set" / f"{domain}.jsonl", *rows)
    records = convert("from-visualprm-raw", tmp_path / "set", tmp_path / "train.json")
    as_read = sorted(without(records, "id"), key=str)
    assert as_read == sorted(without(demo, "id"), key=str)
    samples = load_train(RecordReader(str(tmp_path / "train.json"), str(DATA)))
    assert len(samples) == len(demo)


def test_visualprm_chats(demo, tmp_path):
    rows = []
    for chain in by_chain(demo):
        first, *rest = steps_of(chain)
        said = [f"### Question:\n{chain[0]['input']}\n\n### Solution Process:\n{first}", *rest]
        turns = [{"from": "system", "value": "Judge."}]
        for text, record in zip(said, chain, strict=True):
            turns.append({"from": "human", "value": text})
            turns.append({"from": "gpt", "value": "+" if record["accuracy"] > 0 else "-"})
        rows.append({"id": -1, "image": chain[0]["image_path"], "conversations": turns})
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    records = convert("from-visualprm", source, tmp_path / "train.json")
    wanted = without(demo, "ground_truth", "score", "times", dataset="demo")
    wanted = [record | {"accuracy": float(record["accuracy"] > 0)} for record in wanted]
    assert records == with_blank_lines(wanted)


def test_mm_prm(demo, tmp_path):
    rows = []
    for number, chain in enumerate(by_chain(demo)):
        process = "\n\n".join(step + "<prm>" for step in steps_of(chain))
        turns = [
            {"from": "human", "value": f"Question: {chain[0]['input']}\nProcess: {process}"},
            {"from": "gpt", "value": [record["accuracy"] for record in chain]},
        ]
        rows.append({"id": number, "image": chain[0]["image_path"], "conversations": turns})
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    records = convert("from-mm-prm", source, tmp_path / "train.json")
    wanted = without(demo, "ground_truth", "score", "times", dataset="demo")
    assert records == with_blank_lines(wanted)


def test_vl_prm300k(demo, tmp_path):
    rows = []
    for chain in by_chain(demo):
        row = raw_row(chain)
        rows.append(
            {
                "question": chain[0]["input"],
                "image": chain[0]["image_path"],
                "source": chain[0]["dataset"],
                "rollout_ground_truth_answer": chain[0]["ground_truth"],
                "steps_with_score": row["steps_with_score"][:-1],
                "first_incorrect_step": None,
            }
        )
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    records = convert("from-vl-prm300k", source, tmp_path / "train.json")
    assert records == with_blank_lines(demo)


def test_math_shepherd(demo, tmp_path):
    rows = []
    for chain in by_chain(demo):
        text = chain[0]["input"] + " " + "".join(step + " ки\n" for step in steps_of(chain))
        pieces = text.rstrip("\n").split("ки")
        signs = ["+" if record["accuracy"] == 1 else "-" for record in chain]
        marked = "".join(piece + sign for piece, sign in zip(pieces, [*signs, ""], strict=True))
        row = {"input": text.rstrip("\n"), "label": marked, "task": chain[0]["dataset"]}
        rows.append(row)
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    records = convert("from-math-shepherd", source, tmp_path / "t.json")
    wanted = without(demo, "ground_truth", "score", "times", image_path=None)
    assert records == [record | {"accuracy": float(record["accuracy"] == 1)} for record in wanted]


def test_prm800k(demo, tmp_path):
    rows = []
    for chain in by_chain(demo):
        steps = [
            {
                "completions": [{"text": step, "rating": 1 if record["accuracy"] > 0 else -1}],
                "human_completion": None,
                "chosen_completion": 0,
            }
            for step, record in zip(steps_of(chain), chain, strict=True)
        ]
        label = {"steps": steps, "finish_reason": "solution"}
        rows.append({"question": {"problem": chain[0]["input"]}, "label": label})
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    records = convert("from-prm800k", source, tmp_path / "train.json")
    wanted = without(demo, "ground_truth", "score", "times", dataset="demo", image_path=None)
    assert records == [record | {"accuracy": float(record["accuracy"] > 0)} for record in wanted]


def test_mmpr_pairs(tmp_path):
    """The meta set: its records come back as equal samples."""
    meta = read_records(DATA / "meta.json")
    pairs = [
        sorted(pair, key=lambda record: not record["true_false"])
        for pair in zip(meta[::2], meta[1::2], strict=True)
    ]
    rows = []
    for right, wrong in pairs:
        question, chosen = right["input"].split("\n\n", 1)
        rejected = wrong["input"].removeprefix(question + "\n\n")
        row = {"image": right["image_path"], "question": "<image>\n" + question}
        rows.append(row | {"chosen": chosen, "rejected": rejected})
    write_records(tmp_path / "wanted.json", [record for pair in pairs for record in pair])
    source = write_lines(tmp_path / "demo.jsonl", *rows)
    convert("from-mmpr", source, tmp_path / "meta.json")
    wanted, _ = load_meta(RecordReader(str(tmp_path / "wanted.json"), str(DATA)))
    found, _ = load_meta(RecordReader(str(tmp_path / "meta.json"), str(DATA)))
    assert list(found) == list(wanted)
