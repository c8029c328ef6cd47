r"""`rlcore.grading.extract`: where each finder sees an answer, where it must see none, and that hostile text costs no time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlcore.grading.extract import FINDERS, ORDER, extract


@pytest.mark.parametrize(
    ("finder", "text", "answer"),
    [
        ("boxed", r"so \boxed{5}", "5"),
        ("boxed", r"\boxed{1} and then \boxed{2}", "2"),
        ("boxed", r"\boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ("boxed", r"\fbox{7}", "7"),
        ("boxed", r"\boxed {7}", "7"),
        ("boxed", r"$\boxed 5$ apples", "5"),
        ("boxed", r"\boxed{\boxed{5}}", "5"),
        ("boxed", r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        ("boxed", r"\boxed{3} but \boxed{4", "3"),  # cut off
        ("boxed", r"{ \boxed{5}", "5"),
        ("boxed", r"} \boxed{5}", "5"),
        ("boxed", r"\boxed{5} as asked, in \boxed{}", "5"),
        ("boxed", r"\boxed{5", None),
        ("boxed", r"\boxedfoo{5}", None),
        ("boxed", "5", None),
        ("answer_tag", "<answer> 5 </answer>", "5"),
        ("answer_tag", "<answer>1</answer> no: <answer>2</answer>", "2"),
        ("answer_tag", "<answer>1</answer> no: <answer>2", "1"),
        ("answer_tag", r"<answer>It is \boxed{3}.</answer>", "3"),
        ("answer_tag", "<answer>Alice is a knight\nBob is a knave</answer>", "Alice is a knight\nBob is a knave"),
        ("answer_tag", "1</answer>", None),
        ("hashes", "so\n#### 18", "18"),
        ("hashes", "so\n####18\n", "18"),
        ("hashes", "#### 1,080", "1080"),
        ("hashes", "#### $-3.50.", "-3.50"),
        ("hashes", "#### 1\n#### 2\nthe end", "2"),
        ("hashes", "#### 5\n#### Step 2: conclude", "5"),
        ("hashes", "#### 3. Conclude", None),
        ("hashes", "##### 5", None),
        ("final_answer", "The answer is 5.", "5"),
        ("final_answer", "The final answer is $x = 3.5$. I hope it is correct.", "x = 3.5"),
        ("final_answer", "**Answer:** 3.14\nand more", "3.14"),
        ("final_answer", "The answer is: 2. Or no, the answer is: 4", "4"),
        ("final_answer", "Final Answer: The final answer is\n\\[\n\\boxed{7}\n\\]", "7"),
        ("final_answer", "The answer is $0.\\overline{3}$.", "0.\\overline{3}"),
        ("final_answer", "The answer is Alice is a knight, Bob is a knave.", "Alice is a knight, Bob is a knave"),
        ("final_answer", "I answered 5.", None),
        ("final_answer", "The answer is", None),
        ("last_number", "3 and 4.", "4"),
        ("last_number", "it costs $1,234.50.", "1234.50"),
        ("last_number", "x = -5", "-5"),
        ("last_number", "10-5", "5"),
        ("last_number", "a debt of -$5", "-5"),
        ("last_number", "3/4 of it", "3/4"),
        ("last_number", r"-\frac{3}{4}", r"-\frac{3}{4}"),
        ("last_number", ".5", ".5"),
        ("last_number", "60%", "60%"),
        ("last_number", "1,2,3", "3"),
        ("last_number", "water is H2O", None),
        ("last_number", "none", None),
        ("json", 'So {"a": [1]} it is.', '{"a": [1]}'),
        ("json", "It is [1, 2].", "[1, 2]"),
        ("json", "```json\n[1]\n```\nor\n```\n[2]\n```", "[2]"),
        ("json", '<answer>```json\n{"a": 1}\n```</answer>', '{"a": 1}'),
        ("json", "{1} <answer> true </answer>", "true"),
        ("json", '<answer>{"a": "\\\\boxed{5}"}</answer>', '{"a": "\\\\boxed{5}"}'),
        ("json", "```json\n", None),
        ("json", "} none {", None),
        ("json", "none", None),
        ("tool_call", "<tool_call> 1\n2 </tool_call>", "1\n2"),
        ("tool_call", "<tool_call>1</tool_call> and <tool_call>2</tool_call>", "1\n2"),
        ("tool_call", "<tool_call>1</tool_call><tool_call>2", "1"),  # cut off
        ("tool_call", "1</tool_call>", None),
        ("tool_call", "<tool_call></tool_call>", None),
    ],
)
def test_finders(finder: str, text: str, answer: str | None) -> None:
    """Each finder alone finds the last answer of its kind, in one piece, or nothing."""
    assert extract(text, [finder]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"\boxed{1}</think> so 2", "2"),  # the template opened the thoughts
        (r"<think>\boxed{1}</think> ", None),
        (r"<think>\boxed{1}", None),
        (r"<think>a</think> \boxed{1} <think> hm", None),
        (r"the answer is 3, or \boxed{4}, or 5", "4"),
        ("the answer is 3. That was 5 minutes", "3"),
    ],
)
def test_thoughts_are_no_answers_and_the_order_holds(text: str, answer: str | None) -> None:
    """Only what follows the last closed thought is read, and earlier finders win over later ones."""
    assert extract(text, ORDER) == answer


def test_the_order_is_the_callers() -> None:
    assert extract(r"\boxed{4}, or 5", ["last_number", "boxed"]) == "5"


@pytest.mark.parametrize("finder", FINDERS)
@pytest.mark.parametrize(
    "unit",
    [
        r"\boxed{",
        r"\boxed ",
        "{",
        "}",
        "<answer>",
        "</answer>",
        "```",
        "<tool_call>",
        "#### 1 ",
        "####",
        "answer is ",
        "1",
        "1,111",
        " ",
        "$",
        "-",
    ],
)
def test_a_megabyte_takes_linear_time(finder: str, unit: str) -> None:
    """A megabyte of any finder's favourite start, with an end that spoils it, takes no more than a few seconds."""
    text = unit * (10**6 // len(unit)) + " \\"
    started = time.perf_counter()
    extract(text, [finder])
    assert time.perf_counter() - started < 5


@given(st.text(alphabet=r"\boxedf{}<>/answrthik#$-.,%0123 " + "\n", max_size=80))
def test_never_raises_and_never_finds_nothing(text: str) -> None:
    """Whatever the text, extraction returns an answer with something in it, or None."""
    answer = extract(text, ORDER)
    assert answer is None or answer.strip()
