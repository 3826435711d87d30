"""Texts split into steps: markers, restarts, verdicts, and what is no step."""

from __future__ import annotations

import pytest

from reweighting.records.answers.extraction import extract
from reweighting.records.chains import describe_chains
from reweighting.records.steps import (
    VERDICT_NAMES,
    chain_prompts,
    record_prompt,
    split_question,
    split_steps,
)


@pytest.mark.parametrize(
    "first", ["Step {}:", "### Step {}:", "**Step {}**", "STEP {}.", "step {}"]
)
def test_every_marker_style_is_split_before_its_decoration(first):
    parts = [f"{first.format(k)} part {k}" for k in (1, 2, 3)]
    response = "\n\n".join(parts) + "\n\n**Final answer:** B"
    assert split_steps(response) == [
        parts[0],
        "\n\n".join(parts[:2]),
        "\n\n".join(parts),
    ]


def test_mentions_of_a_step_do_not_cut_and_step_10_is_not_step_1():
    response = "\n".join(
        [f"Step {k}: as Step 2 and Step 10 say, use step {k + 1} later." for k in range(1, 12)]
    )
    prefixes = split_steps(response)
    assert len(prefixes) == 11
    assert prefixes[0] == response.splitlines()[0]
    assert prefixes[9].endswith("use step 11 later.")


def test_steps_on_one_line_need_a_sentence_end_and_a_delimiter():
    response = "Step 1: look at the bar. Step 2: it reads 4 as in Step 3 above. Final answer: 4"
    assert split_steps(response) == [
        "Step 1: look at the bar.",
        "Step 1: look at the bar. Step 2: it reads 4 as in Step 3 above.",
    ]


def test_the_verdict_is_cut_from_a_response_without_steps_too():
    assert split_steps("It is red.\nFinal answer: red") == ["It is red."]
    assert split_steps("It is red. ") == ["It is red."]
    # Nothing would be left of a bare verdict: it is scored whole.
    assert split_steps("**Final answer:** red") == ["**Final answer:** red"]
    for verdict in (
        "Final Answer\n4",
        "### Final\u202fanswer: 4",
        "Therefore, the final answer is 4.",
        "The final answer is: 4",
        "最终答案：4",
        "Respuesta final: 4",
    ):
        assert split_steps(f"It is so.\n{verdict}") == ["It is so."]
        assert split_steps(f"Step 1: it is so.\n\n{verdict}") == ["Step 1: it is so."]
    for verdict in (
        "Therefore, the final answer would be 4",
        "So, our final answer is 4.",
        "Final result: 4",
        "最后答案：4",
        "최종 정답은 4",
        "Đáp án cuối cùng là 4",
    ):
        for before in ("It is so.", "Step 1: a.\nStep 2: it is so."):
            assert split_steps(f"{before}\n{verdict}")[-1] == before
    chain = "Step 1: a.\nStep 2: it is 3{} final answer is 3. Indeed."
    for text in (", so the", "; therefore, our", ", and thus the"):
        assert split_steps(chain.format(text))[-1] == "Step 1: a.\nStep 2: it is 3"
    # A chain that goes on after it has stated it.
    chain = "Step 1: a.\nFinal answer: 3\nStep 2: verify it."
    assert split_steps(f"{chain}\nFinal answer: 3")[-1] == chain
    mention = "Step 1: the final answer must be whole.\nSo final answers differ."
    assert split_steps(mention) == [mention]


@pytest.mark.parametrize(
    "first",
    [
        *("Step\u00a0{}:", "**Step\u202f{}:**", "\u3000Step {}:", "\ufeffStep {}:", "[Step {}]"),
        *("(Step {})", "<step {}>", "| Step {} |", "Step #{}:", "Step-{}:", "• Step {}:"),
        *(
            "{}) Step {}:",
            "\\textbf{{Step {}:}}",
            "步骤{}：",
            "第{}步：",
            "Étape {} :",
            "Schritt {}:",
        ),
        *("Paso {}:", "Шаг {}:", "{}단계:", "{}.", "{})", "({})", "### {}.", "**{}.**", "{}、"),
    ],
)
def test_the_usual_numberings_are_steps(first):
    parts = [first.format(*[k] * 2) + f" part {k} is here." for k in (1, 2, 3)]
    for space in ("\n", "\r\n", "\n\n", "\u2028"):
        chain = space.join([*parts, "Final answer: B"])
        assert split_steps(chain) == [space.join(parts[:count]) for count in (1, 2, 3)]


@pytest.mark.parametrize(
    "verdict",
    [
        *(
            "Step 3: Final answer: 3",
            "### Step 3: Final Answer\nThe answer is C",
            "Step 3: 最终答案：3",
        ),
        *("**Step 3: Final Answer**\nC", "Step 3 - Final answer\n3", "(Step 3) Final answer: 3"),
        *("Step 3: Therefore, the final answer is 3.", "Step 3. The final answer would be 3."),
        "Step 3: Final answer: 3\nFinal answer: 3",
    ],
)
def test_a_step_that_is_nothing_but_the_verdict_is_none(verdict):
    steps = ["Step 1: a.", "Step 1: a.\nStep 2: b."]
    assert split_steps(f"{steps[1]}\n{verdict}") == steps
    pattern = r"^\W*(?:Step \d)"
    assert split_steps(f"{steps[1]}\n{verdict}", pattern) == steps
    # Nothing would be left.
    alone = verdict.replace("Step 3", "Step 1")
    assert split_steps(alone) == [alone] and split_steps(f"It is.\n{alone}") == ["It is."]


@pytest.mark.parametrize("name", VERDICT_NAMES)
def test_what_is_cut_as_the_verdict_is_read_as_the_answer(name):
    assert split_steps(f"Step 1: it is 5.\n{name}: 3") == ["Step 1: it is 5."]
    assert extract(f"The answer is 5, I think.\nStep 1: it is 5.\n{name}: 3") == "3"


def test_numbers_and_mentions_around_a_verdict():
    assert split_steps("1. It is.\n2. It was.\n3. Final answer: 3.") == [
        "1. It is.",
        "1. It is.\n2. It was.",
    ]
    mention = "Step 1: a.\nStep 2: Final answer formats differ, it must be whole."
    assert split_steps(mention)[-1] == mention


def test_what_a_model_thought_is_no_part_of_its_response():
    thought = "<think>\nStep 1: p.\nStep 2: q.\nStep 3: r.\nFinal answer: 5\n</think>\n\n"
    response = "Step 1: a.\nStep 2: b.\nFinal answer: 3"
    assert split_steps(thought + response) == split_steps(response)
    assert split_steps(thought.replace("<think>", "") + response) == split_steps(response)
    assert split_steps(thought + "It is 3.") == ["It is 3."]
    assert len(split_steps(thought)) == 3  # there is nothing else
    assert split_question(f"How much?\n\n{thought}{response}") == ("How much?", response)
    assert record_prompt("Q", f"{thought}Step 1: a.\nStep 2: b. ").steps == (
        "Step 1: a.",
        "\nStep 2: b. ",
    )


def test_chinese_numerals_and_sentences():
    steps = [f"步骤{n}：看图。" for n in "一二三四五六七八九十"] + ["步骤十一：看图。"]
    assert len(split_steps("".join(steps) + "最终答案：4")) == 11
    assert split_steps("".join(steps) + "最终答案：4")[1] == "步骤一：看图。步骤二：看图。"


@pytest.mark.parametrize(
    "text",
    [
        "The options are:\n1. red\n2. blue\nIt is the second one.",  # no sentences
        "1. It is red.\n2. It is blue.\n1. It is red again.",  # starts again
        "1. It is red.\n3. It is blue.",  # a gap
        "2. It is red.\n3. It is blue.",
        "1. It is red. And 2. it is blue.",  # not at the start of a line
        "It grew by\n1.5 percent.\n2.5 percent.",
    ],
)
def test_plain_numbers_that_may_be_no_steps_are_none(text):
    assert split_steps(text) == [text]


def test_lists_within_steps_do_not_count():
    step = "Step 1: there are\n1. A cat is here.\n2. A dog is here."
    assert split_steps(f"{step}\nStep 2: so two.") == [step, f"{step}\nStep 2: so two."]
    step = "1. There are:\n   1. A cat.\n   2. A dog."
    assert split_steps(f"{step}\n2. So two.") == [step, f"{step}\n2. So two."]


def test_an_own_pattern_marks_steps():
    chain = "First part.\n\nSecond part.\n\nThird part.\n\nFinal answer: 4"
    parts = ["First part.", "First part.\n\nSecond part."]
    assert split_steps(chain, r"\A|\n\n")[:2] == parts
    assert len(split_steps(chain, r"\A|\n\n")) == 3
    assert split_steps("Part A: x\nPart B: y", "^Part [A-Z]") == [
        "Part A: x",
        "Part A: x\nPart B: y",
    ]
    # It replaces the known markers.
    assert split_steps("Step 1: x\nStep 2: y", "^Part") == ["Step 1: x\nStep 2: y"]


RESTARTS = {
    "check": ("", "Step 1: a.\nStep 2: b.\nStep 3: check. Step 1. was right.", 3),
    "check list": ("", "Step 1: a.\nStep 2: b.\nStep 3: so:\n- Step 1: fine\n- Step 2: fine", 3),
    "one step": ("", "Step 1: it is 5. Step 1. was right.", 1),
    "retry": ("Step 1: a.\nStep 2: b.\nI start again.", "Step 1: c.\nStep 2: d.", 2),
    "parts": ("(a)\nStep 1: a.\nStep 2: b.\n(b)", "Step 1: c.\nStep 2: d.\nStep 3: e.", 3),
    "quoted": ("Answer so:\nStep 1: ...\nStep 2: ...", "Step 1: c.\nStep 2: d.\nStep 3: e.", 3),
}


@pytest.mark.parametrize("name", RESTARTS)
def test_a_chain_that_names_step_1_twice_has_one_layout(name):
    """The same steps as a candidate, as a meta record's response, and found behind a question."""
    before, response, count = RESTARTS[name]
    text = f"{before}\n{response}".strip()
    question = "How much is it?"
    found = split_question(f"{question}\n\n{text}\nFinal answer: 6")
    assert found == (f"{question}\n\n{before}".strip(), f"{response}\nFinal answer: 6")
    candidate = split_steps(f"{text}\nFinal answer: 6")
    assert len(candidate) == len(split_steps(found[1])) == count
    assert [c.removeprefix(before).strip() for c in candidate] == split_steps(found[1])


def test_too_many_steps_are_refused():
    chain = "\n".join(f"Step {n}: x" for n in range(1, 1002))
    with pytest.raises(ValueError, match="has 1,001 steps, at most 1,000 can be scored"):
        chain_prompts("Q", chain)
    assert len(chain_prompts("Q", chain[: chain.index("Step 1001")])) == 1000


def test_a_summary_of_chains_counts_steps_and_answers():
    chains = [(1, False), (3, True), (3, True), *((n, True) for n in range(4, 14))]
    assert describe_chains(chains) == (
        "13 chains: 1 of 1 step, 2 of 3 steps, 1 of 4 steps, 1 of 5 steps, 1 of 6 steps, "
        "1 of 7 steps, 1 of 8 steps, 1 of 9 steps, 4 of more; 1 without a final answer"
    )


def test_question_and_response_of_a_meta_record():
    question = "Question: Use Step 1 and Step 2.\n\nOptions: (A) yes (B) no"
    assert split_question(question + "\n\nStep 1: x\nStep 2: y") == (
        question,
        "Step 1: x\nStep 2: y",
    )
    assert split_question("Question: what?\n\nOptions: (A) yes") == (
        "Question: what?\n\nOptions: (A) yes",
        "",
    )
    assert split_question("Question: what?\n\nIt is red.") == ("Question: what?", "It is red.")
    assert split_question("Question: q\nOptions: (A) a\n\nFinal answer: A") == (
        "Question: q\nOptions: (A) a",
        "Final answer: A",
    )


def test_chain_prompts_join_as_train_records_do():
    prompts = chain_prompts("Q", "Step 1: a\nStep 2: b\nFinal answer: c")
    assert [prompt.text for prompt in prompts] == [
        "Q\n\nStep 1: a",
        "Q\n\nStep 1: a\nStep 2: b",
    ]
