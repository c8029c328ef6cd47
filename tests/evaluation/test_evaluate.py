"""Evaluation: fixed seeds, honest counts, and the command's JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.verifiable.answer import Answer
from rlcore.cli import main as cli
from rlcore.data.sources.chain import chain
from rlcore.errors import UserError
from rlcore.evaluation.evaluate import evaluate
from rlcore.models import load_tokenizer
from rlcore.prompts import Prompter
from rlcore.recipe.schema import Prompt
from rlcore.types import Invalid, Request, Sampling
from rollout.engines.scripted import Scripted

PROBLEMS = chain(split="test", count=4)


def scripted(tiny: Path, script: Callable[[Request], str], samples: int = 4) -> dict[str, float]:
    tokenizer = load_tokenizer(str(tiny))
    prompter = Prompter(Prompt(), tokenizer)
    sampling = Sampling(max_new_tokens=20)
    grader = Answer()
    try:
        return evaluate(
            Scripted(tokenizer, script), prompter, PROBLEMS, lambda g: grader.score(g, None), samples, sampling, 0
        ).summary()
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


def test_nothing_but_invalid_verdicts_is_an_error(tiny: Path) -> None:
    tokenizer = load_tokenizer(str(tiny))
    done = evaluate(
        Scripted(tokenizer, lambda _: "#### 1"),
        Prompter(Prompt(), tokenizer),
        PROBLEMS,
        lambda groups: [Invalid("grader down") for group in groups for _ in group.completions],
        1,
        Sampling(max_new_tokens=20),
        0,
    )
    with pytest.raises(UserError, match="not one of 4 completions could be graded: grader down"):
        done.summary()


def test_the_command_gives_the_same_number_for_the_same_seed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(file: str, *extra: str) -> dict:
        arguments = ["--model", str(tiny), "--data", "{name: chain, count: 30}", "--max-new-tokens", "12", "--samples", "2"]
        monkeypatch.setattr(sys, "argv", ["rlcore", "eval", *arguments, "--json", str(tmp_path / file), *extra])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        result: dict = json.loads((tmp_path / file).read_text())
        return result

    first, again, other = run("a"), run("b", "--batch-size", "7"), run("c", "--seed", "1")
    assert again.pop("entropy") == pytest.approx(first["entropy"], abs=1e-6)  # log-probs are equal to rounding, tokens exactly
    assert again | {"batch_size": 64} == {k: v for k, v in first.items() if k != "entropy"}
    assert first["entropy"] != other["entropy"]
    for key in ("accuracy", "low", "high", "pass@2", "maj@2", "length", "truncated", "invalid", "grader", "prompt_hash"):
        assert key in first
