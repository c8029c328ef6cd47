"""Rewards of ours in TRL: what a reward sees of TRL's call, what TRL gets back, and TRL's own trainers stepping on it."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rewards.as_trl import as_trl
from rewards.implicit_reward import ImplicitReward, ImplicitRewardModel
from rewards.length.cosine import Cosine
from rewards.length.efficiency import Efficiency
from rewards.length.kimi import Kimi
from rewards.length.lcpo_exact import LcpoExact
from rewards.length.lcpo_max import LcpoMax
from rewards.length.overlong import Overlong
from rewards.length.short_rl import ShortRl
from rewards.length.triangle import Triangle
from rewards.verifiable.answer import Answer
from rewards.verifiable.format import Format
from rewards.verifiable.logic_rl import LogicRl
from rlcore import plugins
from rlcore.data.sources.chain import chain
from rlcore.errors import UserError
from rlcore.protocols import Reward, StatefulReward
from rlcore.recipe.schema import Prompt
from rlcore.types import Group, Invalid, Problem, Score, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlcore.models import ModelSpec


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    reward = Answer()
    yield reward
    reward.close()


class Seen(Reward):
    """Pays what `value` makes of a group, to each of its members, and keeps what it saw."""

    def __init__(self, value: Any = lambda group: 0.0) -> None:
        self.value, self.groups = value, []

    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        self.groups = list(groups)
        return [Scored(self.value(group)) for group in groups for _ in group.completions]


def call(function: Any, completions: Sequence[Any], prompts: Sequence[Any] | None = None, **columns: Any) -> Any:
    """As TRL's trainers call: one list per argument, by keyword."""
    ids = [list(range(5, 5 + len(str(c)))) for c in completions]
    prompts = prompts or ["1+1?"] * len(completions)
    return function(**{"prompts": prompts, "completions": completions, "completion_ids": ids, **columns})


def messages(text: str, role: str = "assistant", **more: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": text, **more}]


def test_a_verifiable_reward_gives_1_0_or_none(answer: Answer) -> None:
    """None is for what nobody could judge, here an unreadable gold answer: not a 0."""
    texts, golds = [r"\boxed{2}", r"\boxed{3}", r"\boxed{3}"], ["2", "2", "{{{"]
    assert call(as_trl(answer), texts, answer=golds) == [1.0, 0.0, None]
    assert call(as_trl(answer), [messages(t) for t in texts], [messages("1+1?", "user")] * 3, answer=golds) == [1, 0, None]


def test_it_has_the_name_that_recipes_use(answer: Answer) -> None:
    assert [as_trl(r).__name__ for r in (answer, Format(), Overlong(max_tokens=4, buffer=4), Seen())] == [
        "answer",
        "format",
        "overlong",
        "Seen",
    ]


def test_columns_become_the_problem() -> None:
    seen = Seen()
    call(as_trl(seen), ["a"], answer=[2], grader=["exact"], id=["p/1"], level=[3], trainer_state=object())
    assert [group.problem for group in seen.groups] == [Problem("p/1", "1+1?", "2", "exact", {"level": 3})]
    asked = [[*messages("Be brief.", "system"), *messages("1+1?", "user")]]
    call(as_trl(seen), [messages("a")], asked)
    assert [group.problem for group in seen.groups] == [Problem("Be brief.\n1+1?", "Be brief.\n1+1?", "")]


def test_rows_that_follow_one_another_with_one_problem_are_its_group() -> None:
    seen = Seen(lambda group: float(len(group.completions)))
    assert call(as_trl(seen), [*"abcdef"], ["p", "p", "p", "q", "q", "p"]) == [3, 3, 3, 2, 2, 1]
    assert [[c.sample for c in group.completions] for group in seen.groups] == [[0, 1, 2], [0, 1], [0]]
    assert call(as_trl(seen), [*"abc"], answer=["1", "1", "2"]) == [2, 2, 1]
    assert [c.text for group in seen.groups for c in group.completions] == [*"abc"]


def test_a_reward_finds_the_accuracy_of_the_verifiable_one(answer: Answer) -> None:
    seen = Seen()
    call(as_trl(seen, verifiable=answer), [r"\boxed{2}", "none", r"\boxed{3}"], answer=["2", "2", "{{{"], id=["a", "a", "b"])
    assert [group.accuracy for group in seen.groups] == [(1.0, 0.0), (None,)]


def test_length_rewards_find_answers_and_budgets(answer: Answer) -> None:
    """Lengths of 9 (right), 9 (wrong) and 12 (right), by hand; the budgets are 10, 10 and, of another problem, 2."""
    texts, columns = [r"\boxed{2}", r"\boxed{3}", r"so \boxed{2}"], {"answer": ["2"] * 3, "budget": [10, 10, 2], "id": [*"aab"]}
    both = {"alpha": 0.1}
    assert call(as_trl(LcpoExact(**both)), texts, **columns) == pytest.approx([-0.1, -0.1, -1.0])
    assert call(as_trl(LcpoMax(**both), verifiable=answer), texts, **columns) == pytest.approx([-0.4, 0, -1])
    assert call(as_trl(Triangle()), texts, **columns) == pytest.approx([0.9, 0.9, 0])
    del columns["budget"], columns["id"]  # one problem now, of lengths from 9 to 12
    assert call(as_trl(Kimi(), verifiable=answer), texts, **columns) == pytest.approx([0.5, 0, -0.5])
    columns["answer"] = ["2", "2", "{{{"]  # nobody can verify the last
    for reward in (Kimi(), Efficiency(), Cosine(max_tokens=20), LogicRl()):
        found = call(as_trl(reward, verifiable=answer), texts, **columns)
        assert [value is None for value in found] == [False, False, True]
    with pytest.raises(UserError, match=r"the length budget of 1\+1\? is None, .*in TRL: whole numbers in .* column `budget`"):
        call(as_trl(Triangle()), texts, **columns)
    with pytest.raises(UserError, match="'kimi' reads which completions are right: add the reward that tells, verifiable="):
        as_trl(Kimi())


class Spread(Reward):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        lengths = [len(c.token_ids) for group in groups for c in group.completions]
        return [Scored(3.0, per_token=(1.0, 2.0) + (0.0,) * (n - 2)) for n in lengths]


def test_a_value_spread_over_tokens_is_given_as_its_sum() -> None:
    assert call(as_trl(Spread()), ["abc", "ab"]) == [3.0, 3.0]


def test_what_trl_does_not_tell_is_no_number() -> None:
    """A reward that reads log-probs has nothing to say, rather than something wrong."""
    assert call(as_trl(Seen(lambda group: sum(group.completions[0].logprobs))), ["ab"]) == [None]


def test_texts_and_truncation_come_from_the_tokens_where_the_tokenizer_is_known(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """TRL may have taken thoughts out of the text. Without the tokenizer the text is TRL's, and nothing is truncated."""
    ids = [tokenizer("3+5=8").input_ids, [*tokenizer("3+5=8\n").input_ids, tokenizer.eos_token_id]]
    said = {"completions": [messages("8", thinking="3+5=")] * 2, "completion_ids": ids}
    seen = Seen()
    as_trl(seen, tokenizer=tokenizer)(prompts=["p", "p"], **said)
    told = [(c.text, c.truncated, list(c.token_ids)) for c in seen.groups[0].completions]
    assert told == [("3+5=8", True, ids[0]), ("3+5=8\n", False, ids[1])]
    as_trl(seen)(prompts=["p", "p"], completions=["x", "y"], completion_ids=ids)
    assert [(c.text, c.truncated) for c in seen.groups[0].completions] == [("x", False), ("y", False)]


def test_what_could_not_be_judged_is_counted_and_every_reason_told(answer: Answer) -> None:
    told: dict[str, Any] = {}
    golds = ["2", "2", "{{{", "{{{"]
    texts = [r"\boxed{2}", r"\boxed{3}", r"\boxed{2}", r"\boxed{3}"]
    call(as_trl(answer), texts, answer=golds, log_metric=told.__setitem__, log_extra=told.__setitem__)
    broken = "gold answer unparsable: {{{"
    assert told == {"rewards/answer/invalid": 0.5, "answer says": ["", "wrong answer: 3", broken, broken]}


class Boom(Reward):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        raise ZeroDivisionError("boom")


class Short(Reward):
    def score(self, groups: Sequence[Group], state: object) -> list[Score]:
        return [Invalid("why")]


def test_a_reward_that_breaks_its_contract_is_named() -> None:
    with pytest.raises(UserError, match=r"reward 'Boom' raised ZeroDivisionError: boom \(.*test_as_trl.py:\d+\)"):
        call(as_trl(Boom()), ["a"])
    with pytest.raises(UserError, match="reward 'Short' returned 1 scores for 2 completions"):
        call(as_trl(Short()), ["a", "b"])


def test_what_cannot_work_in_trl_is_refused_by_name(answer: Answer) -> None:
    stateful = ShortRl(length_tolerance=1)
    for settings in ({"reward": stateful, "verifiable": answer}, {"reward": Format(), "verifiable": stateful}):
        with pytest.raises(UserError, match="'short_rl' learns from the batches it scored, which TRL has no place for"):
            as_trl(**settings)
    with pytest.raises(UserError, match="'format' is not verifiable"):
        as_trl(Format(), verifiable=Format())


def test_missing_answers_and_torn_texts_are_refused(answer: Answer) -> None:
    missing = r"needs the right answer in a column `answer`, and the row '1\+1\?' has solution: rename"
    for function in (as_trl(answer), as_trl(Format(), verifiable=answer)):
        with pytest.raises(UserError, match=missing):
            call(function, ["2"], solution=["2"])
    with pytest.raises(UserError, match="needs the right answer"):
        call(as_trl(answer), ["2", "3"], answer=["2", None])
    for torn in (messages("8", reasoning_content="3+5="), [*messages("8"), *messages("9", "tool")]):
        with pytest.raises(UserError, match=r"took thoughts or tool calls out .* give as_trl the trainer's tokenizer"):
            call(as_trl(Format()), [torn])


OPTIONS: dict[str, dict[str, Any]] = {  # of the rewards that cannot do without
    "cosine": {"max_tokens": 12},
    "detail": {"cap": 4},
    "overlong": {"max_tokens": 12, "buffer": 12},
    "process": {"judge": {"name": "chain_truth"}, "separator": "\n"},
    "short_rl": {"length_tolerance": 1},
}


@pytest.fixture
def liked(tiny: Path, tmp_path: Path) -> Path:
    """What stands in the folder of a model that learned from preferences."""
    folder = shutil.copytree(tiny, tmp_path / "liked")
    ImplicitRewardModel(ImplicitReward(1.0, relative=False, averaged=True), Prompt(), reference=None).save(folder)
    return folder


def every_reward(liked: Path) -> Iterator[Reward]:
    """One of each that there is in `rewards/`."""
    options = OPTIONS | {"preference": {"model": str(liked)}}
    for name in plugins.names("rewards"):
        yield plugins.bind("rewards", name, options.get(name, {}))()


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
def test_every_stateless_reward_there_is_runs_in_trl(
    tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, liked: Path, tmp_path: Path
) -> None:
    """One real step with all of them: each has said something of every completion, and TRL has its mean."""
    import trl
    from datasets import Dataset

    rewards = [reward for reward in every_reward(liked) if not isinstance(reward, StatefulReward)]
    [verifiable] = [reward for reward in rewards if reward.verifiable]
    functions = [as_trl(r, verifiable=verifiable if r.reads_accuracy else None, tokenizer=tokenizer) for r in rewards]
    assert {function.__name__ for function in functions} == {
        *("answer", "format", "logic_rl", "partial_credit", "preference", "process"),
        *("cosine", "detail", "efficiency", "kimi", "lcpo_exact", "lcpo_max", "overlong", "triangle"),
    }
    trainer = trl.GRPOTrainer(
        model=tiny_spec.load(),
        reward_funcs=functions,
        args=trl.GRPOConfig(**small(tmp_path, max_steps=1)),
        train_dataset=Dataset.from_list(
            [{"prompt": f"{p.prompt}\n", "answer": p.answer, "budget": 6} for p in chain(count=20)]
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    for reward in rewards:
        reward.close()
    [row] = [row for row in trainer.state.log_history if "grad_norm" in row]
    for function in functions:
        assert math.isfinite(row[f"rewards/{function.__name__}/mean"])
        assert row[f"rewards/{function.__name__}/invalid"] == 0


def test_every_reward_that_learns_is_refused_by_its_name(liked: Path) -> None:
    learning = [reward for reward in every_reward(liked) if isinstance(reward, StatefulReward)]
    assert {"ShortRl", "Prime"} <= {type(reward).__name__ for reward in learning}
    for reward in learning:
        with pytest.raises(UserError, match=f"{type(reward).__module__.rpartition('.')[2]}' learns from the batches"):
            as_trl(reward)


def small(output: Path, max_steps: int) -> dict[str, Any]:
    """The settings of a trainer that takes so many steps of 16 completions of at most 12 tokens."""
    return dict(
        output_dir=str(output),
        max_steps=max_steps,
        per_device_train_batch_size=16,
        num_generations=8,
        max_completion_length=12,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
    )


@pytest.mark.filterwarnings("ignore:TRL currently supports vLLM")
@pytest.mark.parametrize(("algorithm", "conversational"), [("GRPO", False), ("GRPO", True), ("RLOO", False)])
def test_trls_trainers_train_on_them(
    algorithm: str,
    conversational: bool,
    tiny_spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    answer: Answer,
    tmp_path: Path,
) -> None:
    """Three real steps: TRL's metrics are the means of what the rewards gave each completion, and the weights move."""
    import trl
    from datasets import Dataset

    model, tokenizer = tiny_spec.load(), copy.deepcopy(tokenizer)
    rows: list[dict[str, Any]] = [{"prompt": f"{p.prompt}\n", "answer": p.answer} for p in chain(count=20)]
    if conversational:
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        rows = [{**row, "prompt": messages(row["prompt"], "user")} for row in rows]
    given: dict[str, list[list[float]]] = {"answer": [], "overlong": []}

    def kept(function: Callable[..., list[float | None]]) -> Callable[..., list[float | None]]:
        def keep(**arguments: Any) -> list[float | None]:
            values = function(**arguments)
            given[function.__name__].append(values)  # type: ignore[arg-type]
            return values

        keep.__name__ = function.__name__
        return keep

    trainer = getattr(trl, f"{algorithm}Trainer")(
        model=model,
        reward_funcs=[
            kept(as_trl(answer, tokenizer=tokenizer)),
            kept(as_trl(Overlong(max_tokens=12, buffer=12), tokenizer=tokenizer)),
        ],
        args=getattr(trl, f"{algorithm}Config")(**small(tmp_path, max_steps=3)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer.train()
    assert all((weight != before[name]).any() for name, weight in model.named_parameters())
    logged = [row for row in trainer.state.log_history if "rewards/answer/mean" in row]
    assert len(logged) == 3
    for step, row in enumerate(logged):
        assert set(given["answer"][step]) <= {0.0, 1.0}
        assert row["rewards/answer/mean"] == pytest.approx(sum(given["answer"][step]) / 16)
        assert row["rewards/overlong/mean"] == pytest.approx(sum(given["overlong"][step]) / 16)
        assert row["rewards/overlong/mean"] == pytest.approx(-row["completions/mean_length"] / 12)
        assert row["rewards/answer/invalid"] == 0
