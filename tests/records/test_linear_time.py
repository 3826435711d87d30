"""Texts of users, models and servers are read in time proportional to their length."""

from __future__ import annotations

import ast
import contextlib
import importlib
import pkgutil
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import reweighting
from reweighting.exchange import vlmevalkit as exchange
from reweighting.records import patterns, steps, texts
from reweighting.records.answers import comparison as answers
from reweighting.records.patterns import compiled
from reweighting.records.reader import RecordReader
from reweighting.rollouts.chains import usable
from reweighting.system import terminal

SHORT, LONG = 5_000, 20_000  # characters
CEILING = 1.0  # seconds for LONG of them
NOISE = 0.004  # seconds below which two times cannot be compared
# What a pattern or a loop may stumble over, repeated to the length wanted.
UNITS = [
    *("-", ">", "#", "*", "_", " ", "\t", "\u202f", "\n", "- ", "> #", "_ _\n", "a-", "\n \n"),
    *("step", "Step 1", "Step 1 ", "Step 1: ", "\nStep 1: a. ", " Step 1. ", "Step:" + 40 * " "),
    *("final answer", "Final answer: ", ". final answer ", "\nFinal answer is\n", "the answer is "),
    *("{", "}", "\\boxed{", "$", "\\text{", "(1)", "1", "1.", "\n1. a.", "\n1) ", "1,", "x", "A. "),
    *(
        ". ",
        "?",
        "!",
        "。",
        "一",
        "步骤一",
        "so ",
        "the ",
        "[",
        "(",
        "|",
        "\\[",
        "\x1b[",
        "<image>",
    ),
]


def numbered(line: str) -> Callable[[int], str]:
    """A text of the wanted length whose lines are numbered upwards."""
    return lambda length: "".join(line.format(n) for n in range(1, length // len(line)))


TEXTS: dict[str, Callable[[int], str]] = {
    **{repr(unit): lambda length, unit=unit: unit * (length // len(unit)) for unit in UNITS},
    "a chain on one line": numbered("Step {}: a. "),
    "a chain in one sentence": numbered("Step {}: "),
    "a chain of lines": numbered("\nStep {}: a."),
    "a chain of verdicts": numbered("\nStep {}: Final answer"),
    "a chain of thoughts": numbered("</think>\nStep {}: , so the "),
    "a numbered chain": numbered("\n{}. It is."),
    "a chain downwards": lambda n: "".join(f"\nStep {k}: a." for k in range(n // 12, 0, -1)),
    "a fence of spaces": lambda length: "Step" + " " * length + "1",
    "an answer far away": lambda length: "final answer" + " " * length + "x",
}


def read_record(text: str) -> None:
    reader = RecordReader("texts.json")
    image = {"image_path": "i.png"}
    reader.train_sample({"input": text, "add": text, "dataset": "d", "accuracy": 1, **image}, 1)
    reader.meta_sample({"input": text, "true_false": True, **image}, 2)
    reader.candidates_sample({"question": text, "candidates": [text], **image}, 3)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "step_starts": steps.step_starts,
    "step_starts with a pattern": lambda text: steps.step_starts(text, r"^[ \t]*Part \d+:"),
    "cut_steps": steps.cut_steps,
    "split_question": steps.split_question,
    "record_prompt": lambda text: steps.record_prompt("Q", text),
    "chain_prompts": lambda text: steps.chain_prompts("Q", text),
    "answers.extract": answers.extract,
    "answers.is_right": lambda text: answers.is_right(text, "B", ["red", "blue"]),
    "answers.same": lambda text: answers.same(text, "plain words"),
    "printable": terminal.printable,
    "holds_control_token": texts.holds_control_token,
    "RecordReader": read_record,
    "usable": usable,
    "exchange.lettered": lambda text: exchange.lettered(text, {"A": text, "C": text}),
    "exchange._listed": lambda text: exchange._listed("[" + text),
}


def seconds(function: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    with contextlib.suppress(ValueError):  # too many steps: refused, which takes its time too
        function(text)
    return time.process_time() - start


@pytest.mark.parametrize("name", FUNCTIONS)
def test_time_grows_with_the_length_of_the_text(name):
    function = FUNCTIONS[name]
    for kind, make in TEXTS.items():
        short, long = make(SHORT), make(LONG)
        # The best of a few, as others use the machine; stop at the first that is good enough.
        for _ in range(4):
            times = seconds(function, short), seconds(function, long)
            if times[1] > 3 * CEILING:  # no neighbour explains this
                pytest.fail(f"{name} on {kind}: {times[1]:.1f} s")
            if times[1] < CEILING and times[1] < 8 * times[0] + NOISE:
                break
        else:
            pytest.fail(f"{name} on {kind}: {times[0]:.4f} s, four times the text {times[1]:.4f} s")


def test_rule_lines_do_not_hang():
    # Forty dashes never came back.
    for text in (
        "-" * 40,
        "_" * 60 + " is red",
        "> " * 40,
        "Step 1: a\n" + "-" * 80 + "\nStep 2: b",
    ):
        start = time.process_time()
        steps.split_steps(text)
        assert answers.extract(text) == ""
        assert time.process_time() - start < 0.1


def all_patterns() -> dict[str, re.Pattern[str]]:
    """Every regular expression of the package: kept in a name, or written into a call of re."""
    found = {}
    for module in pkgutil.walk_packages(reweighting.__path__, "reweighting."):
        if module.ispkg:
            continue
        source = Path(module.module_finder.path, f"{module.name.split('.')[-1]}.py").read_text()
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "re"
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found[f"{module.name}:{node.lineno}"] = re.compile(node.args[0].value)
        if "re.compile(" in source:
            for name, value in vars(importlib.import_module(module.name)).items():
                if isinstance(value, re.Pattern):
                    found[f"{module.name}.{name}"] = value
    return found


def unbounded(parsed) -> Iterator[patterns.parser.SubPattern]:
    """What is repeated without bound in a parsed regular expression, at any depth."""
    if isinstance(parsed, tuple) and len(parsed) == 3 and parsed[1] is patterns.parser.MAXREPEAT:
        yield parsed[2]
    if isinstance(parsed, tuple | list | patterns.parser.SubPattern):
        for part in parsed:
            yield from unbounded(part)


def nested(pattern: str) -> bool:
    """Whether something repeated without bound is repeated without bound."""
    bodies = unbounded(patterns.parser.parse(pattern))
    return any(list(unbounded(body)) for body in bodies)


def test_no_pattern_repeats_a_repetition():
    found = all_patterns()
    known = {"steps._MARKER", "steps._VERDICT", "texts._CONTROL_TOKEN"}
    assert {f"reweighting.records.{name}" for name in known} <= set(found)
    assert [name for name, pattern in found.items() if nested(pattern.pattern)] == []
    # The one that hung.
    assert nested(r"(?:^[ \t]*(?:[#>*_-]+[ \t]*)*)final")
    assert nested(r"((a|b+)c)*") and nested(r"(?=(?:x+)+)") and not nested(r"a*b+(?:cd)*")


@pytest.mark.parametrize(
    "pattern, why",
    [
        ("(", "no regular expression"),
        ("(a+)+b", "more than 10,000 ways"),
        ("(?:a|bc)*d", "more than 10,000 ways"),
        ("(?:a|b|ab){0,50}c", "more than 10,000 ways"),
        ("(?:aa|[ab]a)*c", "more than 10,000 ways"),
        (14 * "(?:aa|[ab]a)", "more than 10,000 ways"),
        (r"(?=(?:a{50}){50})b", "more than 10,000 ways"),
        (60 * "(" + "a" + 60 * ")+", "more than 10,000 ways"),
        ("a*b*c*d*", "more than 10,000 ways"),
        ("a{51}", "repeats something 51 times, at most 50"),
        ("x*", "between any two letters"),
        ("", "between any two letters"),
        ("a" * 201, "201 characters long, at most 200"),
    ],
)
def test_own_patterns_that_could_take_for_ever_are_refused(pattern, why):
    with pytest.raises(ValueError, match=why):
        compiled(pattern)


@pytest.mark.parametrize(
    "pattern, unit",
    [
        (r".*Step \d", "x"),
        (r"\w+\w+:", "x"),
        (r"^[ \t]*Part \d+:", " "),
        (r"(?:Part |Teil )?[A-Z]+\d*[.:]", "A"),
        (r"(?:ab)*c", "ab"),
    ],
)
def test_own_patterns_that_are_taken_are_quick(pattern, unit):
    text = (unit * LONG)[:LONG] + "\nStep 1: a"
    for _ in range(4):
        start = time.process_time()
        assert len(steps.step_starts(text, pattern)) < 2
        if time.process_time() - start < CEILING:
            return
    pytest.fail(f"{time.process_time() - start:.1f} s")
