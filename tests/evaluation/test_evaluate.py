"""Evaluation: fixed seeds, honest counts, and the command's JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from rewards.verifiable.answer import Answer
from rlcore.cli import main as cli
from rlcore.data.sources.chain import chain
from rlcore.errors import UserError
from rlcore.evaluation.evaluate import Verify, evaluate
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Prompt
from rlcore.types import Group, Invalid, Request, Sampling, Score, Scored
from rollout.scripted import Scripted

PROBLEMS = chain(split="test", count=4)
SMALL_BATCH = "{name: transformers, batch_size: 7}"


def scripted(
    tiny: Path,
    script: Callable[[Request], str],
    verify: Verify | None = None,
    samples: int = 4,
    max_invalid_fraction: float = 1.0,
) -> dict[str, float]:
    """The summary of an evaluation of what the script says, judged by the real grader unless by another."""
    tokenizer = load_tokenizer(str(tiny))
    prompter = Prompter(Prompt(), tokenizer)
    sampling = Sampling(max_new_tokens=20)
    engine = Scripted(tokenizer, script)
    grader = Answer()
    judge = verify or (lambda groups: grader.score(groups, None))
    try:
        return evaluate(engine, prompter, PROBLEMS, judge, samples, sampling, 0, max_invalid_fraction).summary()
    finally:
        grader.close()


def test_every_number_of_a_scripted_evaluation(tiny: Path) -> None:
    """Problem 0: all four right; 1: one of four; 2: no answer given; 3: cut off."""
    gold = {problem.id: problem.answer for problem in PROBLEMS}
    wrong = {problem.id: str((int(problem.answer) + 1) % 10) for problem in PROBLEMS}

    def script(request: Request) -> str:
        place = [problem.id for problem in PROBLEMS].index(request.problem_id)
        right = place == 0 or (place == 1 and request.sample == 2)
        answer = gold[request.problem_id] if right else wrong[request.problem_id]
        return {2: "wait", 3: "wait" * 30}.get(place, f"#### {answer}")

    summary = scripted(tiny, script)
    assert summary["accuracy"] == pytest.approx((1 + 0.25) / 4)
    assert summary["pass@4"] == pytest.approx(2 / 4)
    assert summary["maj@4"] == pytest.approx(1 / 4)
    assert summary["truncated"] == pytest.approx(1 / 4)
    assert summary["no_answer"] == pytest.approx(2 / 4)
    assert (summary["problems"], summary["samples"], summary["invalid"]) == (4, 16, 0)
    assert summary["accuracy_low"] < summary["accuracy"] < summary["accuracy_high"]


def test_k_is_what_was_asked_over_the_problems_that_were_judged_whole(tiny: Path) -> None:
    """Of 4 samples each: problem 0 loses one to the grader, 1 all four; 2 has one right answer, 3 none."""

    def verify(groups: Sequence[Group]) -> list[Score]:
        down: Score = Invalid("grader down")
        right, wrong = Scored(1.0, judged="right"), Scored(0.0, judged="wrong")
        rows = [[down, right, right, right], [down] * 4, [right, wrong, wrong, wrong], [wrong] * 4]
        return [score for row in rows for score in row]

    summary = scripted(tiny, lambda _: "#### 1", verify)
    assert summary["accuracy"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert summary["pass@4"] == pytest.approx(1 / 2)
    assert summary["maj@4"] == 0
    assert summary["problems_fully_judged"] == 2
    assert not [name for name in summary if "@3" in name]


def test_a_reward_that_tells_no_answers_has_no_majority_and_no_share_without_answer(tiny: Path) -> None:
    def verify(groups: Sequence[Group]) -> list[Score]:
        return [Scored(float(c.sample == 0)) for group in groups for c in group.completions]

    summary = scripted(tiny, lambda _: "#### 1", verify)
    assert summary["pass@4"] == 1
    assert not {"maj@4", "no_answer"} & set(summary)


def test_the_grader_that_finds_no_answer_anywhere_says_so(tiny: Path) -> None:
    summary = scripted(tiny, lambda _: "wait")
    assert (summary["no_answer"], summary["maj@4"]) == (1, 0)


def test_a_half_broken_grader_stops_an_evaluation_with_its_reasons(tiny: Path) -> None:
    def verify(groups: Sequence[Group]) -> list[Score]:
        return [Invalid("down") if c.sample == 0 else Scored(1.0) for group in groups for c in group.completions]

    with pytest.raises(UserError, match=r"4 of 16 completions could not be graded, .*max_invalid_fraction 0.2: 4 x down"):
        scripted(tiny, lambda _: "#### 1", verify, max_invalid_fraction=0.2)
    assert scripted(tiny, lambda _: "#### 1", verify, max_invalid_fraction=0.25)["invalid"] == pytest.approx(0.25)


def test_nothing_but_invalid_verdicts_is_an_error(tiny: Path) -> None:
    with pytest.raises(UserError, match="not one of 16 completions could be graded: grader down"):
        scripted(tiny, lambda _: "#### 1", lambda groups: [Invalid("grader down") for g in groups for _ in g.completions])


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run `rlcore eval --model MODEL …` on a few small problems; its JSON."""

    def run(model: Path, *extra: str, limit: tuple[str, ...] = ("--max-new-tokens", "12")) -> dict[str, Any]:
        file = tmp_path / "result.json"
        arguments = ["--model", str(model), "--data", "{name: chain, count: 30}", *limit, "--samples", "2"]
        monkeypatch.setattr(sys, "argv", ["rlcore", "eval", *arguments, "--json", str(file), *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        result: dict[str, Any] = json.loads(file.read_text())
        return result

    return run


def test_the_command_gives_the_same_number_for_the_same_seed(tiny: Path, measure: Callable) -> None:
    first, again, other = measure(tiny), measure(tiny, "--engine", SMALL_BATCH), measure(tiny, "--seed", "1")
    assert again.pop("entropy") == pytest.approx(first["entropy"], abs=1e-6)  # log-probs are equal to rounding, tokens exactly
    assert again.pop("engine") == {"name": "transformers", "batch_size": 7}
    assert first["engine"] == {"name": "transformers"}
    assert again == {k: v for k, v in first.items() if k not in ("entropy", "engine")}
    assert first["entropy"] != other["entropy"]
    for key in ("accuracy", "low", "high", "pass@2", "maj@2", "length", "truncated", "invalid", "grader", "prompt_hash"):
        assert key in first


def test_the_command_truncates_as_it_is_told(tiny: Path, measure: Callable) -> None:
    """Each truncation lowers the entropy of what is sampled from; the two rules of top-h by different amounts."""
    ways = [
        ("--top-p", "0.5"),
        ("--top-k", "3"),
        ("--min-p", "0.5"),
        ("--top-h", "0.4"),
        ("--top-h", "0.4", "--top-h-normalized"),
    ]
    entropies = [measure(tiny, "--temperature", "0.1", *way)["entropy"] for way in [(), *ways]]
    assert all(0 < entropy < entropies[0] for entropy in entropies[1:])
    assert len(set(entropies)) == len(entropies)


def test_a_rule_of_top_h_without_top_h_is_refused(tiny: Path) -> None:
    from rlcore.cli.eval import EvalOptions, asking

    told = dict(
        samples=1, limit=1, seed=0, temperature=1.0, max_new_tokens=4, template=None, system=None, engine="transformers"
    )
    options = EvalOptions(
        str(tiny), "chain", dtype="float32", device="cpu", max_invalid_fraction=0.2, top_h_normalized=True, **told
    )
    with pytest.raises(UserError, match="give that, below 1"), asking(options):
        pass


class Parrot(Scripted):
    """An engine of one's own, with an option."""

    closed = 0

    def __init__(self, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], *, says: str) -> None:
        super().__init__(tokenizer, lambda _: says)

    def close(self) -> None:
        type(self).closed += 1


def test_the_engine_is_the_one_that_was_asked_for_with_its_options(tiny: Path, measure: Callable) -> None:
    def parrot(says: str) -> dict[str, Any]:
        result: dict[str, Any] = measure(tiny, "--engine", f"{{name: '{__name__}:Parrot', says: '{says}'}}")
        return result

    right = sum(problem.answer == "3" for problem in chain(split="test", count=30))
    assert parrot("#### 3")["accuracy"] == pytest.approx(right / 30)
    assert parrot("wait")["no_answer"] == 1
    assert Parrot.closed == 2


def test_without_a_limit_completions_are_as_long_as_the_context_allows(tiny: Path, measure: Callable) -> None:
    """At most 512 tokens, here as many as the longest prompt leaves of 512."""
    engine = f"{{name: '{__name__}:Parrot', says: '#### 1'}}"
    result = measure(tiny, "--engine", engine, "--template", "so many: {problem}", limit=())
    longest = max(len(f"so many: {problem.prompt}\n") for problem in chain(count=30))
    assert result["max_new_tokens"] == 512 - longest


@pytest.mark.xdist_group("vllm")
def test_the_command_runs_on_vllm(tiny: Path, measure: Callable) -> None:
    """Real vLLM. Greedy, so that both engines say the same."""
    vllm, here = (
        measure(tiny, "--temperature", "0", "--engine", e) for e in ("{name: vllm, kv_cache_gb: 0.1}", "transformers")
    )
    assert vllm["engine"] == {"name": "vllm", "kv_cache_gb": 0.1}
    assert (vllm["length"], vllm["accuracy"]) == (here["length"], here["accuracy"])


def test_a_runs_checkpoint_is_asked_as_it_was_trained(tiny: Path, tmp_path: Path, measure: Callable) -> None:
    policy = tmp_path / "run/checkpoints/step-1/policy"
    shutil.copytree(tiny, policy / "model")
    recipe = "model: a\nsteps: 1\ndata: gsm8k\nprompt: {template: 'Q: {problem} A:', system: Think., examples: EXAMPLES}\n"
    recipe += "rollout: {max_new_tokens: 9}\n"
    (tmp_path / "run/recipe.yaml").write_text(recipe.replace("EXAMPLES", "[{prompt: '1+1', answer: '2'}]"))
    (tmp_path / "run/metrics.jsonl").write_text("")
    trained, bare = measure(policy), measure(tiny)
    assert (trained["template"], trained["system"]) == ("Q: {problem} A:", "Think.")
    assert (bare["template"], bare["system"]) == ("{problem}", "")
    assert trained["prompt_hash"] != measure(tiny, "--template", "Q: {problem} A:", "--system", "Think.")["prompt_hash"]
    assert measure(policy, limit=())["max_new_tokens"] == 9
    assert trained["max_new_tokens"] == 12
    changed = measure(policy, "--template", "{problem}!", "--system", "")
    assert (changed["template"], changed["system"]) == ("{problem}!", "")


class Listener(Scripted):
    """Keeps what it is asked."""

    heard: list[str] = []  # noqa: RUF012

    def __init__(self, spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int]) -> None:
        super().__init__(tokenizer, lambda request: self.heard.append(tokenizer.decode(request.prompt_ids)) or "#### 1")


def test_a_runs_checkpoint_is_told_the_length_budget_of_its_step(tiny: Path, tmp_path: Path, measure: Callable) -> None:
    """B(t) is 40 in steps 1 and 2, 20 in 3 and 4; without a checkpoint's name it is that of the last step, 10."""
    recipe = "model: a\nsteps: 6\ndata: gsm8k\nprompt: {template: '{problem}+{budget}'}\n"
    recipe += "length_budget: {decay: {start: 40, factor: 0.5, every: 2}}\n"
    for place, budget in (("checkpoints/step-3/policy", 20), ("final", 10)):
        policy = tmp_path / "run" / place
        shutil.copytree(tiny, policy if place == "final" else policy / "model")
        (tmp_path / "run/recipe.yaml").write_text(recipe)
        (tmp_path / "run/metrics.jsonl").write_text("")
        Listener.heard.clear()
        measure(policy, "--engine", f"{{name: '{__name__}:Listener'}}")
        assert len(Listener.heard) == 60
        assert all(text.endswith(f"=?+{budget}\n") for text in Listener.heard)
