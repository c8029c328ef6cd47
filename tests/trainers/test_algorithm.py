"""What a recipe's `algorithm` may be made of: the presets, each of which learns, and combinations that are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcore import jobs
from rlcore.errors import UserError
from rlcore.recipe.load import differences, load
from rlcore.recipe.schema import RL
from rlcore.repro.experiment import read
from tests.conftest import REPOSITORY
from tests.trainers.test_loop import metrics
from trainers.algorithm import needs
from trainers.plan import plan

PRESETS = sorted(path.stem for path in (REPOSITORY / "recipes" / "algorithms").glob("*.yaml"))
SMALL = [
    "data={name: chain, split: train, count: 20}",
    "eval=null",
    "threads=1",
    "rollout.prompts_per_step=2",
    "rollout.samples=4",
    "rollout.max_new_tokens=8",
]
DIGITS = "rewards=[answer, {name: 'tests.trainers.test_loop:Digits'}]"
ANYTIME = [
    "rollout.anytime={budgets: [2, 4], summaries: 2, summary_tokens: 3}",
    "rollout.anytime={ends_thought: '#### ', interruption: '', begins_summary: ''}",
    "rollout.samples=8",
    "algorithm.advantage=brpo",
]
SHORT = {"drpo": ["rewards=[answer]"], "treepo": ["rollout.tree.segment=2"], "vapo": ["algorithm.critic.warmup_steps=1"]}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_trains(preset: str, tiny: Path, tmp_path: Path) -> None:
    """Two steps of two mini-batches with a reward in which something is to be learned; all that it logs is finite."""
    folder = tmp_path / "run"
    recipe = ["quickstart", f"algorithms/{preset}", *SMALL, DIGITS, *SHORT.get(preset, [])]
    jobs.run(load([*recipe, f"model={tiny}", f"output={folder}", "steps=2", "update.minibatches=2"]), resume=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert "loss" in rows[-1] or not rows[-1]["groups/trained"]
    for row in rows:
        assert all(isinstance(value, int | float) and abs(value) < float("inf") for value in row.values())


STATEFUL = [
    ["algorithms/ppo"],
    ["algorithms/ppo", "algorithm.critic.shared=true"],
    ["algorithms/vapo", "algorithm.critic.warmup_steps=1"],
    ["algorithms/remax", "algorithm.dynamic_sampling={}"],
    ["algorithms/treepo", *SHORT["treepo"]],
    ANYTIME,
    ["algorithm.curriculum={candidates: 2}", "algorithm.replay={share: 0.5, after: 1}"],
    ["algorithm.budget={pilot: 2}"],
    ["algorithms/drpo", "rewards=[answer]"],
    ["algorithms/reinforce_pp", "algorithm.imitation=0.1"],
    ["algorithms/dapo", "algorithm.curriculum={candidates: 2}"],
]


@pytest.mark.parametrize("choice", STATEFUL, ids=" ".join)
def test_a_resumed_run_is_the_unbroken_one(choice: list[str], tiny: Path, tmp_path: Path) -> None:
    """To the bit: critics, warm-ups, trees and what is known of the problems are in the checkpoint."""

    def run(name: str, steps: int, resume: bool = False) -> list[dict[str, float]]:
        where = [
            f"model={tiny}",
            f"output={tmp_path / name}",
            f"steps={steps}",
            "checkpoint.every=2",
            "optimizer.learning_rate=0.01",
        ]
        jobs.run(load(["quickstart", *SMALL, DIGITS, *choice, *where]), resume)
        return metrics(tmp_path / name)

    unbroken = run("unbroken", 5)
    run("broken", 2)
    assert run("broken", 5, resume=True) == unbroken


def test_a_policys_metric_may_be_watched_while_the_critic_warms_up(tiny: Path, tmp_path: Path) -> None:
    """In which the policy reports nothing."""
    choice = ["algorithms/vapo", "algorithm.critic.warmup_steps=2", "checkpoint.keep_best=grad_norm", "steps=4"]
    jobs.run(load(["quickstart", *SMALL, *choice, DIGITS, f"model={tiny}", f"output={tmp_path / 'run'}"]), resume=False)
    assert ["grad_norm" in row for row in metrics(tmp_path / "run")] == [False, False, True, True]


def test_every_preset_is_an_arm_of_the_experiment() -> None:
    assert sorted(read("algorithms")[1].arms) == PRESETS


def test_a_need_that_does_not_exist_is_refused() -> None:
    with pytest.raises(UserError, match="there is no need 'group'; did you mean 'groups'"):
        needs("group")  # type: ignore[arg-type]


def test_the_presets_are_those_that_the_documentation_names() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all(f"`{preset}`" in readme for preset in PRESETS)


REFUSED = [
    (
        ["algorithm.loss=drpo", "algorithm.kl={estimator: k1, coefficient: 0.1, place: reward}"],
        "would not see algorithm.kl.place",
    ),
    (["algorithm.loss=drpo", "rewards=[answer, format]"], "'drpo' makes its own comparison and would not see more rewards"),
    (["algorithm.dynamic_sampling={}", "rollout.samples=1", "algorithm.advantage=reinforce_pp"], "set rollout.samples >= 2"),
    (["algorithms/vapo", "steps=8"], "warmup_steps 10 leaves none of 8 steps to the policy"),
    (["algorithm.advantage=gae"], "advantage 'gae' needs the values of a critic"),
    (
        ["algorithm.loss=drpo", "algorithm.advantage=reinforce_pp", "rollout.samples=1"],
        "loss 'drpo' compares the completions of a problem",
    ),
    (["algorithm.loss=drpo", "algorithm.advantage=reinforce_pp", "rewards=[format]"], "loss 'drpo' reads accuracy"),
    (["algorithms/grpo", "algorithm.kl.place=reward"], "advantage 'grpo' divides rewards by their spread"),
    (["algorithm.advantage=tempo", "algorithm.kl={coefficient: 1, place: reward}"], "advantage 'tempo' divides rewards"),
    (["algorithms/ppo", "algorithm.advantage.gamma=5"], "'gae': gamma cannot be 5: .* less than or equal to 1"),
    (["algorithms/vapo", "algorithm.critic.shared=true"], "critic.learning_rate .* or set it to 1e-05"),
    (["algorithms/ppo", "algorithm.advantage=grpo"], "advantage 'grpo' takes no values: set algorithm.critic=null"),
    (["algorithm.advantage=treepo"], "advantage 'treepo' compares the branches of a tree: set rollout.tree"),
    (["algorithms/treepo"], "rollout.tree.segment 128 is not below rollout.max_new_tokens 64"),
    (["algorithm.advantage=brpo"], "advantage 'brpo' compares what thoughts are worth at budgets: set rollout.anytime"),
    ([*ANYTIME, "algorithm.advantage=grpo"], "'grpo' compares whole completions, .*: set rollout.anytime=null, or choose brpo"),
    ([*ANYTIME, "algorithm.advantage.prior=flat"], "'brpo': prior cannot be 'flat'"),
    ([*ANYTIME, "algorithm.loss=drpo"], "'drpo' makes its own comparison and would not see rollout.anytime"),
    ([*ANYTIME, "rollout.samples=4"], "samples 4 is not thoughts x 2 budgets x 2 summaries .*: 32 is eight"),
    ([*ANYTIME, "rollout.samples=10"], "samples 10 is not thoughts"),
    ([*ANYTIME, "rollout.max_new_tokens=6"], "last budget 4 and summary_tokens 3 are more than rollout.max_new_tokens 6"),
    ([*ANYTIME, "rollout.anytime.budgets=[4, 2]"], "do not rise"),
    ([*ANYTIME, "rollout.anytime.budgets=[]"], "'rollout.anytime.budgets': .*at least 1 item"),
    ([*ANYTIME, "rollout.anytime.summaries=1"], "'rollout.anytime.summaries': .*greater than or equal to 2"),
    ([*ANYTIME, "rollout.anytime.ends_thought=''"], "ends_thought is what a thought says at its end: it cannot be empty"),
    ([*ANYTIME, "rollout.stop=[x]"], "rollout.stop would end completions of rollout.anytime within"),
    ([*ANYTIME, "rollout.tree={segment: 2}"], "rollout.anytime and rollout.tree each decide"),
    ([*ANYTIME, "algorithm.budget={pilot: 2}"], "rollout.anytime and algorithm.budget each decide"),
    ([*ANYTIME, "algorithm.mask_truncated=true"], "mask_truncated would leave out what a thought says"),
    ([*ANYTIME, "algorithm.kl={coefficient: 1, place: reward}"], "pays each token once, and rollout.anytime"),
    ([*ANYTIME, "cluster={mode: async}"], "rollout.anytime cannot go on with other weights"),
    ([*ANYTIME, "rewards=[answer, kimi]"], "reward 'kimi' goes by length, and the completions of rollout.anytime"),
    ([*ANYTIME, "rewards=[answer, {name: detail, cap: 4}]"], "reward 'detail' goes by length"),
    (
        [*ANYTIME, "length_budget={uniform: [4, 9]}", "rewards=[answer, lcpo_max]"],
        "length_budget says how long completions are to be, and rollout.anytime where thoughts are cut",
    ),
    (
        ["algorithms/remax", "rewards=[answer, {name: short_rl, length_tolerance: 9}]"],
        "reward 'short_rl' compares the completions of a problem, and algorithm.advantage 'remax' wants",
    ),
    (
        ["rewards=[answer, {name: overlong, max_tokens: 65, buffer: 9}]"],
        "reward 'overlong' has max_tokens 65, and completions are cut before that, at rollout.max_new_tokens 64",
    ),
    (["rewards=[answer, {name: cosine, max_tokens: 65}]"], "reward 'cosine' has max_tokens 65"),
    ([*ANYTIME, "algorithm.critic={}"], "advantage 'brpo' takes no values"),
    (["algorithm.advantage=rloo", "rollout.samples=1"], "advantage 'rloo' compares the completions of a problem"),
    (["algorithm.loss=drpo", "rewards=[format]"], "accuracy"),
    (["algorithm.imitation=0.1", "rewards=[format]"], "imitation"),
    (["algorithm.loss={name: cispo, ratio_max: 0.2}"], "ratio_max is a ratio"),
    (["algorithm.kl={estimator: k1, coefficient: 0.1}"], "k1 as a loss has an expected gradient of zero"),
    (["algorithm.kl={estimator: k3_plus, coefficient: 0.1, place: reward}"], "k3_plus differs from k3 by its gradient"),
    (["algorithm.loss=gsp"], "there is no 'gsp' in trainers/losses; did you mean 'gspo'"),
    (["algorithm.advantage={name: grpo, epsilom: 1}"], "'grpo' has no option 'epsilom'; did you mean 'epsilon'"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("rlcore.models.ModelSpec.load", loaded)
    with pytest.raises(UserError, match=message):
        asked(["quickstart", *overrides, *SMALL[:1], "eval=null"])


def test_a_reward_may_have_as_many_tokens_as_completions() -> None:
    both = "{name: overlong, max_tokens: 64, buffer: 9}, {name: cosine, max_tokens: 64}"
    asked(["quickstart", f"rewards=[answer, {both}]", *SMALL[:1], "eval=null"])


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_of_an_earlier_preset_is_left_under_a_later_one(preset: str) -> None:
    """Of what presets set; what they leave alone, such as a correction, is the user's."""

    def resolved(*presets: str) -> RL:
        recipe = load(["quickstart", *(f"algorithms/{each}" for each in presets), "rollout.max_new_tokens=256"]).recipe
        assert isinstance(recipe, RL)
        return recipe

    alone = resolved(preset)
    for other in PRESETS:
        changed = set(differences(alone.model_dump(), resolved(other, preset).model_dump()))
        if not alone.algorithm.kl.coefficient:
            changed -= {"algorithm.kl.estimator", "algorithm.kl.place"}  # of what is switched off
        assert not changed


def test_what_is_right_on_policy_only_warns_off_it(capsys: pytest.CaptureFixture[str]) -> None:
    for override, warned in (("update.minibatches=1", False), ("update.minibatches=2", True), ("update.epochs=2", True)):
        asked(["quickstart", "algorithms/remax", *SMALL[:1], "eval=null", override])
        assert ("algorithm.loss 'gpg' has no ratio" in capsys.readouterr().err) is warned


def asked(arguments: list[str]) -> None:
    recipe = load(arguments).recipe
    assert isinstance(recipe, RL)
    plan(recipe).rewards.close()
