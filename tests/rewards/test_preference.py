"""The reward of a model of `job: preference`: its sum over codes, what lands in the ledger, and how it is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rewards.compose import Rewards
from rewards.implicit_reward import ImplicitReward, ImplicitRewardModel, Start
from rewards.preference.preference import Preference, _scored
from rlcore import jobs
from rlcore.errors import UserError
from rlcore.latent import LatentCodes, load_latent
from rlcore.models import weights_digest
from rlcore.preview import preview
from rlcore.recipe.load import load
from rlcore.recipe.schema import Component, Prompt
from rlcore.toy.model import build
from rlcore.types import Completion, Group, Problem, Sampling
from tests.trainers.preference.test_preference import arguments, easy

TEXTS = ["3+4=7", "#### 8"]
ASKED = "prompt={template: 'so {problem}?', system: calm, examples: [{prompt: '1+1', answer: '2'}]}"


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as far as the reward reads it."""
    folder = tmp_path_factory.mktemp("liked") / "run"
    shutil.copytree(tiny, folder / "model")
    torch.manual_seed(0)
    latent = LatentCodes(64, 3, 8)
    torch.nn.init.normal_(latent.codebook, std=3.0)
    latent.save(folder / "model")
    reward = ImplicitReward(2.0, relative=True, averaged=True)
    ImplicitRewardModel(reward, Prompt(), Start(str(tiny), weights_digest(str(tiny)))).save(folder / "model")
    return folder


def learned(tiny: Path, folder: Path, codes: int) -> Path:
    """A run of `job: preference`, of a few steps."""
    latent = f"latent={{codes: {codes}, width: 8, scale: 1.0, rate: 20}}"
    jobs.run(load(arguments(tiny, folder, latent, ASKED, "epochs=1")), resume=False)
    return folder


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learned(tiny, tmp_path_factory.mktemp("learned") / "run", codes=3)


def groups(tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    return [group(tokenizer, Problem("p", "3+4=?", "7"), TEXTS)]


def group(tokenizer: PreTrainedTokenizerBase, problem: Problem, texts: Sequence[str]) -> Group:
    def completion(sample: int, text: str) -> Completion:
        ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        zeros = (0,) * len(ids)
        return Completion("p", sample, 0, (3,), ids, (1,) * len(ids), (0.0,) * len(ids), zeros, Sampling(), "stop", text)

    return Group(problem, [completion(i, text) for i, text in enumerate(texts)])


def test_the_value_is_the_priors_mean_over_codes() -> None:
    """The docstring's numbers."""
    scored = _scored([0.25, 0.75], [2.0, -2.0])
    assert scored.value == -1.0
    assert scored.reason == "best by code 0: 2.00, which counts 0.25"
    assert scored.measured == {"code_0": 2.0, "code_1": -2.0, "prior_0": 0.25, "prior_1": 0.75}


@torch.no_grad()
def test_each_codes_reward_is_that_of_its_policy(folder: Path, tiny: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """By transformers alone, from the hidden states, to 1e-5; whatever is read beside it."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    latent = load_latent(str(folder / "model"))
    assert latent is not None
    asked = groups(tokenizer)
    found = Preference(model=str(folder), device="cpu").score(asked, None)
    prompt = tokenizer("3+4=?\n", add_special_tokens=False).input_ids
    for completion, score in zip(asked[0].completions, found, strict=True):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        hidden = model.model(ids).last_hidden_state[0]
        targets = torch.tensor(completion.token_ids)[:, None]

        def logprob(z: torch.Tensor, hidden: torch.Tensor = hidden, targets: torch.Tensor = targets) -> torch.Tensor:
            return model.lm_head(hidden[len(prompt) - 1 : -1] + z).log_softmax(-1).gather(1, targets).mean()

        prior = latent.log_prior(hidden[None, len(prompt) - 1])[0].exp()
        worth = torch.stack([2 * (logprob(z) - logprob(torch.zeros(64))) for z in latent.codebook])
        assert score.measured == pytest.approx(
            {f"code_{k}": r for k, r in enumerate(worth.tolist())} | {f"prior_{k}": p for k, p in enumerate(prior.tolist())},
            abs=1e-5,
        )
        assert score.value == pytest.approx((prior * worth).sum().item(), abs=1e-5)


def test_what_the_codes_say_lands_in_the_ledger(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    spec = Component(name="preference", model=str(folder), device="cpu")
    graded = Rewards([spec], 0.0).grade(groups(tokenizer))
    told = json.loads(graded.ledger[0]["measured"])
    assert set(told) == {f"{name}_{k}" for name in ("code", "prior") for k in range(3)}
    assert graded.metrics["preference/prior_1"].value == pytest.approx(told["prior_1"])


@pytest.mark.parametrize("codes", [1, 3])
def test_a_run_is_asked_as_it_was_taught(
    codes: int, run: Path, tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """By what the run itself says of its held-out pairs: the codes' priors, and, of one code, which is then the expected one,
    the rewards too; to 1e-4."""
    folder = run if codes == 3 else learned(tiny, tmp_path / "run", codes)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    pairs = {pair.id: pair for pair in easy()}
    held_out = [pairs[row["id"]] for row in rows]
    asked = [group(tokenizer, Problem(p.id, p.prompt[0].content, ""), (p.chosen, p.rejected)) for p in held_out]
    scores = Preference(model=str(folder), device="cpu").score(asked, None)
    for row, chosen, rejected in zip(rows, scores[::2], scores[1::2], strict=True):
        if codes == 1:
            assert [chosen.value, rejected.value] == pytest.approx([row["chosen"], row["rejected"]], abs=1e-4)
        else:
            assert [chosen.measured[f"prior_{k}"] for k in range(codes)] == pytest.approx(row["prior"], abs=1e-4)


def test_a_policy_learns_from_a_run(run: Path, launch: Callable[..., Path]) -> None:
    """All the way: `job: preference`, then `job: rl` that names its folder and nothing else."""
    folder = launch("rl", "steps=2", f"rewards=[answer, {{name: preference, model: {run}, weight: 0.1}}]")
    rows = [
        row for row in pq.read_table(folder / "ledger" / "step-000002.parquet").to_pylist() if row["component"] == "preference"
    ]
    assert len(rows) == 16
    for row in rows:
        told = json.loads(row["measured"])
        assert row["value"] == pytest.approx(sum(told[f"prior_{k}"] * told[f"code_{k}"] for k in range(3)))
        assert row["weighted"] == pytest.approx(0.1 * row["value"])


def test_the_models_are_counted(run: Path, tiny: Path) -> None:
    """Two of 0.1 M parameters, float32."""
    small = ["quickstart", f"model={tiny}", "data.count=60", "eval=null"]
    recipe = load([*small, f"rewards=[answer, {{name: preference, model: {run}}}]"]).recipe
    [line] = [line for line in preview(recipe) if "preference's models" in line]
    count = AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert line.endswith(f"{2 * 4 * count / 2**20:.1f} MiB")


def test_what_is_refused(folder: Path, tiny: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(UserError, match="is no run folder of `job: preference`"):
        Preference(model=str(tiny))
    with pytest.raises(UserError, match="nowhere does not exist"):
        Preference(model=str(tmp_path / "nowhere"))
    build("llama-100k", seed=1, folder=tmp_path / "another")
    with pytest.raises(UserError, match="another are not those that training started from, which were in"):
        Preference(model=str(folder), reference=str(tmp_path / "another"), device="cpu").begin(tokenizer)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    ImplicitRewardModel(ImplicitReward(1.0, True, True), Prompt(), Start("/gone", weights_digest(str(tiny)))).save(
        moved / "model"
    )
    with pytest.raises(UserError, match=r"/gone, which .* began as, is gone: name a copy as `reference`"):
        Preference(model=str(moved))
    Preference(model=str(moved), reference=str(tiny), device="cpu").begin(tokenizer)
