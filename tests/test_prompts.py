"""Prompts: templates, few-shot turns, BOS once, and every id that ends a completion."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from rlcore.errors import UserError
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Prompt
from rlcore.types import Problem

PROBLEM = Problem("p", "two plus two", "4")
TEMPLATE = (
    "<s>{% for m in messages %}<turn> {{ m.role }} {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant {% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def make_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """Words split at white space; adds BOS to every text, as Llama's tokenizer does."""
    special = ["<s>", "</s>", "<unk>", "<turn>", "<end>", "<think>"]
    words = ["user", "assistant", "system", "two", "plus", "four", "is", "what", "be", "brief", "three", "six", "a", "b"]
    vocabulary = {word: i for i, word in enumerate(special + words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>", "<think>"]})
    fast.chat_template = chat_template
    return fast


def words(prompter: Prompter) -> list[str]:
    return prompter.tokenizer.convert_ids_to_tokens(list(prompter.render(PROBLEM)))


def test_plain_text_for_base_models_has_one_bos() -> None:
    prompter = Prompter(Prompt(template="what is {problem}", system="be brief"), make_tokenizer())
    assert words(prompter) == ["<s>", "be", "brief", "what", "is", "two", "plus", "two"]


def test_a_chat_template_that_writes_bos_is_not_given_a_second_one() -> None:
    prompter = Prompter(Prompt(system="be brief"), make_tokenizer(TEMPLATE))
    assert words(prompter) == [
        "<s>",
        "<turn>",
        "system",
        "be",
        "brief",
        "<end>",
        "<turn>",
        "user",
        "two",
        "plus",
        "two",
        "<end>",
        "<turn>",
        "assistant",
    ]


def test_few_shot_examples_are_turns_before_the_problem() -> None:
    spec = Prompt(template="what is {problem}", examples=[{"prompt": "three plus three", "answer": "six"}])
    chat = words(Prompter(spec, make_tokenizer(TEMPLATE)))
    assert chat == [
        "<s>",
        "<turn>",
        "user",
        "what",
        "is",
        "three",
        "plus",
        "three",
        "<end>",
        "<turn>",
        "assistant",
        "six",
        "<end>",
        "<turn>",
        "user",
        "what",
        "is",
        "two",
        "plus",
        "two",
        "<end>",
        "<turn>",
        "assistant",
    ]
    plain = words(Prompter(spec, make_tokenizer()))
    assert plain == ["<s>", "what", "is", "three", "plus", "three", "six", "what", "is", "two", "plus", "two"]


def test_enable_thinking_is_passed_through() -> None:
    thinking = Prompter(Prompt(enable_thinking=True), make_tokenizer(TEMPLATE))
    assert words(thinking)[-1] == "<think>"
    assert words(Prompter(Prompt(enable_thinking=False), make_tokenizer(TEMPLATE)))[-1] == "assistant"


def test_the_end_of_turn_is_the_templates_or_eos() -> None:
    chat, plain = make_tokenizer(TEMPLATE), make_tokenizer()
    assert Prompter(Prompt(), chat).end_of_turn() == chat.convert_tokens_to_ids("<end>")
    assert Prompter(Prompt(), plain).end_of_turn() == plain.eos_token_id
    assert Prompter(Prompt(chat="plain"), chat).end_of_turn() == chat.eos_token_id


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<turn> {{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}", "</s>"),
        ("{% for m in messages %}<turn> {{ m.content }} {% endfor %}", "</s>"),  # nothing closes it: EOS
    ],
)
def test_the_end_of_turn_is_looked_for_behind_what_was_said(template: str, end: str) -> None:
    """Templates that open a turn with a special token and close it with EOS, or not at all."""
    tokenizer = make_tokenizer(template)
    assert Prompter(Prompt(), tokenizer).end_of_turn() == tokenizer.convert_tokens_to_ids(end)


def test_asking_for_a_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        Prompter(Prompt(chat="template"), make_tokenizer())


def test_braces_in_a_problem_are_left_alone() -> None:
    prompter = Prompter(Prompt(template="what is {problem}"), make_tokenizer())
    assert prompter.text(Problem("p", r"\frac{1}{2} {problem}", "")).startswith(r"what is \frac{1}{2} {problem}")
