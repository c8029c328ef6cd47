"""`job: reward_model`: its loss, what it learns and does not, its stages and checkpoints, and how it is refused."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from rewards.calibration import measures
from rewards.judged_text import Asked, Row, load_judged_text
from rewards.judges.trained import Trained
from rlcore import jobs
from rlcore.cli.reward import evaluate
from rlcore.data.steps import LabelledSolution, StepLabel
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.preview import preview
from rlcore.recipe.load import load
from rlcore.recipe.schema import RewardModel
from tests.conftest import broken_off
from tests.trainers.test_loop import metrics
from trainers.classifier import CrossEntropy, LabelledInputs, batch_of
from trainers.judged import Labelled, material
from trainers.reward_model import batches, labels_of, log_odds, stage_steps
from trainers.supervised import is_held_out


def marked(*, count: int = 120) -> list[LabelledSolution]:
    """Steps of which a tiny model can see whether they are right: those with a `w` are wrong."""
    rng = random.Random(0)

    def solution(i: int) -> LabelledSolution:
        labels: list[StepLabel | None] = [rng.choice(["correct", "wrong", "correct"]) for _ in range(3)]
        steps = [f"{rng.randrange(100)}{'w' if label == 'wrong' else 'r'}{rng.randrange(100)}" for label in labels]
        return LabelledSolution(str(i), f"{i}+{i}=?", None, tuple(steps), tuple(labels))

    return [solution(i) for i in range(count)]


EASY = f"{{name: '{__name__}:marked'}}"


def arguments(tiny: Path, output: Path, *overrides: str) -> list[str]:
    small = ["batch_size=32", "epochs=2", "optimizer={learning_rate: 0.003}", "validate_every=4", "threads=1"]
    return ["prm_chain", f"model={tiny}", f"data={EASY}", f"output={output}", *small, *overrides]


def recipe_of(*given: str) -> RewardModel:
    recipe = load(list(given)).recipe
    assert isinstance(recipe, RewardModel)
    return recipe


def test_cross_entropy_by_hand() -> None:
    """σ(z) = 0.8, right and wrong, and a soft label of 0.25; right ones weigh 3."""
    z = torch.full((3, 1), math.log(4), requires_grad=True)
    labels = torch.tensor([[1.0], [0], [0.25]])
    loss = CrossEntropy((1.0, 3.0))(LabelledInputs(z, labels, torch.ones(3, 1)))
    expected = [-3 * math.log(0.8), -math.log(0.2), -0.75 * math.log(0.8) - 0.75 * math.log(0.2)]
    assert loss.per_token[:, 0].tolist() == pytest.approx(expected)
    assert loss.metrics["accuracy"].value == pytest.approx(1 / 3)
    loss.per_token.sum().backward()
    assert z.grad is not None
    assert z.grad[:, 0].tolist() == pytest.approx([-3 * 0.2, 0.8, -3 * 0.25 * 0.2 + 0.75 * 0.8])


TOKEN = ["head=token", 'judging={template: "{problem}\\n{steps}", separator: "\\n"}', "batch_size=8"]


@pytest.fixture(scope="module", params=["text", "token"])
def trained(request: pytest.FixtureRequest, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model") / "run"
    head = TOKEN if request.param == "token" else []
    jobs.run(load(arguments(tiny, folder, "epochs=6", *head)), resume=False)
    return folder


def test_it_learns_what_can_be_learned(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["validation_gain"] > 0.3
    assert summary["validation_auc"] > 0.9
    assert summary["validation_error_calibrated"] <= summary["validation_error"] + 0.02
    assert (trained / "calibration.svg").stat().st_size > 1000
    report = (trained / "report.html").read_text()
    assert 'src="data:image/svg+xml;base64,' in report
    assert str(trained / "model") in report


def test_what_solutions_begin_with_alike_is_learned_once(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The same solutions twice are the same examples."""
    recipe, tokenizer = recipe_of(*arguments(tiny, tmp_path)), AutoTokenizer.from_pretrained(tiny)
    twice = recipe.model_copy(update={"data": recipe.data * 2})
    once = material(recipe, tokenizer, 4096)
    capsys.readouterr()
    assert material(twice, tokenizer, 4096) == once
    told = capsys.readouterr()
    assert "examples dropped: solutions that begin alike ask them again" in told.out + told.err


def test_it_learns_nothing_from_labels_that_say_nothing(tiny: Path, tmp_path: Path) -> None:
    jobs.run(load(arguments(tiny, tmp_path / "run", "epochs=6", "shuffle_labels=true")), resume=False)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["validation_gain"] < 0.02


def test_adapters_and_the_head_learn_and_plain_weights_are_written(tiny: Path, tmp_path: Path) -> None:
    """First the head alone, then the two. transformers alone loads the model, and finds in it what the adapters learned."""
    lora = ["lora={rank: 8}", "optimizer.learning_rate=0.01", "first_stage={epochs: 1, learning_rate: 0.01}", "epochs=6"]
    folder = tmp_path / "run"
    jobs.run(load(arguments(tiny, folder, *lora)), resume=False)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["validation_gain"] > 0.3
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "model" / "model.safetensors")
    moved = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}
    assert after["score.weight"].any()
    adapters = load_file(next(folder.glob("checkpoints/*/reward_model/adapter/adapter_model.safetensors")))
    assert {name.split(".")[-3] for name in adapters} == {name.split(".")[-2] for name in moved}
    _, info = AutoModelForSequenceClassification.from_pretrained(folder / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    recipe = recipe_of(str(folder / "recipe.yaml"))
    texts = material(recipe, AutoTokenizer.from_pretrained(folder / "model"), 4096).validation
    found = log_odds(learner_of(recipe, folder / "model"), texts)
    assert measures(found, labels_of(texts))["gain"] == pytest.approx(summary["validation_gain"], abs=1e-5)


def test_scores_are_those_of_transformers_whatever_is_beside_them(trained: Path) -> None:
    """In training code, one by one, together, and right- and left-padded in a plain call: to 1e-5."""
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    recipe = recipe_of(str(trained / "recipe.yaml"))
    kind = AutoModelForTokenClassification if recipe.head == "token" else AutoModelForSequenceClassification
    model = kind.from_pretrained(trained / "model").eval()
    texts = material(recipe, tokenizer, 4096).validation[:9]
    learner = learner_of(recipe, trained / "model")
    together = log_odds(learner, texts)
    alone = [z for text in texts for z in log_odds(learner, [text])]
    assert together == pytest.approx(alone, abs=1e-5, rel=1e-6)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        padded = tokenizer.pad({"input_ids": [list(text.row.ids) for text in texts]}, return_tensors="pt")
        with torch.no_grad():
            logits = model(**padded).logits
        odds = logits[..., 1] - logits[..., 0]
        if recipe.head == "token":
            shift = [odds.shape[1] - len(text.row.ids) if side == "left" else 0 for text in texts]
            odds = torch.stack([odds[i, end + shift[i]] for i, text in enumerate(texts) for end in text.row.ends])
        assert odds.tolist() == pytest.approx(together, abs=1e-5, rel=1e-6)


def test_a_model_without_its_head_is_no_reward_model(trained: Path, tmp_path: Path) -> None:
    """It would find everything as likely as not, and nobody would know why."""
    shutil.copytree(trained / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "score" not in name}
    save_file(kept, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights: (score\.bias, )?score\.weight"):
        Trained(model=str(tmp_path / "model")).load()
    with pytest.raises(UserError, match="it is no causal language model"):  # nor is it a policy
        ModelSpec(str(trained / "model")).load()


def learner_of(recipe: RewardModel, folder: Path) -> Any:
    from trainers.reward_model import _learner

    model = ModelSpec(str(folder)).load_with_head(2, recipe.head, begins=True)
    return _learner(recipe, model, AutoTokenizer.from_pretrained(folder), [single(1, 1.0), single(1, 0.0)], None)


def single(token: int, label: float) -> Labelled:
    return Labelled(Row((token,), (0,), (0,)), (label,))


def test_the_model_is_that_of_the_best_validation(trained: Path) -> None:
    gains = {row["step"]: row["validation/gain"] for row in metrics(trained) if "validation/gain" in row}
    summary = json.loads((trained / "summary.json").read_text())
    assert summary["written_step"] == max(gains, key=lambda step: gains[step])
    assert summary["validation_gain"] == pytest.approx(max(gains.values()))
    assert load_judged_text(trained / "model").temperature == pytest.approx(summary["temperature"])


@pytest.mark.parametrize("overrides", [[], ["first_stage={epochs: 1}"], ["first_stage={epochs: 1}", "lora={rank: 4}"]])
def test_the_weights_that_are_written_are_those_of_the_best_step(
    overrides: list[str], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where that is not the last, or in the first of two stages: validation is made to fall after its second time."""
    gains = iter([-1.0, 0.5, 0.25, 0.125, *[0.0] * 99])
    monkeypatch.setattr("trainers.reward_model.validated", lambda *_: {"validation/gain": next(gains)})
    jobs.run(load(arguments(tiny, tmp_path / "run", *overrides)), resume=False)
    steps = sorted(int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert steps[0] == json.loads((tmp_path / "run" / "summary.json").read_text())["written_step"] == 4
    written, best, last = (
        load_file(folder / "model.safetensors")["score.weight"]
        for folder in (
            tmp_path / "run" / "model",
            *(tmp_path / "run" / "checkpoints" / f"step-{step}" / "reward_model" / "model" for step in (4, steps[-1])),
        )
    )
    assert torch.equal(written, best)
    assert not torch.equal(best, last)


def test_where_nothing_is_better_than_the_start_it_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gains = iter([0.5, *[0.0] * 99])
    monkeypatch.setattr("trainers.reward_model.validated", lambda *_: {"validation/gain": next(gains)})
    summary = jobs.run(load(arguments(tiny, tmp_path / "run")), resume=False)
    steps = [int(path.name.removeprefix("step-")) for path in (tmp_path / "run" / "checkpoints").glob("step-*")]
    assert summary["written_step"] == max(steps)
    assert f"was never above what it was before training: step {max(steps)}, the last" in capsys.readouterr().err


def test_a_resumed_run_is_the_unbroken_one(tiny: Path, tmp_path: Path) -> None:
    """To the bit, where it was broken off in the first stage and where in the second."""

    def run(name: str, *, resume: bool = False) -> None:
        stages = ["first_stage={epochs: 1, learning_rate: 0.01}", "epochs=1", "checkpoint.every=3"]
        jobs.run(load(arguments(tiny, tmp_path / name, *stages)), resume)

    def rows(name: str) -> list[dict[str, float]]:
        return metrics(tmp_path / name)

    run("unbroken")
    first, _ = stage_steps(recipe_of(*arguments(tiny, tmp_path, "first_stage={epochs: 1}")), count(tiny, tmp_path))
    for broken in (3, first, first + 3 - first % 3):
        with broken_off(broken):
            run(f"broken-{broken}")
        run(f"broken-{broken}", resume=True)
        assert rows(f"broken-{broken}") == rows("unbroken")


def count(tiny: Path, tmp_path: Path) -> int:
    return len(material(recipe_of(*arguments(tiny, tmp_path)), AutoTokenizer.from_pretrained(tiny), 4096).train)


def test_the_first_stage_moves_the_head_alone(tiny: Path, tmp_path: Path) -> None:
    stages = ["first_stage={epochs: 1, learning_rate: 0.01}", "checkpoint={every: 1, keep_last: 100}"]
    jobs.run(load(arguments(tiny, tmp_path / "run", *stages)), resume=False)
    first, _ = stage_steps(recipe_of(*arguments(tiny, tmp_path, *stages)), count(tiny, tmp_path))

    def weights(step: int) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / "run" / "checkpoints" / f"step-{step}" / "reward_model" / "model" / "model.safetensors")

    begun, headed, after = weights(1), weights(first), weights(first + 1)
    assert {name for name in begun if not torch.equal(begun[name], headed[name])} == {"score.weight"}
    assert len([name for name in begun if not torch.equal(headed[name], after[name])]) > 5


def test_every_epoch_sees_every_text_once_in_another_order(tiny: Path, tmp_path: Path) -> None:
    recipe = recipe_of(*arguments(tiny, tmp_path))
    texts = [single(i, float(i % 2)) for i in range(70)]
    stream = batches(recipe, texts, 0)
    epochs = [[ids for _ in range(3) for ids in next(stream).graded.prompt_ids] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == [each.row.ids for each in texts]
    assert epochs[0] != epochs[1]
    later = batches(recipe, texts, 4)
    assert [ids for _ in range(2) for ids in next(later).graded.prompt_ids] == epochs[1][32:]


def test_no_problem_is_on_both_sides(tiny: Path, tmp_path: Path) -> None:
    assert is_held_out("What  is 1+1?", 0.5) == is_held_out("what is 1+1", 0.5)
    share = sum(is_held_out(str(i), 0.2) for i in range(5000)) / 5000
    assert share == pytest.approx(0.2, abs=0.02)


def test_problems_that_are_evaluated_on_are_taken_out(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlapping = arguments(tiny, tmp_path, f"evaluated_on={{name: '{__name__}:marked', count: 40}}")
    fewer = material(recipe_of(*overlapping), AutoTokenizer.from_pretrained(tiny), 4096)
    assert "80 of 120 remain" in capsys.readouterr().err
    assert len(fewer.train) < count(tiny, tmp_path)


def test_balance_gives_both_kinds_the_same_weight(tiny: Path, tmp_path: Path) -> None:
    from trainers.reward_model import objective

    found = objective(recipe_of(*arguments(tiny, tmp_path, "balance=true")), [*[single(1, 1.0)] * 3, single(1, 0.0)])
    assert found.weights == pytest.approx((2.0, 2 / 3))


def test_the_dry_run_says_what_would_be_learned(tiny: Path, tmp_path: Path) -> None:
    lines = list(preview(recipe_of(*arguments(tiny, tmp_path, "first_stage={epochs: 1}"))))
    assert any("training examples" in line for line in lines)
    assert any(line.startswith("labels: ") and " at token " in line for line in lines)
    assert any("the head alone in the first" in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["repaired=true"], "repaired pairs are merged steps, which a prm does not judge"),
        (["update.epochs=2"], "a batch of a reward model is one optimiser step"),
        (["judging.template='{problem}'"], "judging.template must contain {current} for head: text"),
        (["head=token"], "judging.template must contain {steps} for head: token"),
        (["head=token", "judging.template='{steps} {problem}'"], "must end with {steps}"),
        (["head=token", "judging={template: '{problem}{steps}', separator: ''}"], "it cannot be empty"),
        (["data={name: prm800k}"], "'prm800k' needs the option 'path'"),
        (["data={name: chain_steps, count: 30, strategies: {direct: 1}}"], "do not hold both right and wrong ones"),
        (["max_length=3"], "they end beyond 3 tokens: see max_length"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        jobs.run(load(arguments(tiny, tmp_path / "run", *overrides)), resume=False)


def test_an_end_is_read_from_its_token() -> None:
    """Where the token after it would be predicted; of the last end that is one that does not exist."""
    batch = batch_of([Labelled(Row((5, 6, 7, 8), (1, 3), (0, 1)), (1.0, 0.0)), Labelled(Row((9,), (0,), (2,)), (0.5,))])
    assert batch.graded.prompt_ids == [(5, 6), (9,)]
    assert batch.graded.tokens.tolist() == [[7, 8, 0], [0, 0, 0]]
    assert batch.graded.loss_mask.tolist() == [[1, 0, 1], [1, 0, 0]]
    assert batch.graded.lengths.tolist() == [3, 1]
    assert batch.returns is not None
    assert batch.returns.tolist() == [[1, 0, 0], [0.5, 0, 0]]


def test_a_judge_gives_the_calibrated_log_odds_of_training(trained: Path, tiny: Path) -> None:
    """Of texts written and batched by itself; in small passes too."""
    recipe = recipe_of(str(trained / "recipe.yaml"))
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    solutions = marked(count=20)
    asked = [Asked(s.problem, s.steps[:i], s.steps[i : i + 1]) for s in solutions for i in range(3)]
    judge = Trained(model=str(trained / "model"))
    rows = judge.text.rows(asked, tokenizer)
    found = log_odds(learner_of(recipe, trained / "model"), [Labelled(row, (0.0,) * len(row.ends)) for row in rows])
    numbers = [number for row in rows for number in row.asked]
    expected = [z / judge.text.temperature for _, z in sorted(zip(numbers, found, strict=True))]
    assert len(rows) == (20 if recipe.head == "token" else 60)
    assert judge.log_odds(asked) == pytest.approx(expected, abs=1e-5, rel=1e-6)
    assert Trained(model=str(trained / "model"), tokens=40).log_odds(asked) == pytest.approx(expected, abs=1e-5, rel=1e-6)


def test_what_is_longer_than_the_model_can_read_is_left_out_and_counted(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Trained(model=str(trained / "model")).log_odds([Asked("1" * 5000, (), ("2",))]) == [None]
    evaluate(str(trained), f"{{name: '{__name__}:with_a_long_one'}}", 0.5, True, "", str(tmp_path / "out.json"))
    assert "1 of 31 solutions left out" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text())["solutions"] == 30


def with_a_long_one() -> list[LabelledSolution]:
    long = LabelledSolution("long", "1" * 5000, None, ("2",), ("correct",))
    return [*marked(count=30), long]


def test_it_is_measured_on_problems_that_it_was_not_trained_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`marked` makes the same problems as for training, and 30 more."""
    data = f"{{name: '{__name__}:marked', count: 150}}"
    evaluate(str(trained), data, 0.5, False, str(tmp_path / "plot.svg"), str(tmp_path / "out.json"))
    assert "30 of 150 solutions remain" in capsys.readouterr().err
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["solutions"] == 30
    assert found["auc"] > 0.9
    assert (tmp_path / "plot.svg").stat().st_size > 1000
    evaluate(str(trained), data, 0.5, True, "", str(tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_text())["solutions"] == 150


@pytest.mark.parametrize(
    ("data", "threshold", "message"),
    [
        (f"{{name: '{__name__}:marked'}}", 0.5, "no solution is left to be judged"),
        ("{name: chain_steps, count: 3}", 1.0, "--threshold 1 is a probability"),
        ("{name: prmbench}", 0.5, "'prmbench' needs the option 'path'"),
    ],
)
def test_what_cannot_be_measured_is_refused(data: str, threshold: float, message: str, trained: Path) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(str(trained), data, threshold, False, "", "")


def test_real_benchmarks_are_measured_end_to_end(trained: Path, data_dir: Path, tmp_path: Path) -> None:
    """PRMBench's file, its first rows; the toy knows none of its characters, so only that it runs."""
    data = f"{{name: prmbench, path: '{data_dir / 'prmbench_confidence.jsonl'}', limit: 3}}"
    evaluate(str(trained), data, 0.5, False, "", str(tmp_path / "o.json"))
    assert 0 <= json.loads((tmp_path / "o.json").read_text())["prm_score"] <= 1


def test_the_recipe_for_prm800k_runs(tiny: Path, data_dir: Path, tmp_path: Path) -> None:
    data = f"{{name: prm800k, path: '{data_dir / 'prm800k_phase1_test.jsonl'}', limit: 20}}"
    small = [f"model={tiny}", f"data={data}", "max_length=400", "epochs=1", "threads=1", f"output={tmp_path / 'run'}"]
    summary = jobs.run(load(["prm_prm800k", *small]), resume=False)
    assert summary["train_examples"] > 50
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
