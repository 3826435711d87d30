"""Final answers as models write them, against the truth as benchmarks store it."""

from __future__ import annotations

import pytest

from reweighting.answers import extract, is_right, letter, same


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("Step 1: x.\nFinal answer: B", "B"),
        ("Final answer: A\nNo.\n**Final Answer:** (C) 12 cm", "(C) 12 cm"),
        ("so \\boxed{\\frac{1}{2}} and then \\boxed{x^{2}}.", "x^{2}"),
        ("We think.\nAnswer: 17", "17"),
        ("The answer is 4.", "4."),
        ("nothing here", ""),
    ],
)
def test_extract(response, answer):
    assert extract(response) == answer


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("B", "B"),
        ("(c)", "C"),
        ("D. 45°", "D"),
        ("Option A", "A"),
        ("the answer is (E)", "E"),
        ("A triangle", None),
        ("Because", None),
        ("12", None),
    ],
)
def test_letter(text, found):
    assert letter(text) == found


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ("B", "B"),
        ("(B) 45°", "B"),
        ("b.", "B"),
        ("The red circle.", "red circle"),
        ("1,200", "1200"),
        ("12 cm", "12"),
        ("12 cm", "12 cm"),
        ("0.50", "0.5"),
        ("-3", "−3"),
        ("\\frac{1}{2}", "0.5"),
        ("$\\frac{2}{4}$", "\\frac{1}{2}"),
        ("x^2+2x+1", "(x+1)^2"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("Yes", "yes"),
        ("Ab and 4", "ab and 4"),
    ],
)
def test_equal_answers(predicted, true):
    assert same(predicted, true)


@pytest.mark.parametrize(
    ("predicted", "true"),
    [
        ("C", "B"),
        ("(A) 45°", "B"),
        ("blue circle", "red circle"),
        ("13", "12"),
        ("12 cm", "12 m"),
        ("\\frac{1}{3}", "0.5"),
        ("", "B"),
        ("", ""),
        ("no", "yes"),
        ("Ab and 4", "ab and 5"),
        ("A", "apple"),
        ("1 or 2", "1"),
    ],
)
def test_different_answers(predicted, true):
    assert not same(predicted, true)


def test_options_may_be_named_instead_of_lettered():
    choices = ["a cat", "a dog", "12"]
    assert same("dog", "B", choices) and same("B", "a dog", choices) and same("12", "C", choices)
    assert not same("cat", "B", choices) and not same("A", "dog", choices)
    assert not same("F", "a dog", choices)


def test_a_response_is_judged_by_its_last_answer():
    response = "Step 1: first.\nFinal answer: A\nStep 2: no.\nFinal answer: B"
    assert is_right(response, "B") and not is_right(response, "A")
    assert not is_right("Step 1: never answered.", "B")
