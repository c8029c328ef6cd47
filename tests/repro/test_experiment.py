"""The experiment file: what it may say, and that its arms differ in nothing but what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlcore.errors import UserError
from rlcore.recipe.schema import RL
from rlcore.repro.experiment import plan, plan_models, read, shipped

ARMS = {"grpo": ["algorithm.advantage=grpo"], "critic": ["algorithm={advantage: gae, critic: {clip: 0.1}}"]}
VALID = dict(
    title="Two",
    about="Two arms.",
    base=["quickstart", "eval.temperatures=[0]"],
    arms=ARMS,
    varies=["algorithm"],
    seeds=[100, 101],
    claims={"learns": "accuracy_after[grpo] - accuracy_before[grpo] > 0"},
    tried="nothing",
)


def written(folder: Path, **changes: Any) -> str:
    file = folder / "two.yaml"
    values = {key: value for key, value in (VALID | changes).items() if value is not None}
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(file)


def test_a_run_is_an_arm_with_a_seed_behind_the_base(tmp_path: Path) -> None:
    name, experiment = read(written(tmp_path))
    runs = plan(name, experiment, [101])
    assert [(run.name, run.seed, str(run.folder)) for run in runs] == [
        ("grpo", 101, "runs/repro/two/grpo/101"),
        ("critic", 101, "runs/repro/two/critic/101"),
    ]
    layers = [*VALID["base"], *ARMS["grpo"], "seed=101", "threads=1", "output=runs/repro/two/grpo/101"]
    assert list(runs[0].command) == ["train", *layers, "--resume"]
    assert (runs[1].recipe.seed, runs[1].recipe.threads, runs[1].recipe.algorithm.advantage.name) == (101, 1, "gae")


def test_models_are_planned_once_and_layers_name_their_folders(tmp_path: Path) -> None:
    judge = ["prm_chain", "model={policy}", "seed=3"]
    base = ["quickstart", "model={policy}", "rewards=[answer, {name: 'mine:Mine', judge: {prm}}]"]
    name, experiment = read(written(tmp_path, base=base, models={"policy": ["toy/chain"], "prm": judge}))
    policy, prm = plan_models(experiment)
    folders = str(policy.folder), str(prm.folder)
    assert list(policy.command) == ["train", "toy/chain", "threads=1", f"output={folders[0]}", "--resume"]
    layers = ["prm_chain", f"model={folders[0]}", "seed=3", "threads=1", f"output={folders[1]}"]
    assert list(prm.command) == ["train", *layers, "--resume"]
    run = plan(name, experiment, [100])[0].recipe
    assert isinstance(run, RL)
    assert (run.model, run.rewards[1].options) == (folders[0], {"judge": folders[1]})


def test_experiments_share_the_models_that_the_same_layers_make(tmp_path: Path) -> None:
    """Down to those that a model builds on: another policy makes another reward model of the same layers."""

    def folders(*policy: str) -> list[Path]:
        models = {"policy": ["toy/chain", *policy], "prm": ["prm_chain", "model={policy}"]}
        base = ["quickstart", "rewards=[answer, {name: 'mine:Mine', judge: {prm}}]"]
        (tmp_path / "three.yaml").write_text((file := Path(written(tmp_path, base=base, models=models))).read_text())
        assert plan_models(read(str(tmp_path / "three.yaml"))[1]) == plan_models(read(str(file))[1])
        return [run.folder for run in plan_models(read(str(file))[1])]

    first, other = folders(), folders("data.seed=3")
    assert [folder.parent for folder in first] == [Path("runs/repro/models")] * 2
    assert not set(first) & set(other)


@pytest.mark.parametrize(
    ("models", "named"),
    [
        ({"prm": ["prm_chain"]}, "model 'prm' is in no layer: write {prm} where its folder goes"),
        ({"policy": ["quickstart"]}, "model 'policy' is a `job: rl`"),
        ({"policy": []}, "'models.policy'"),
        ({"my-policy": ["toy/chain"]}, "my-policy"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_models_that_no_arm_can_use_are_refused(tmp_path: Path, models: dict, named: str) -> None:
    with pytest.raises(UserError) as refused:
        plan_models(read(written(tmp_path, base=["quickstart", "model={policy}"], models=models))[1])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"claim": {}}, "two.yaml: unknown key 'claim'; did you mean 'claims'"),
        ({"tried": None}, "'tried' is missing"),
        ({"claims": {}}, "'claims'"),
        ({"seeds": [100, 100]}, "named twice"),
        ({"target": 1.5}, "'target'"),
        ({"arms": {"dr-grpo": []}}, "dr-grpo"),
        ({"claims": {"c": "acuracy_after[grpo] > 0"}}, "claim 'c': there is no metric 'acuracy_after'; did you mean"),
        ({"claims": {"c": "accuracy_after[gpro] > 0"}}, "claim 'c': there is no arm 'gpro'; did you mean 'grpo'"),
        ({"claims": {"c": "accuracy_after[grpo]"}}, "not one comparison"),
        ({"base": ["annotate_chain"], "arms": {"grpo": []}}, "arms of job: annotate cannot be measured"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_file_that_is_no_experiment_is_refused_by_key(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError) as refused:
        read(written(tmp_path, **changes))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"varies": []}, "arm 'critic' differs from 'grpo' in algorithm.advantage.name"),
        ({"varies": ["algorithm.advantage"]}, "in algorithm.critic"),
        ({"varies": ["algo"]}, "`varies` names 'algo', a key that no arm's recipe has; did you mean 'algorithm'"),
        ({"arms": {"grpo": [], "faster": ["optimizer.learning_rate=0.1"]}}, "in optimizer.learning_rate"),
        ({"arms": {"grpo": [], "higher": ["algorithm.loss.clip_high=0.28"]}, "varies": []}, "in algorithm.loss.clip_high"),
        ({"arms": {"grpo": [], "longer": ["eval.data.count=9"]}}, "in eval.data"),
        ({"base": ["quickstart", "eval=null"]}, "cannot be measured"),
        (
            {"base": ["quickstart", "eval.temperatures=[0.5]"], "claims": {"c": "greedy_accuracy_after[grpo] > 0"}},
            "add 0 to eval.temperatures",
        ),
        (
            {"base": ["quickstart", "monitor=null"], "claims": {"c": "alarms[grpo] < 1"}},
            "needs the hack monitor, and arm 'grpo'",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arms_differ_only_in_what_varies_names(tmp_path: Path, changes: dict, named: str) -> None:
    name, experiment = read(written(tmp_path, **changes))
    with pytest.raises(UserError) as refused:
        plan(name, experiment, experiment.seeds)
    assert named in str(refused.value)


BEST_OF_N: dict[str, Any] = dict(
    base=["prm_chain", "data.count=100"],
    arms={"prm": [], "hrm": ["kind=hrm"]},
    best_of_n={"policy": "toy:chain", "data": {"name": "chain"}, "n": [1, 4], "controls": {"truth": {"name": "chain_truth"}}}
    | {"max_new_tokens": 8},
    varies=["kind"],
    claims={"better": "stepwise_4[hrm] - whole_4[majority] > 0", "below_truth": "stepwise_4[hrm] - stepwise_4[truth] < 0"},
)


def test_reward_models_are_measured_by_best_of_n(tmp_path: Path) -> None:
    name, experiment = read(written(tmp_path, **BEST_OF_N))
    assert [run.name for run in plan(name, experiment, [100])] == ["prm", "hrm"]
    assert (experiment.kind, experiment.measured) == ("best_of_n", ["prm", "hrm", "truth", "pass", "majority"])
    assert experiment.metrics == ("whole_1", "whole_4", "stepwise_1", "stepwise_4", "auc", "gain")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base": ["quickstart"], "varies": [], "arms": {"prm": []}}, "arm 'prm' cannot be measured: `best_of_n` goes with"),
        ({"claims": {"c": "stepwise_8[prm] > 0"}}, "claim 'c': there is no metric 'stepwise_8'; did you mean 'stepwise_"),
        ({"claims": {"c": "stepwise_4[trut] > 0"}}, "claim 'c': there is no arm 'trut'; did you mean 'truth'"),
        ({"claims": {"c": "accuracy_after[prm] > 0"}}, "claim 'c': there is no metric 'accuracy_after'"),
        ({"arms": {"prm": [], "truth": []}}, "an arm has the name of a control"),
        ({"arms": {"majority": []}}, "an arm has the name of a control"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_best_of_n_cannot_measure_is_refused(tmp_path: Path, changes: dict, named: str) -> None:
    file = written(tmp_path, **BEST_OF_N | {"claims": {"c": "whole_4[prm] > 0"}} | changes)
    with pytest.raises(UserError) as refused:
        plan(*read(file), [100])
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"panels": ["lenght"]}, "there is no panel 'lenght'; did you mean 'length'"),
        (BEST_OF_N | {"panels": ["samples"]}, "there is no panel 'samples'"),
    ],
    ids=["training", "best_of_n"],
)
def test_a_panel_that_there_is_not_is_refused(tmp_path: Path, changes: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        read(written(tmp_path, **changes))


def test_every_shipped_experiment_can_be_planned() -> None:
    for name in shipped():
        stem, experiment = read(name)
        plan_models(experiment)
        assert len(plan(stem, experiment, experiment.seeds)) == len(experiment.arms) * len(experiment.seeds)
    with pytest.raises(UserError, match="did you mean 'algorithms'"):
        read("algoritms")


def test_clip_and_delta_are_measured_with_the_reward_model_of_pure() -> None:
    assert plan_models(read("clip_delta")[1]) == plan_models(read("pure")[1])


def test_claims_are_about_the_kinds_and_quantisers_that_some_arm_names(tmp_path: Path) -> None:
    """Of job sensitivity: `metrics` are those of all arms together."""
    looked = dict(
        base=["compress/sensitivity", "kinds=[sign, clipping]", "quantisers=[]"],
        arms={"bare": [], "coarse": ["quantisers=[{name: rtn, label: coarse}]"]},
        varies=["quantisers"],
        claims={
            "worse": "kl_clipping[bare] / kl_sign[bare] > 1",
            "rounded": "accuracy_coarse[coarse] - norm_coarse[coarse] < 1",
        },
    )
    name, experiment = read(written(tmp_path, **looked))
    assert experiment.kind == "sensitivity"
    assert plan(name, experiment, [100])[1].command[:3] == ("compress", "sensitivity", "compress/sensitivity")
    for claim, hint in (("kl_gaussian[bare] > 0", "there is no metric 'kl_gaussian'"), ("kl_corse[coarse] > 0", "'kl_coarse'")):
        with pytest.raises(UserError, match=hint):
            read(written(tmp_path, **looked | {"claims": {"c": claim}}))
