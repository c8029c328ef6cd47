"""How a reward model's texts are written, and that what is kept beside its weights writes them again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rewards.judged_text import STEP, Asked, JudgedText, Row, load_judged_text, packed
from rlcore.data.step_examples import Kind
from rlcore.errors import UserError


def test_steps_are_joined_and_put_in_place() -> None:
    text = JudgedText("prm", "text", STEP, "\n\n").write(Asked("1+1?", ("one", "two"), ("three",)))
    assert text.startswith("Question:\n1+1?\n\n")
    assert text.endswith("Previous reasoning:\none\n\ntwo\n\nNow, let's focus on the current step:\nthree")


def test_braces_in_what_is_judged_are_only_text() -> None:
    layout = JudgedText("prm", "text", "{problem}|{previous}|{current}|{steps}|{other}", "/")
    text = layout.write(Asked("{current}", ("{problem}",), ("a", r"\frac{1}{2}")))
    assert text == r"{current}|{problem}|a/\frac{1}{2}|{steps}|{other}"


def test_what_is_kept_beside_the_weights_writes_the_same(tmp_path: Path) -> None:
    written = JudgedText("hrm", "text", "{problem} {current}", " ", temperature=1.5)
    written.save(tmp_path)
    assert load_judged_text(tmp_path) == written


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it is no reward model of `job: reward_model`"):
        load_judged_text(tmp_path)


def test_what_begins_alike_is_read_once() -> None:
    asked = [Asked("q", (), ("a",)), Asked("q", ("a",), ("b",)), Asked("q", ("a",), ("c",)), Asked("p", (), ("a",))]
    assert packed(asked) == [("q", ("a", "b"), {1: 0, 2: 1}), ("q", ("a", "c"), {2: 2}), ("p", ("a",), {1: 3})]


def test_everything_is_answered_once_even_what_is_asked_twice() -> None:
    asked = [Asked("q", (), ("a",)), Asked("q", (), ("a",)), Asked("q", (), ("a", "b"))]
    found = packed(asked)
    assert sorted(i for _, _, ends in found for i in ends.values()) == [0, 1, 2]


def test_a_model_of_solutions_reads_all_that_stands_there() -> None:
    text = JudgedText("orm", "text", "{problem}|{previous}|{current}", "/")
    assert text.write(Asked("q", ("a", "b"), ("c",))) == text.write(Asked("q", (), ("a", "b", "c"))) == "q||a/b/c"


def test_a_merged_pair_is_one_step_of_a_running_text(bpe: PreTrainedTokenizerFast) -> None:
    """With the separator between them the pair would ask what is asked of its second step, and have its score."""
    asked = [Asked("1+1?", ("a",), ("b",)), Asked("1+1?", (), ("a", "b"))]
    hrm, orm = (JudgedText(kind, "token", "{problem}\n{steps}", "\n").rows(asked, bpe) for kind in ("hrm", "orm"))
    assert [(bpe.decode(row.ids), row.asked) for row in hrm] == [("1+1?\na\nb\n", (0,)), ("1+1?\na b\n", (1,))]
    assert [bpe.decode(row.ids) for row in orm] == ["1+1?\na\nb\n"] * 2


@pytest.mark.parametrize("kind", ["prm", "hrm"])
def test_a_running_text_without_a_step_cannot_be_asked(kind: Kind, bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match=r"asked\[0\] has no step to be judged"):
        JudgedText(kind, "token", "{problem}\n{steps}", "\n").rows([Asked("q", ("a",), ())], bpe)


def test_what_has_no_step_cannot_be_asked() -> None:
    with pytest.raises(ValueError, match=r"asked\[1\] has no step to be judged"):
        packed([Asked("q", (), ("a",)), Asked("q", ("a",), ())])


def test_a_text_that_is_too_long_loses_only_what_is_asked_beyond() -> None:
    row = Row((5, 6, 7, 8, 9), (1, 4), (0, 1))
    assert row.within(5) == row
    assert row.within(4) == Row((5, 6), (1,), (0,))
    assert row.within(1) is None


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ки"])
def test_a_steps_score_stands_at_the_end_of_its_separator(separator: str, bpe: PreTrainedTokenizerFast) -> None:
    """Also where that is part of a token which begins before it, and where steps are empty or hold separators."""
    written = JudgedText("prm", "token", "{problem}\n{steps}", separator)
    steps = ("one.", "", "two\n", "three?", "déjà vu 🙂")
    [row] = written.rows([Asked("1+1?", steps[:i], steps[i : i + 1]) for i in range(5)], bpe)
    assert row.asked == (0, 1, 2, 3, 4)
    for count, end in enumerate(row.ends, 1):
        text = "1+1?\n" + "".join(step + separator for step in steps[:count])
        assert bpe.decode(row.ids[: end + 1]).startswith(text)
        assert not bpe.decode(row.ids[:end]).startswith(text)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that has learned to put a full stop and the line breaks after it into one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=258, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([f"{letter}.\n\n" for letter in "abcdefgh"] * 50, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert len(found("one.\n\n").input_ids) == 4
    return found
