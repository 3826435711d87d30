"""The page of a selection and a run: what is in the file, and what a real browser makes of it."""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import main as program
from reweighting.report import __main__ as report
from reweighting.report.page import make_page, shown
from reweighting.reward_model.aggregation import aggregate
from reweighting.selection import __main__ as selection
from reweighting.system.files import complete_lines
from tests.conftest import command, write_dataset
from tests.support.browser import CHROMIUM, DRIVER, MISSING, open_browser, wait_until

HOSTILE = (
    "</script><script>window.hacked = 1</script><!--<script>\"'&lt;&amp; \\u003c "
    "<img src=x onerror='window.hacked = 1'>{{script}}{{data}} \u202eabc\u2066 \u2028 ${1}`"
)
QUESTIONS = 45
COLOURS = ["red", "blue", "pale green", "grey"]

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING),
]


def write_candidates(folder: Path) -> None:
    """Questions of 4 candidates; one is hostile in every field, one has no image, one no truth."""
    rng, pixels = random.Random(0), np.random.default_rng(0)
    folder.mkdir()
    records = []
    for number in range(QUESTIONS):
        image = f"{number % 40}.png"  # some are used twice
        picture = pixels.integers(0, 255, (84, 1200 if number == 1 else 112, 3), dtype=np.uint8)
        if number < 40:
            Image.fromarray(picture).save(folder / image)
        steps = (
            f"Step 1: look at {number}.\nStep 2: it may be {rng.choice(COLOURS)}.\nStep 3: done."
        )
        records.append(
            {
                "question": f"Which colour has object {number}?",
                "image_path": image,
                "dataset": "colours",
                "candidates": [f"{steps}\nFinal answer: {colour}" for colour in COLOURS],
                "answer": rng.choice([*COLOURS, "black"]),
            }
        )
    records[2]["candidates"][0] = ""
    records[3] = {**records[3], "image_path": []}
    del records[4]["answer"]
    records[5].update(question=HOSTILE, dataset=HOSTILE, answer=HOSTILE)
    records[5]["candidates"] = [f"Step 1: {HOSTILE}\nStep 2: is it {c}?" for c in "abcd"]
    (folder / "odd & <b>.json").write_text(json.dumps(records), encoding="utf-8")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory, reward_model) -> Path:
    """A folder with candidates and the selection from them."""
    folder = tmp_path_factory.mktemp("report")
    write_candidates(folder / "data")
    reward_model.save_pretrained(folder / "model")
    words = ["--weights_path", folder / "model", "--candidates", folder / "data" / "odd & <b>.json"]
    words += ["--image_root", folder / "data", "--output_dir", folder / "selected"]
    words += ["--device", "cpu", "--precision", "fp32"]
    assert selection.main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with a weight for every record, and domains with hostile names."""
    folder = write_dataset(tmp_path_factory.mktemp("run") / "data")
    train = json.loads((folder / "train.json").read_text())
    for record in train:
        record["dataset"] += HOSTILE
    (folder / "train.json").write_text(json.dumps(train))
    words = command(folder, folder / "run", "--reweighting", "instance_table")
    assert program.main([*words, "--meta_lr", "0.2"]) == 0
    return folder / "run"


def words_for(chosen: Path, *more: object) -> list[str]:
    words = ["--selection", chosen / "selected", "--candidates", chosen / "data" / "odd & <b>.json"]
    words += ["--image_root", chosen / "data", "--output", chosen / "page.html", *more]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def page(chosen, run) -> Path:
    assert report.main(words_for(chosen, "--weights_path", run)) == 0
    return chosen / "page.html"


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    [found] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_page_is_one_file_that_loads_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert "default-src 'none'; img-src data:;" in text
    assert text.count("<script") == 2 and text.count("</script") == 2
    assert "<img" not in text and "http" not in text.split('type="application/json"')[0].replace(
        "http-equiv", ""
    )


def test_the_page_holds_every_step_with_its_score(page, chosen):
    lines = complete_lines(chosen / "selected" / "odd & <b>" / "samples.jsonl")
    found = data_of(page)["selection"]
    assert found["sets"] == ["odd & <b>"] and len(found["questions"]) == QUESTIONS == len(lines)
    for line, question in zip(lines, found["questions"], strict=True):
        assert question["chosen"] == line["chosen"]
        for index, candidate in enumerate(question["candidates"]):
            assert candidate["scores"] == pytest.approx(line["step_scores"][index], abs=1e-4)
            text = "".join([candidate["before"], *candidate["steps"], candidate["after"]])
            whole = shown(line["candidates"][index])
            assert "".join(text.split()) == "".join(whole.split())
            total = line["aggregates"]["last"][index]
            assert candidate["totals"]["last"] == (total and pytest.approx(total, abs=1e-4))
    assert found["questions"][2]["candidates"][0]["steps"] == []
    assert found["questions"][4]["candidates"][0]["right"] is None
    assert found["questions"][0]["candidates"][1]["after"] == "Final answer: blue"


def test_images_are_shrunk_and_stand_in_the_page_once(page, chosen, tmp_path, capsys):
    def sizes(path):
        bodies = [base64.b64decode(url.split(",")[1]) for url in data_of(path)["images"]]
        return [Image.open(BytesIO(body)).size for body in bodies]

    assert len(sizes(page)) < QUESTIONS + 24 and max(max(size) for size in sizes(page)) == 384
    small = tmp_path / "small.html"
    capsys.readouterr()
    assert report.main([*words_for(chosen, "--max_image_size", 100), "--output", str(small)]) == 0
    assert max(max(size) for size in sizes(small)) == 100 and len(sizes(small)) == 40
    said = capsys.readouterr().out
    megabytes = small.stat().st_size / 1e6
    assert f"45 questions, 40 images of at most 100 pixels, {megabytes:.1f} MB" in said
    assert data_of(small)["run"] is None


def test_what_cannot_be_seen_is_spelled_out():
    assert shown("a\u202eb\r\nc\x1b[1m\u2069") == "a⟨U+202E⟩b\nc⟨U+001B⟩[1m⟨U+2069⟩"
    assert shown("עברית\tand 中文") == "עברית\tand 中文"


def test_the_run_has_figures_domains_and_records(page):
    found = data_of(page)["run"]
    titles = [figure["title"] for figure in found["figures"]]
    assert titles[0] == "Losses" and titles[-1] == "Weights of the records" and len(titles) == 4
    assert all(
        row["weight"] and row["records"] and 0 <= row["mean_label"] <= 1 for row in found["domains"]
    )
    most, least = (found["records"][name] for name in ("most", "least"))
    weights = [record["weight"] for record in [*most, *least[::-1]]]
    assert weights == sorted(weights, reverse=True) and len(most) == len(least) > 3
    assert all(record["images"] and "Step 1" in record["text"] for record in most)


def test_domain_weights_are_shown_against_mean_label_and_size(dataset, tmp_path):
    run = tmp_path / "run"
    assert program.main(command(dataset, run)) == 0
    assert report.main(["--weights_path", str(run), "--output", str(tmp_path / "page.html")]) == 0
    found = data_of(tmp_path / "page.html")
    assert found["selection"] is None and len(found["run"]["figures"]) == 3
    train = json.loads((dataset / "train.json").read_text())
    for row in found["run"]["domains"]:
        labels = [record["accuracy"] for record in train if record["dataset"] == row["name"]]
        assert row["records"] == len(labels) and row["weight"] > 0
        assert row["mean_label"] == pytest.approx(np.mean(labels), abs=1e-3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "x.html"], "give --selection, --weights_path or both"),
        (["--output", "x.html", "--selection", "."], "--selection and --candidates belong"),
        (["--output", "x.html", "--candidates", "a.json"], "give --selection"),
        (["--output", "x.html", "--weights_path", ".", "--max_image_size", "0"], "at least 1"),
    ],
)
def test_flags_that_make_no_sense_are_refused(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        report.main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_results_of_something_else_are_refused(chosen, tmp_path, capsys):
    other = tmp_path / "odd & <b>.json"
    records = json.loads((chosen / "data" / "odd & <b>.json").read_text())
    records[1]["candidates"].reverse()
    other.write_text(json.dumps(records))
    assert report.main(words_for(chosen, "--candidates", other)) == 2
    assert "holds the results of other candidates than those of" in capsys.readouterr().err
    elsewhere = shutil.copytree(chosen / "data", tmp_path / "data")
    for image in elsewhere.rglob("*.png"):
        Image.new("RGB", (60, 40)).save(image)
    assert report.main(words_for(chosen, "--image_root", elsewhere)) == 2
    assert "holds the results of other images than those of" in capsys.readouterr().err
    assert report.main(words_for(chosen, "--selection", tmp_path)) == 2
    assert "holds no results of a selection" in capsys.readouterr().err
    pattern = ["--step_pattern", "^Step [12]"]
    assert report.main(words_for(chosen, *pattern)) == 2
    assert "candidate 1 has 2 steps and 3 scores" in capsys.readouterr().err
    assert report.main(["--weights_path", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "is this a run's directory?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def cards(browser) -> list[dict]:
    return browser.run("""return [...document.querySelectorAll('.card')].map(card => ({
        outcome: card.className.replace('card ', ''),
        question: card.querySelector('.question').textContent,
        record: +card.querySelector('.about').textContent.match(/record (\\d+)/)[1]}))""")


def set_control(browser, name: str, value: str) -> None:
    browser.run(
        "const box = document.getElementById(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event('input', {bubbles: true}))",
        *(name, value),
    )


def all_cards(browser, count: int) -> list[dict]:
    """The cards, after scrolling down until all are made."""

    def complete() -> bool:
        browser.run("window.scrollTo(0, document.body.scrollHeight)")
        return len(cards(browser)) == count

    wait_until(complete)
    return cards(browser)


class TestBrowser:
    pytestmark = needs_browser

    def test_wrong_choices_come_first_and_the_surest_on_top(self, page, chosen, browser):
        browser.open(page)
        assert len(cards(browser)) == 20, "more are made when they come into sight"
        lines = complete_lines(chosen / "selected" / "odd & <b>" / "samples.jsonl")
        expected = []
        for line in lines:
            truth, pick = line.get("true_false"), line["chosen"]["mean_log_odds"]
            totals = [aggregate(z, "mean_log_odds") for z in line["step_log_odds"]]
            margin, kind = 0.0, "unknown"
            if truth:
                kind = "right" if truth[pick] else "missed" if any(truth) else "hopeless"
            if kind == "missed":
                margin = totals[pick] - max(t for t, r in zip(totals, truth, strict=True) if r)
            rank = ["missed", "hopeless", "right", "unknown"].index(kind)
            expected.append((rank, -round(margin, 3), line["record"], kind))
        assert len({kind for *_, kind in expected}) == 4
        found = all_cards(browser, QUESTIONS)
        assert [card["outcome"] for card in found] == [kind for *_, kind in sorted(expected)]
        assert found[0]["record"] == min(expected)[2]
        assert browser.console() == []

    def test_steps_have_the_colour_and_the_number_of_their_score(self, page, browser):
        browser.open(page)
        steps = browser.run("""return [...document.querySelectorAll('.step')].map(step => [
            step.querySelector('.value').textContent, step.title,
            getComputedStyle(step).backgroundColor, step.querySelector('.text').textContent])""")
        assert len(steps) > 50
        for number, title, colour, text in steps:
            score = float(re.fullmatch(r"step \d: V = ([\d.]+), z = -?[\d.]+", title)[1])
            assert float(number) == pytest.approx(score, abs=0.0051)
            low, middle, high = (241, 163, 64), (247, 247, 247), (103, 169, 207)
            ends = (low, middle) if score < 0.5 else (middle, high)
            share = 2 * score if score < 0.5 else 2 * score - 1
            wanted = [a + (b - a) * share for a, b in zip(*ends, strict=True)]
            assert list(map(int, re.findall(r"\d+", colour))) == pytest.approx(wanted, abs=1)
            assert text.startswith("Step ")
        strips = browser.run("return document.querySelectorAll('summary .value').length")
        assert strips > len(steps), "folded candidates show the numbers of their steps too"

    def test_filter_search_and_aggregation(self, page, browser):
        browser.open(page)
        everything = all_cards(browser, QUESTIONS)
        set_control(browser, "outcome", "hopeless")
        hopeless = [card["record"] for card in everything if card["outcome"] == "hopeless"]
        assert [card["record"] for card in cards(browser)] == hopeless
        count = "return document.getElementById('count').textContent"
        assert browser.run(count) == f"{len(hopeless)} of 45 questions"
        set_control(browser, "outcome", "")
        set_control(browser, "search", " LOOK AT 17. ")
        assert [card["record"] for card in cards(browser)] == [18]
        set_control(browser, "search", "nowhere to be found")
        assert cards(browser) == [] and browser.run(count) == "0 of 45 questions"
        set_control(browser, "search", "")
        set_control(browser, "aggregation", "last")
        folded = "return document.querySelectorAll('.card details:not([open])').length"
        assert browser.run(folded) > 0
        browser.run("document.getElementById('unfold').click()")
        assert browser.run(folded) == 0
        assert browser.console() == []

    def test_hostile_text_is_text(self, page, browser):
        browser.open(page)
        set_control(browser, "search", "</script>")
        [card] = cards(browser)
        assert card["question"] == shown(HOSTILE) and card["record"] == 6
        browser.run("document.querySelector('nav button[value=run]').click()")
        seen = browser.run("return document.getElementById('run').innerText")
        assert seen.count(shown(HOSTILE).split("\u2028")[0]) > 3
        assert browser.run("return window.hacked") is None
        assert browser.run("return document.querySelectorAll('script').length") == 2
        assert browser.run("return document.querySelectorAll('[onerror], img[src=x]').length") == 0
        assert browser.console() == []

    def test_a_foreign_script_would_not_run(self, page, browser):
        browser.open(page)
        browser.run("""const made = document.createElement('script');
            made.textContent = 'window.hacked = 1'; document.body.append(made);
            const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';
            document.body.append(image);""")
        said: list[str] = []
        wait_until(lambda: said.extend(browser.console()) or len(said) >= 2)
        assert all("Content Security Policy" in message for message in said)
        assert browser.run("return window.hacked") is None

    def test_the_part_of_the_run_is_shown_alone(self, page, browser):
        browser.open(page)
        hidden = "return ['selection', 'run'].map(name => document.getElementById(name).hidden)"
        assert browser.run(hidden) == [False, True]
        browser.run("document.querySelector('nav button[value=run]').click()")
        assert browser.run(hidden) == [True, False]
        broken = """return Promise.all([...document.querySelectorAll('#run img')].map(
            image => image.decode().then(() => image.naturalWidth)))"""
        assert all(width > 20 for width in browser.run(broken))

    def test_a_thousand_questions_are_usable(self, page, tmp_path, browser):
        found = data_of(page)
        questions = found["selection"]["questions"]
        found["selection"]["questions"] = [
            {**questions[number % QUESTIONS], "record": number + 1} for number in range(1000)
        ]
        (tmp_path / "long.html").write_text(make_page(found), encoding="utf-8")
        browser.open(tmp_path / "long.html")
        assert len(cards(browser)) <= 40
        assert browser.run("return document.querySelectorAll('.card img').length") <= 40
        assert browser.run("return document.querySelectorAll('*').length") < 10_000
        set_control(browser, "search", "object 7?")
        count = browser.run("return document.getElementById('count').textContent")
        assert count == "23 of 1000 questions" and len(cards(browser)) in (20, 23)
        assert browser.console() == []
