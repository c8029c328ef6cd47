"""The dry run and the launch refuse the same; and every job there is has its work and its preview."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlcore import jobs, preview
from rlcore.errors import UserError
from rlcore.latent import LatentCodes
from rlcore.recipe.load import Loaded, load
from rlcore.recipe.schema import JOBS
from trainers.plan import plan


@pytest.fixture
def loaded(tiny: Path, tmp_path: Path) -> Callable[..., Loaded]:
    """A recipe over 1200 short problems and one of `training` characters, and one held-out problem of `held_out`: a token
    for each, and one for the end of the line, in a model with a context of 512."""

    def make(training: int, held_out: int, *overrides: str) -> Loaded:
        for name, texts in (("train", [f"{i}?" for i in range(1200)] + ["1" * training]), ("test", ["2" * held_out])):
            rows = [json.dumps({"prompt": text, "answer": "1"}) for text in texts]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        return load(
            [
                "quickstart",
                f"model={tiny}",
                f"output={tmp_path / 'run'}",
                "steps=1",
                "rollout.max_new_tokens=100",
                f"data={{name: file, path: {tmp_path / 'train.jsonl'}}}",
                f"eval={{data: {{name: file, path: {tmp_path / 'test.jsonl'}}}}}",
                *overrides,
            ]
        )

    return make


@pytest.mark.parametrize(
    ("training", "held_out", "overrides", "message"),
    [
        (
            412,
            9,
            [],
            r"train/1201 has 413 tokens; with rollout.max_new_tokens 100 .* context of 512: .*lower rollout.max_new_tok",
        ),
        (9, 412, [], r"test/1 has 413 tokens; with rollout.max_new_tokens 100 .* lower rollout.max_new_tokens"),
        (
            9,
            212,
            ["eval.max_new_tokens=300"],
            r"test/1 has 213 tokens; with eval.max_new_tokens 300 .* lower eval.max_new_tokens",
        ),
    ],
)
@pytest.mark.parametrize("start", ["launch", "dry run"])
def test_a_prompt_that_does_not_fit_is_refused_with_the_key_that_says_so(
    loaded: Callable, training: int, held_out: int, overrides: list[str], message: str, start: str
) -> None:
    recipe = loaded(training, held_out, *overrides)
    with pytest.raises(UserError, match=message):
        jobs.run(recipe, resume=False) if start == "launch" else list(preview.preview(recipe.recipe))


def test_thoughts_cut_at_budgets_must_fit_with_what_is_forced_and_their_answers(loaded: Callable) -> None:
    """A last budget of 90, four forced tokens and a summary of 7 make 101; of 6 they fit."""
    forcing = "rollout.anytime={budgets: [20, 90], ends_thought: '#### ', interruption: '..', begins_summary: '='}"
    cut = [forcing, "rollout.samples=16", "algorithm.advantage=brpo"]
    recipe = loaded(9, 9, *cut, "rollout.anytime.summary_tokens=7")
    for refused in (lambda: jobs.run(recipe, resume=False), lambda: list(preview.preview(recipe.recipe))):
        with pytest.raises(UserError, match="4 forced tokens and summary_tokens 7 are more than"):
            refused()
    lines = list(preview.preview(loaded(9, 9, *cut, "rollout.anytime.summary_tokens=6").recipe))
    assert "forced after a thought that is cut, 4 tokens: '..#### ='" in lines


@pytest.mark.parametrize(
    ("training", "held_out", "overrides", "longest"),
    [
        (411, 9, [], 412),
        (9, 411, [], 412),
        (9, 411, ["eval.max_new_tokens=50"], 412),
        (411, 9, ["eval.max_new_tokens=500"], 412),
    ],
)
def test_the_longest_prompt_of_all_is_what_the_budget_counts_with(
    loaded: Callable, training: int, held_out: int, overrides: list[str], longest: int
) -> None:
    """Each fits to the token, and each has its own limit."""
    assert f"longest sequence: {longest + 100}" in list(preview.preview(loaded(training, held_out, *overrides).recipe))


def test_a_prompt_that_the_tokenizer_cannot_write_is_warned_of(loaded: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy's tokenizer has no capitals."""
    assert list(preview.preview(loaded(9, 9, "prompt.template=so {problem}").recipe))
    assert "unknown to the model's tokenizer" not in capsys.readouterr().err
    assert list(preview.preview(loaded(9, 9, "prompt.template=SO {problem}").recipe))
    assert "2 tokens of the first prompt are unknown to the model's tokenizer" in capsys.readouterr().err


def test_the_dry_run_of_a_supervised_job(tiny: Path) -> None:
    recipe = load(["toy/chain-steps", f"model={tiny}", "data.count=7"]).recipe
    lines = list(preview.preview(recipe))
    assert lines[0] == "7 training problems"
    assert lines[1].startswith("first prompt, ")


def test_the_dry_run_of_a_supervised_job_that_is_measured(tiny: Path) -> None:
    layers = ["toy/chain-steps", f"model={tiny}", "data.count=7"]
    solved = load([*layers, "evaluated_on={name: chain, count: 3, strategies: {steps: 1.0}}"]).recipe
    assert list(preview.preview(solved))[1].startswith("held out: 3 problems with solutions, ")
    with pytest.raises(UserError, match="problem chain/train/0 has no solution"):
        list(preview.preview(load([*layers, "evaluated_on={name: chain, count: 3}"]).recipe))


@pytest.mark.parametrize("recipe", ["quickstart", "toy/chain-steps", "lpc_chain", "prm_chain"])
def test_a_model_with_latent_codes_is_not_trained_without_them(
    recipe: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any job that trains, before a launch or a dry run begins its work; a run's folder is as good as the model in it."""
    monkeypatch.setattr(jobs, "WORK", {})
    monkeypatch.setattr(preview, "OF_JOB", {})
    shutil.copytree(tiny, tmp_path / "liked" / "model")
    LatentCodes(64, 2, 8).save(tmp_path / "liked" / "model")
    loaded = load([recipe, f"model={tmp_path / 'liked'}", f"output={tmp_path / 'run'}"])
    for refused in (lambda: jobs.run(loaded, resume=False), lambda: list(preview.preview(loaded.recipe))):
        with pytest.raises(UserError, match="liked' has latent codes, without which it would be trained on"):
            refused()


def test_every_job_has_its_own_work_and_preview() -> None:
    assert set(jobs.WORK) == set(preview.OF_JOB) == set(JOBS.values())


@pytest.mark.parametrize(
    ("judge", "separator", "message"),
    [
        ("no/such/folder", "\\n", "model folder 'no/such/folder' does not exist"),
        ("{name: chain_truth}", "\\n\\n", "the reward model learned steps that end with"),
    ],
)
def test_a_judge_is_refused_in_a_dry_run(loaded: Callable[..., Loaded], judge: str, separator: str, message: str) -> None:
    paid = f'rewards=[answer, {{name: process, judge: {judge}, separator: "{separator}"}}]'
    recipe = loaded(9, 9, paid).recipe
    with pytest.raises(UserError, match=message):
        list(preview.preview(recipe))
    with pytest.raises(UserError, match=message):  # a launch says so before it makes or loads any model
        plan(recipe)  # type: ignore[arg-type]


def test_a_judges_weights_are_counted(loaded: Callable[..., Loaded], tiny: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
    model.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "judge")
    judge = f"{{name: sequence_classifier, model: {tmp_path / 'judge'}, template: '{{problem}}{{current}}'}}"
    paid = f"rewards=[answer, {{name: process, judge: {judge}, credit: last}}]"
    lines = list(preview.preview(loaded(9, 9, paid).recipe))
    [line] = [line for line in lines if "process's reward model" in line]
    assert line.endswith(f"{4 * model.base_model.num_parameters() / 2**20:.1f} MiB")


def test_tokens_of_older_policies_without_a_correction_are_warned_of(
    loaded: Callable[..., Loaded], capsys: pytest.CaptureFixture[str]
) -> None:
    for mode, correction, warns in (("async", "null", True), ("async", "token_tis", False), ("sync", "null", False)):
        list(preview.preview(loaded(9, 9, f"cluster.mode={mode}", f"algorithm.correction={correction}").recipe))
        assert ("warning: async trains on older policies' tokens, uncorrected" in capsys.readouterr().err) is warns
