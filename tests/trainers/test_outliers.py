"""PreQuant: the outliers of a quantised base learn, and nothing else does; in every job, and as far as the engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from compress import compressed
from compress.formats.patched import Patched
from rlcore import jobs
from rlcore.batch import TrainingBatch
from rlcore.errors import UserError
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.recipe.load import load
from rlcore.recipe.schema import RL
from rollout.engines.transformers import Transformers
from rollout.engines.vllm import Vllm
from rollout.sync import SyncError, patches, push
from tests.conftest import broken_off
from tests.trainers.test_learner import plain_logprobs
from tests.trainers.test_loop import metrics
from tests.trainers.test_reward_model import EASY
from trainers import algorithm
from trainers.build import build_learner, build_policy, build_reference
from trainers.learner import Learner
from trainers.outliers import with_outliers
from trainers.quantised_base import outliers_of, start_of
from trainers.scorer import WithoutAdapters

BASE = "quantised_base={name: rtn, bits: 4, run: 32}"
SCORES = ["magnitude", "error", "random"]


class Started:
    """A recipe with outliers, its base, and a learner of them."""

    def __init__(self, tiny: Path, folder: Path, *overrides: str) -> None:
        usual = ["quickstart", f"model={tiny}", "device=cpu", "eval=null", "optimizer.learning_rate=1e-2", f"output={folder}"]
        kl = "algorithm.kl={estimator: k3, coefficient: 0.1}"
        recipe = load([*usual, kl, BASE, "outliers={}", *overrides]).recipe
        assert isinstance(recipe, RL)
        self.recipe, self.location = recipe, start_of(recipe, str(tiny))
        self.policy: Any = build_policy(recipe, self.location)
        self.learner: Learner = build_learner(recipe, self.policy, load_tokenizer(self.location), algorithm.objective(recipe))
        self.base = load_file(Path(self.location) / "model.safetensors")

    def merged(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.learner._merged(torch.float32)}


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Callable[..., Started]:
    return lambda *overrides: Started(tiny, tmp_path / "run", *overrides)


@pytest.fixture
def training(make_batch: Callable) -> TrainingBatch:
    graded = make_batch([1, 0, 1, 0, 0, 1], [0, 0, 0, 1, 1, 1], [5, 1, 7, 3, 9, 2])
    advantages = torch.randn(graded.tokens.shape, generator=torch.Generator().manual_seed(5))
    return TrainingBatch(graded, advantages, graded.rollout_logprobs)


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, list[int]]:
    """Where the tensors differ."""
    found = {name: (after[name] != tensor).flatten().nonzero()[:, 0].tolist() for name, tensor in before.items()}
    return {name: places for name, places in found.items() if places}


@pytest.mark.parametrize("score", SCORES)
def test_the_chosen_places_learn_and_no_others(start: Callable, training: TrainingBatch, score: str) -> None:
    begun = start(f"outliers.score={score}")
    assert not moved(begun.base, begun.merged())
    for _ in range(3):
        begun.learner.update(training)
    chosen = {name: held.places.tolist() for name, held in outliers_of(begun.location).items()}
    assert len(chosen) == 14  # seven matrices in each of two layers
    assert moved(begun.base, begun.merged()) == chosen
    assert sum(map(len, chosen.values())) == sum(p.numel() for p in begun.learner.parameters.values())


def test_norms_learn_if_they_are_to(start: Callable, training: TrainingBatch) -> None:
    begun = start("outliers.train_norms=true")
    for _ in range(3):
        begun.learner.update(training)
    norms = {name for name in begun.base if "norm" in name}
    assert len(norms) == 5
    assert set(moved(begun.base, begun.merged())) == norms | set(outliers_of(begun.location))


def test_their_gradient_is_the_dense_one_at_their_places(start: Callable) -> None:
    begun = start()
    ids = torch.randint(3, 50, (3, 11), generator=torch.Generator().manual_seed(0))
    dense = ModelSpec(begun.location, device="cpu").load()
    dense(ids, labels=ids).loss.backward()
    begun.policy(ids, labels=ids).loss.backward()
    for name, held in outliers_of(begun.location).items():
        layer = begun.policy.get_base_model().get_submodule(name.removesuffix(".weight"))
        expected = dense.get_parameter(name).grad.flatten()[held.places.long()]
        torch.testing.assert_close(layer.shira_weight["default"].grad, expected, atol=1e-7, rtol=1e-4)
        assert expected.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_reference_stays_the_quantised_base(start: Callable, training: TrainingBatch, dtype: str) -> None:
    begun = start(f"dtype={dtype}", "outliers.train_norms=true")
    reference = build_reference(begun.recipe, begun.location, begun.policy)
    assert isinstance(reference, WithoutAdapters)
    before = begun.learner.logprobs(training.graded)
    for _ in range(3):
        begun.learner.update(training)
    assert (begun.learner.logprobs(training.graded) - before).abs().max() > 1e-3
    assert torch.equal(reference.logprobs(training.graded), before)


def test_a_learner_made_anew_goes_on_to_the_bit(start: Callable, training: TrainingBatch, tmp_path: Path) -> None:
    unbroken = start("outliers.train_norms=true")
    unbroken.learner.update(training)
    unbroken.learner.save(tmp_path / "saved")
    unbroken.learner.update(training)
    resumed = start("outliers.train_norms=true")
    resumed.learner.load(tmp_path / "saved")
    resumed.learner.update(training)
    assert not moved(unbroken.merged(), resumed.merged())


def test_a_checkpoint_is_a_plain_model_and_a_compressed_one(start: Callable, training: TrainingBatch, tmp_path: Path) -> None:
    """The second has what is stored in the base, and 48 bits for each place; its weights are the first's, but for what bfloat16
    loses of Δ."""
    begun = start("outliers.train_norms=true")
    for _ in range(3):
        begun.learner.update(training)
    begun.learner.save(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    expected = begun.learner.logprobs(training.graded)
    torch.testing.assert_close(plain_logprobs(plain, training.graded), expected, atol=1e-5, rtol=0)
    assert not (tmp_path / "adapter").exists()
    stored = compressed.load(tmp_path / "compressed")
    places = sum(len(held.places) for held in stored.held.values() if isinstance(held, Patched))
    assert stored.size().held == stored.size().weights * (4 + 16 / 32) + 48 * places
    for name, value in begun.merged().items():
        delta = value - begun.base[name] if name in stored.held else torch.zeros(())
        assert ((stored.model.get_parameter(name) - value).abs() <= 2**-8 * delta.abs() + 1e-7).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_sent_is_the_merged_weights_at_the_places(start: Callable, training: TrainingBatch, dtype: str) -> None:
    begun = start("outliers.train_norms=true", f"dtype={dtype}")
    begun.learner.update(training)
    update = begun.learner.weights(1)
    assert update.manifest.kind == "sparse"
    sent = {name: tensor for bucket in update.buckets for name, tensor in bucket.tensors.items()}
    assert {name: tuple(tensor.shape) for name, tensor in sent.items()} == update.manifest.shapes
    served = {name: tensor.to(getattr(torch, dtype)) for name, tensor in begun.base.items()}
    for name, where, values in patches(sent):
        served[name].view(-1)[where] = values
    assert not moved(served, dict(begun.learner._merged(getattr(torch, dtype))))


VLLM = pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))


@pytest.fixture
def engine(request: pytest.FixtureRequest, start: Callable) -> Iterator[Any]:
    """Made from the base, which nothing but sparse updates has changed."""
    spec, tokenizer = ModelSpec(start().location, device="cpu"), request.getfixturevalue("tokenizer")
    if request.param == "vllm":
        engine: Any = Vllm(spec, tokenizer, [tokenizer.eos_token_id], kv_cache_gb=0.1)
    else:
        engine = Transformers(spec, tokenizer, [tokenizer.eos_token_id])
    yield engine
    engine.close()


@pytest.mark.parametrize("engine", ["transformers", VLLM], indirect=True)
def test_an_engine_serves_what_was_learned(engine: Any, start: Callable, training: TrainingBatch) -> None:
    """Also outliers chosen otherwise, of the same base: nothing is left of those before."""
    begun = start("outliers.train_norms=true")
    for version in (1, 2):
        begun.learner.update(training)
        pushed = push(begun.learner, engine, version, training.graded, "float32")
        assert pushed.parity < 1e-5
    places = sum(len(held.places) for held in outliers_of(begun.location).values())
    assert pushed.size == 8 * places + 4 * 5 * 64  # int32 and float32; five norms
    square = begun.policy.get_base_model().model.layers[0].self_attn.q_proj
    square.shira_indices["default"] = square.shira_indices["default"].flip(0)  # columns for rows
    assert push(begun.learner, engine, 3, training.graded, "float32").parity < 1e-5


@pytest.mark.parametrize("engine", ["transformers"], indirect=True)
def test_a_sparse_update_that_is_not_applied_is_caught(
    engine: Any, start: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = start()
    push(begun.learner, engine, 1, None, "float32")
    begun.learner.update(training)
    monkeypatch.setattr(engine, "_patch", lambda: None)
    with pytest.raises(SyncError, match=r"still serves another 'model\.layers\.0\.self_attn\.q_proj\.weight\.values'"):
        push(begun.learner, engine, 2, None, "float32")


@pytest.mark.parametrize("engine", [VLLM], indirect=True)
def test_vllm_that_forgets_what_is_sent_is_found_by_the_probe(
    engine: Any, start: Callable, training: TrainingBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = start()
    begun.learner.update(training)
    real = engine._llm.collective_rpc

    def forget(method: str, args: tuple = ()) -> list:
        return real(method, args=(args[0], {}) if method == "load_patched" else args)

    monkeypatch.setattr(engine._llm, "collective_rpc", forget)
    with pytest.raises(SyncError, match="the weights served are not the weights trained"):
        push(begun.learner, engine, 1, training.graded, "float32")


@pytest.mark.parametrize("engine", ["transformers"], indirect=True)
def test_a_sparse_update_after_a_full_one_is_refused(engine: Any, start: Callable, tiny: Path, tmp_path: Path) -> None:
    whole, sparse = Started(tiny, tmp_path / "run", "outliers.serve=merged"), start()
    engine.sync(whole.learner.weights(1))
    with pytest.raises(SyncError, match="a full update has replaced them"):
        engine.sync(sparse.learner.weights(2))


RUN = [
    "quickstart",
    "steps=2",
    "threads=1",
    "eval=null",
    "rollout={prompts_per_step: 4, samples: 4, max_new_tokens: 12}",
    "rewards=[answer, 'tests.trainers.test_loop:Digits']",
    "optimizer.learning_rate=1e-2",
    "checkpoint={every: 1, keep_last: 2}",
    BASE,
]


@pytest.mark.parametrize(
    "kind", ["outliers={}", "outliers={serve: merged}", "outliers={train_norms: true}", "lora={rank: 2}", ""]
)
def test_a_run_resumes_to_the_bit(tiny: Path, tmp_path: Path, kind: str) -> None:
    """Its engine is made from the base again, and sent what had been learned."""
    for name in ("unbroken", "broken"):
        chosen = load([*RUN, f"model={tiny}", f"output={tmp_path / name}", *([kind] if kind else [])])
        if name == "broken":
            with broken_off(after=1):
                jobs.run(chosen, resume=False)
        jobs.run(chosen, resume=name == "broken")
    weights = [
        load_file(tmp_path / name / "checkpoints/step-2/policy/model/model.safetensors") for name in ("unbroken", "broken")
    ]
    assert not moved(*weights)
    base = load_file(tmp_path / "broken/base/model/model.safetensors")
    assert moved(base, weights[0])
    rows = [row for row in metrics(tmp_path / "broken") if "parity" in row]
    assert all(row["parity"] < 1e-5 for row in rows)
    full = 4 * sum(tensor.numel() for tensor in base.values())
    assert all((row["sync/bytes"] < 0.03 * full) == ("outliers={" in kind and "merged" not in kind) for row in rows)


def launched(folder: Path, recipe: str, *overrides: str) -> dict[str, list[int]]:
    """Where the model that a job wrote differs from its base."""
    jobs.run(load([recipe, f"output={folder}", "threads=1", BASE, "outliers={}", *overrides]), resume=False)
    base, written = (load_file(folder / where / "model.safetensors") for where in ("base/model", "model"))
    return moved({name: tensor for name, tensor in base.items() if name in written}, written)


def places_of(folder: Path) -> dict[str, list[int]]:
    return {name: held.places.tolist() for name, held in outliers_of(str(folder / "base/model")).items()}


@pytest.mark.parametrize("kl", ["kl=null", "kl=0.1"])
def test_a_supervised_run(tiny: Path, tmp_path: Path, kl: str) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"job: sft\nmodel: {tiny}\ndata: {{name: chain, count: 64, strategies: {{steps: 1}}}}\nbatch_size: 16\n")
    changed, chosen = launched(tmp_path / "run", str(recipe), "optimizer.learning_rate=1e-2", kl), places_of(tmp_path / "run")
    assert changed == chosen
    stored = compressed.load(tmp_path / "run/compressed")
    assert {name: held.places.tolist() for name, held in stored.held.items() if isinstance(held, Patched)} == chosen
    assert all(held.values.any() for held in stored.held.values() if isinstance(held, Patched))


def test_a_reward_model(tiny: Path, tmp_path: Path) -> None:
    """First the head alone, then the outliers with it."""
    small = [
        "batch_size=32",
        "optimizer={learning_rate: 0.01}",
        "validate_every=4",
        "first_stage={epochs: 1, learning_rate: 0.01}",
    ]
    changed = launched(tmp_path / "run", "prm_chain", f"model={tiny}", f"data={EASY}", "epochs=6", *small)
    assert changed == places_of(tmp_path / "run")
    assert load_file(tmp_path / "run/model/model.safetensors")["score.weight"].any()
    assert json.loads((tmp_path / "run/summary.json").read_text())["validation_gain"] > 0.1


def test_a_policy_of_preferences(tiny: Path, tmp_path: Path) -> None:
    from tests.trainers.preference.test_preference import arguments

    recipe, *rest = arguments(tiny, tmp_path / "run")
    changed = launched(tmp_path / "run", recipe, *rest, "optimizer.learning_rate=0.01")
    assert changed == places_of(tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["outliers={}"], "outliers are weights of a quantised_base: add one"),
        ([BASE, "outliers={}", "lora={}"], "lora and outliers are two ways to train a few weights: leave out one of them"),
        ([BASE, "outliers={share: 0}"], "outliers.share"),
        ([BASE, "outliers={score: size}"], "outliers.score"),
    ],
)
def test_recipes_that_cannot_be(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(["quickstart", *overrides])


def test_a_base_without_the_models_matrices_is_refused(start: Callable, tiny: Path) -> None:
    begun = start()
    with pytest.raises(UserError, match="has no outliers of this model's matrices"):
        with_outliers(torch.nn.Sequential(torch.nn.Linear(2, 2)), begun.location, train_norms=False)  # type: ignore[arg-type]


def test_the_shipped_recipe(tiny: Path, tmp_path: Path) -> None:
    small = ["steps=1", "eval=null", "rollout={prompts_per_step: 2, samples: 2, max_new_tokens: 8}", "quantised_base.run=32"]
    jobs.run(load(["prequant_chain", f"model={tiny}", "threads=1", f"output={tmp_path}", *small]), resume=False)
    stored = compressed.load(tmp_path / "checkpoints/step-1/policy/compressed")
    assert stored.size().per_weight == pytest.approx(4 + 16 / 32 + 0.005 * 48, abs=0.01)
