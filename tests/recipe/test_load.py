"""Recipes: merging, origins, and what is refused, always in one line with its place and the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlcore.errors import UserError
from rlcore.recipe.load import load, shipped
from rlcore.recipe.schema import CORRECTIONS, JOBS, RL, RewardModel, Sft

MINIMAL = "job: rl\nmodel: some/model\nsteps: 3\ndata: gsm8k\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(MINIMAL)
    return path


def test_arguments_merge_left_to_right(recipe: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("steps: 7\nrollout: {samples: 2}\n")
    loaded = load([str(recipe), str(second), "rollout.temperature=0.5", "steps=9"]).recipe
    assert isinstance(loaded, RL)
    assert (loaded.steps, loaded.rollout.samples, loaded.rollout.temperature) == (9, 2, 0.5)


def test_every_shipped_recipe_is_valid() -> None:
    for name in shipped():
        layers = ["grpo_gsm8k", name] if name.startswith(("cluster/", "algorithms/")) else [name]
        assert load(layers).recipe.job in JOBS


def test_origins_name_file_and_line_override_or_default(recipe: Path) -> None:
    text = load([str(recipe), "rollout.samples=4"]).to_yaml(with_origins=True)
    lines = {line.split(":")[0].strip(): line for line in text.splitlines()}
    assert lines["steps"].endswith(f"# {recipe}:3")
    assert lines["samples"].endswith("# override rollout.samples=4")
    assert lines["prompts_per_step"].endswith("# default")


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.advantage={name: grpo, epsilon: 1.0e-4}"],
        ["cluster={}"],
        ["cluster={zero: 0}", "algorithm.correction=bypass"],
        ["cluster={mode: one_step_off}", "algorithm.kl={coefficient: 0.1}"],
        ["cluster={mode: {name: async, cap: 2}, workers: 2}", "algorithm.dynamic_sampling={}", "lora={}"],
    ],
)
def test_a_resolved_recipe_loads_to_the_same_recipe(recipe: Path, tmp_path: Path, overrides: list[str]) -> None:
    loaded = load([str(recipe), *overrides])
    (tmp_path / "recipe.yaml").write_text(loaded.to_yaml())
    assert load([str(tmp_path / "recipe.yaml")]).recipe == loaded.recipe


def test_a_run_folder_is_gone_on_with_where_it_lies(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(load([str(recipe)]).to_yaml())
    assert load([str(tmp_path)]).recipe.folder == str(tmp_path)


@pytest.mark.parametrize(
    ("override", "path", "name", "options"),
    [
        ("algorithm.loss.clip_high=0.3", "loss", "ppo_clip", {"clip_high": 0.3}),
        ("algorithm.advantage=rloo", "advantage", "rloo", {}),
        ("algorithm.advantage={name: grpo, epsilon: 0.1}", "advantage", "grpo", {"epsilon": 0.1}),
    ],
)
def test_a_plugin_is_a_name_or_a_mapping(recipe: Path, override: str, path: str, name: str, options: dict) -> None:
    loaded = load([str(recipe), override]).recipe
    assert isinstance(loaded, RL)
    plugin = getattr(loaded.algorithm, path)
    assert (plugin.name, plugin.options) == (name, options)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_any_correction_allows_truncated_sampling(recipe: Path, correction: str) -> None:
    loaded = load([str(recipe), "rollout.top_p=0.9", f"algorithm.correction={correction}"]).recipe
    assert isinstance(loaded, RL)
    assert loaded.algorithm.correction is not None
    assert loaded.algorithm.correction.name == correction


def test_a_corrections_bounds_stand_beside_its_name_and_another_name_replaces_it(recipe: Path) -> None:
    resolved = recipe.with_name("resolved.yaml")
    resolved.write_text(load([str(recipe), "algorithm.correction=icepop", "algorithm.correction.cap=4"]).to_yaml())
    for override, meaning in (
        ("seed=1", ("icepop", "token", "mask", 4.0, 0.5)),
        ("algorithm.correction={floor: 0.25}", ("icepop", "token", "mask", 4.0, 0.25)),
        ("algorithm.correction={name: sequence_tis}", ("sequence_tis", "sequence", "truncate", 2.0, None)),
        ("algorithm.correction=bypass", ("bypass", "token", None, 2.0, None)),
    ):
        loaded = load([str(resolved), override]).recipe
        assert isinstance(loaded, RL)
        c = loaded.algorithm.correction
        assert c is not None
        assert (c.name, c.level, c.action, c.cap, c.floor) == meaning


def test_job_selects_the_recipe_class(recipe: Path) -> None:
    sft = recipe.with_name("sft.yaml")
    sft.write_text("job: sft\nmodel: a\ndata: gsm8k\n")
    assert isinstance(load([str(sft)]).recipe, Sft)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rollout: {sampels: 4}\n", r"mine.yaml:5: unknown key 'rollout.sampels'; did you mean 'samples'\?"),
        ("algorithm: {kl: {estimator: k4}}\n", r"mine.yaml:5: 'algorithm.kl.estimator': .*'k1', 'k2', 'k3' or 'k3_plus'"),
        ("algorithm: {kl: {estimator: k1, coefficient: 0.1}}\n", r"mine.yaml:5: 'algorithm.kl': k1 as a loss .*use k2 .*or k3"),
        ("seed: [1\n", r"mine.yaml:\d: not readable as YAML"),
        ("job: dance\n", r"job 'dance' is none of rl, sft"),
        ("rollout: {top_p: 0.9}\n", r"set algorithm.correction \(token_tis is usual\)"),
        (
            "algorithm: {correction: token_tsi}\n",
            r"mine.yaml:5: 'algorithm.correction': there is no .*did you mean 'token_tis'\?",
        ),
        ("algorithm: {correction: {cap: 3}}\n", r"'algorithm.correction.name' is missing"),
        (
            "algorithm: {correction: {name: token_tis, floor: 0.5}}\n",
            r"token_tis has no `floor`: it is a bound of those",
        ),
        ("algorithm: {correction: {name: bypass, cap: 3}}\n", r"bypass has no `cap`: PPO's clip bounds its ratio"),
        ("algorithm: {correction: {name: token_tis, level: sequence}}\n", r"unknown key 'algorithm.correction.level'"),
        ("cluster: {mode: {name: sync, cap: 3}}\n", r"sync has no cap: it is that of async"),
        ("cluster: {zero: 0, offload: true}\n", r"with zero 0 nothing is moved"),
        ("cluster: {gpus_per_rank: 2}\n", r"a rank computes on one GPU: set ranks to more"),
        ("cluster: {tensor_parallel: 2, gpus_per_worker: 1}\n", r"tensor_parallel 2 takes as many GPUs: raise gpus_per_worker"),
        ("algorithm: {correction: {name: token_tis, cpa: 3}}\n", r"unknown key .*did you mean 'cap'\?"),
        ("algorithm: {correction: {name: token_mis, cap: 0.5}}\n", r"'algorithm.correction.cap': .*greater than or equal to 1"),
        ("rollout: {temperature: 0}\n", r"samples every completion of a group alike"),
        ("rewards: [answer, answer]\n", r"two reward components are called 'answer'"),
        ("rewards: [{name: format, gate: {component: answer, at_least: 1}}]\n", r"which is no component"),
        ("prompt: {template: hello}\n", r"must contain \{problem\}"),
        ("steps: 0\n", r"mine.yaml:5: 'steps': input should be greater than 0"),
    ],
)
def test_what_is_refused(recipe: Path, text: str, message: str) -> None:
    recipe.write_text(MINIMAL + text)
    with pytest.raises(UserError, match=message):
        load([str(recipe)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no recipe given; shipped recipes: .*quickstart"),
        (["quickstrat"], "did you mean 'quickstart'"),
        (["quickstart", "rollout.sampels=4"], "override rollout.sampels=4: unknown key"),
    ],
)
def test_arguments_that_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(arguments)


@pytest.mark.parametrize("section", ["", "optimizer: {schedule: cosine}\n"])
def test_supervised_training_has_a_rate_of_its_own(tmp_path: Path, section: str) -> None:
    """Also where the recipe says something else of the optimiser."""
    path = tmp_path / "sft.yaml"
    path.write_text("job: sft\nmodel: a\ndata: gsm8k\n" + section)
    assert load([str(path)]).recipe.optimizer.learning_rate == 1e-5
    assert load([str(path), "job=rl", "steps=1"]).recipe.optimizer.learning_rate == 1e-6


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bare.yaml"
    path.write_text("job: rl\ndata: gsm8k\n")
    with pytest.raises(UserError, match=r"'model' is missing.*'steps' is missing"):
        load([str(path)])


def test_a_recipe_that_is_no_mapping(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- a\n- b\n")
    with pytest.raises(UserError, match="a recipe is a mapping"):
        load([str(path)])


def test_a_mapping_that_names_another_plugin_replaces_the_old_one(recipe: Path) -> None:
    recipe.write_text("job: rl\nmodel: a\nsteps: 1\ndata: {name: chain, count: 5}\n")
    same = load([str(recipe), "data={count: 7}"]).recipe
    other = load([str(recipe), "data={name: gsm8k, limit: 3}"]).recipe
    assert (same.data[0].name, same.data[0].options) == ("chain", {"count": 7})
    assert (other.data[0].name, other.data[0].options) == ("gsm8k", {"limit": 3})


def test_an_override_may_be_longer_than_a_file_name(recipe: Path) -> None:
    template = "solve " * 100 + "{problem}"
    assert load([str(recipe), f"prompt.template={template}"]).recipe.prompt.template == template


def test_a_reward_model_keeps_its_best_also_where_other_checkpoints_are_set() -> None:
    recipe = load(["prm_chain", "checkpoint.keep_last=1"]).recipe
    assert isinstance(recipe, RewardModel)
    assert recipe.checkpoint.keep_best == "validation/gain"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"set algorithm.correction \(token_tis is usual\), or rollout.compression.uncorrected=true"),
        (
            ["algorithm.correction=token_tis", "rollout.compression.uncorrected=true"],
            "rollout.compression.uncorrected, and algorithm.correction token_tis",
        ),
        (["algorithm.correction=icepop", "lora={serve: adapter}"], "set lora.serve=merged"),
        (
            [
                "algorithm.correction=icepop",
                "rollout.engine=vllm",
                "cluster={transport: nccl, gpus_per_worker: 1, gpus_per_rank: 1}",
            ],
            "set cluster.transport=object_store",
        ),
        (["algorithm.correction=icepop", "cluster={zero: 3}"], "set cluster.zero to 2 or less"),
        (["algorithm.correction=icepop", "rollout.compression.after=3"], "after 3 leaves none of 3 steps"),
        (["algorithm.correction=icepop", "rollout.compression.after=0"], "set after >= 1, or guard.gain to none"),
        (["algorithm.correction=icepop", "rollout.compression.guard.gain=time"], "set after >= 3, or guard.gain to none"),
        (["algorithm.correction=icepop", "rollout.compression.methods=[]"], "at least 1 item"),
        (["algorithm.correction=icepop", "rollout.compression.guard={kl: 0}"], "greater than 0"),
        (["algorithm.correction=icepop", "rollout.compression.bits=4"], "unknown key 'rollout.compression.bits'"),
    ],
)
def test_what_is_refused_of_compressed_rollouts(recipe: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load([str(recipe), "rollout.compression={methods: {name: rtn, bits: 8}}", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.min_p=0.1", "algorithm.correction=token_tis"], "without min_p"),
        (["rollout.compression={methods: rtn}", "algorithm.correction=token_tis"], "leave out one of them"),
        (["lora={serve: adapter}"], "set lora.serve=merged"),
        (["quantised_base=rtn", "outliers={}"], "set outliers.serve=merged"),
    ],
)
def test_what_is_refused_of_drafters(recipe: Path, overrides: list[str], message: str) -> None:
    drafted = ["rollout.engine=vllm", "rollout.drafter={name: compressed, methods: rtn}"]
    assert load([str(recipe), *drafted]).recipe.rollout.drafter is not None
    with pytest.raises(UserError, match=message):
        load([str(recipe), *drafted, *overrides])


def test_what_drafts_by_what_was_said_needs_no_whole_weights(recipe: Path) -> None:
    drafted = ["rollout.engine=vllm", "rollout.drafter=history"]
    assert load([str(recipe), *drafted, "lora={serve: adapter}"]).recipe.rollout.drafter is not None
    with pytest.raises(UserError, match="without min_p"):
        load([str(recipe), *drafted, "rollout.min_p=0.1", "algorithm.correction=token_tis"])


@pytest.mark.parametrize("more", [["algorithm.correction=token_tis"], ["rollout.compression.uncorrected=true"]])
def test_rollouts_are_compressed_with_a_correction_or_explicitly_without(recipe: Path, more: list[str]) -> None:
    loaded = load([str(recipe), "rollout.compression={methods: rtn}", *more]).recipe
    assert isinstance(loaded, RL)
    assert loaded.rollout.compression is not None
    assert [method.name for method in loaded.rollout.compression.methods] == ["rtn"]
