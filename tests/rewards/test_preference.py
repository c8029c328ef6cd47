"""The reward of a model of `job: preference`: its sum over codes, what lands in the ledger, and how it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from rewards.compose import Rewards
from rewards.implicit_reward import ImplicitReward
from rewards.preference.preference import Preference, _scored
from rlcore.errors import UserError
from rlcore.latent import LatentCodes, load_latent
from rlcore.recipe.schema import Component
from rlcore.types import Completion, Group, Problem, Sampling

TEXTS = ["3+4=7", "#### 8"]


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder, as far as the reward reads it."""
    folder = tmp_path_factory.mktemp("liked") / "run"
    shutil.copytree(tiny, folder / "model")
    torch.manual_seed(0)
    latent = LatentCodes(64, 3, 8)
    torch.nn.init.normal_(latent.codebook, std=3.0)
    latent.save(folder / "model")
    ImplicitReward(2.0, relative=True, averaged=True).save(folder / "model")
    return folder


def groups(tokenizer: PreTrainedTokenizerBase) -> list[Group]:
    def completion(sample: int, text: str) -> Completion:
        ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
        zeros = (0,) * len(ids)
        return Completion("p", sample, 0, (3,), ids, (1,) * len(ids), (0.0,) * len(ids), zeros, Sampling(), "stop", text)

    return [Group(Problem("p", "3+4=?", "7"), [completion(i, text) for i, text in enumerate(TEXTS)])]


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
    found = Preference(model=str(folder), reference=str(tiny), device="cpu").score(asked, None)
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


def test_what_the_codes_say_lands_in_the_ledger(folder: Path, tiny: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    spec = Component(name="preference", model=str(folder), reference=str(tiny), device="cpu")
    graded = Rewards([spec], 0.0).grade(groups(tokenizer))
    told = json.loads(graded.ledger[0]["measured"])
    assert set(told) == {f"{name}_{k}" for name in ("code", "prior") for k in range(3)}
    assert graded.metrics["preference/prior_1"].value == pytest.approx(told["prior_1"])


def test_what_is_refused(folder: Path, tiny: Path) -> None:
    with pytest.raises(UserError, match="is no run folder of `job: preference`"):
        Preference(model=str(tiny))
    with pytest.raises(UserError, match="name that as `reference`"):
        Preference(model=str(folder))
