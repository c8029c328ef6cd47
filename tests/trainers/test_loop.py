"""The loop with real parts on a tiny model: it runs, resumes to the bit, and stops as the recipe says."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerBase

from rlcore import jobs
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.protocols import Reward, StatefulReward
from rlcore.recipe.load import load
from rlcore.run.folder import Interrupted, Run
from rlcore.run.metrics import Mean, union
from rlcore.types import Scored
from tests.conftest import broken_off
from tests.rollout.test_tree_drafters import sharpened

DIGITS = f"{{name: '{__name__}:Digits'}}"
COUNTING = f"rewards=[answer, {DIGITS}, {{name: '{__name__}:Counting'}}]"
EVAL = "eval={every: 2, data: {name: chain, split: test, count: 6}, samples: 2, temperatures: [0]}"


@pytest.fixture
def launch(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """Run the quickstart recipe, shrunk, in a folder of its own; returns the folder."""

    def run(name: str, *overrides: str, resume: bool = False) -> Path:
        folder = tmp_path / name
        small = [
            f"model={tiny}",
            f"output={folder}",
            "threads=1",
            "steps=4",
            "data.count=60",
            "rollout.prompts_per_step=4",
            "rollout.samples=3",
            "rollout.max_new_tokens=12",
            "checkpoint.every=1",
            f"rewards=[answer, {DIGITS}]",
            EVAL,
        ]
        jobs.run(load(["quickstart", *small, *overrides]), resume)
        return folder

    return run


def metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and k != "tokens_per_second"} for row in rows]


def test_a_run_leaves_everything_behind(launch: Callable) -> None:
    folder = launch("run")
    assert [row["step"] for row in metrics(folder)] == [0, 1, 2, 2, 3, 4, 4]
    ledger = pq.read_table(folder / "ledger" / "step-000003.parquet").to_pylist()
    assert len(ledger) == 24
    assert {row["component"] for row in ledger} == {"answer", "Digits"}
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("accuracy_before", "accuracy_after", "accuracy_before_best_temperature", "greedy_accuracy_after", "wall_s"):
        assert isinstance(summary[key], float)
    assert summary["steps"] == 4
    assert "<html" in (folder / "report.html").read_text()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-3", "step-4"]


@pytest.mark.xdist_group("vllm")
@pytest.mark.parametrize("weights", ["lora=null", "lora={rank: 4}", "lora={rank: 4, serve: adapter}"])
def test_the_same_recipe_runs_on_vllm(launch: Callable, weights: str) -> None:
    """Real vLLM; every sync is proved by the loop's own probe, whose mean difference is in the metrics."""
    rows = metrics(launch("run", "rollout.engine={name: vllm, kv_cache_gb: 0.1}", weights, "optimizer.learning_rate=1e-3"))
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 4]
    trained = [row for row in rows if "parity" in row]
    assert all(row["parity"] < 1e-5 for row in trained)
    assert all(row["importance/ratio_max"] < 1 + 1e-5 and row["kl/rollout_k3"] < 1e-10 for row in trained)


@pytest.mark.xdist_group("vllm")
def test_a_compressed_copy_drafts_and_is_not_seen_in_what_is_learned_from(launch: Callable) -> None:
    drafter = "rollout.drafter={name: compressed, methods: {name: rtn, bits: 8, run: 0}}"
    rows = metrics(launch("run", "rollout.engine={name: vllm, kv_cache_gb: 0.1}", drafter, "optimizer.learning_rate=1e-3"))
    trained = [row for row in rows if "parity" in row]
    assert len(trained) == 4
    for row in trained:
        assert row["parity"] < 1e-5
        assert row["importance/ratio_max"] < 1 + 1e-5
        assert row["kl/rollout_k3"] < 1e-10
        assert row["drafter/accepted"] > 0.9
        assert 3 < row["drafter/tokens_per_pass"] <= 4
        assert row["sync/bytes"] == trained[0]["sync/bytes"]
    assert all(row["grad_norm"] > 0 for row in trained)


def test_what_was_said_an_epoch_ago_drafts_what_is_said_now(
    launch: Callable, tiny_spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """8 problems in 2 steps, twice, at a rate that changes next to nothing, and so cold that little is left to chance: most of
    what `history` drafts is accepted when the problems come back. What is learned from is what it is without drafts."""
    model = sharpened(tiny_spec, tmp_path / "sharp", 0.0, tokenizer)
    cold = [f"model={model.location}", "rollout.temperature=0.02", "optimizer.learning_rate=1e-9", "data.count=8", "eval=null"]
    plain, rows = (
        [row for row in metrics(launch(name, *cold, *drafter)) if "parity" in row]
        for name, drafter in (
            ("plain", []),
            ("drafted", ["rollout.drafter=history", "rollout.engine={name: transformers, always_draft: true}"]),
        )
    )
    assert len(rows) == 4
    for without, row in zip(plain, rows, strict=True):
        told = {name: row.pop(name) for name in list(row) if name.startswith("drafter/")}
        assert row == pytest.approx(without, abs=1e-4)
        if row["step"] > 2:
            assert told["drafter/accepted"] > 0.5
            assert told["drafter/tokens_per_pass"] > 2


class Digits(Reward):
    """Pays the share of digits: a random model's completions differ in it, so that every step has something to teach."""

    def score(self, groups, state):
        return [Scored(sum(c.text.count(d) for d in "0123456789") / 12) for group in groups for c in group.completions]


class Even(Reward):
    """A verifiable reward that a random model gets right now and then."""

    verifiable = True

    def score(self, groups, state):
        return [Scored(float(c.token_ids[0] % 2 == 0)) for group in groups for c in group.completions]


class Crash(Exception):
    pass


@pytest.mark.parametrize("when", ["before the ledger", "after the log", "inside the checkpoint"])
@pytest.mark.parametrize("extra", [[], [COUNTING]], ids=["plain", "stateful"])
def test_a_broken_run_resumes_to_the_bit(
    launch: Callable, monkeypatch: pytest.MonkeyPatch, when: str, extra: list[str]
) -> None:
    """Metrics, ledger and weights of a run that broke in step 3 and was resumed equal those of an unbroken one."""
    expected = launch("unbroken", *extra)
    target = {"before the ledger": "ledger", "after the log": "checkpoint"}.get(when)
    if target:
        original = getattr(Run, target)

        def crash(self: Run, step: int, *args: object) -> None:
            if step == 3:
                raise Crash
            original(self, step, *args)

        monkeypatch.setattr(Run, target, crash)
    else:
        import trainers.learner as learner_module

        save = learner_module.save_file

        def half(state: dict, path: Path) -> None:
            if "step-3" in str(path):
                raise Crash
            save(state, path)

        monkeypatch.setattr(learner_module, "save_file", half)
    with pytest.raises(Crash):
        launch("broken", *extra)
    monkeypatch.undo()
    folder = launch("broken", *extra, resume=True)
    assert metrics(folder) == metrics(expected)
    for step in (3, 4):
        name = f"ledger/step-{step:06d}.parquet"
        assert pq.read_table(folder / name).equals(pq.read_table(expected / name))
    weights = "checkpoints/step-4/policy/learner.safetensors"
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()


class Counting(StatefulReward):
    """Pays the number of batches it has seen: wrong after a resume unless its state comes back."""

    def initial_state(self) -> int:
        return 0

    def score(self, groups, state):
        return [Scored(float(state)) for group in groups for _ in group.completions]

    def update(self, groups, graded, state):
        return state + 1, {"seen": Mean(state, 1)}


def test_ctrl_c_finishes_the_step_checkpoints_and_says_how_to_go_on(
    launch: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = Run.ledger

    def press(self: Run, step: int, rows: list) -> None:
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        original(self, step, rows)

    monkeypatch.setattr(Run, "ledger", press)
    with pytest.raises(Interrupted, match=r"stopped after step 2; go on with: rlcore train .* --resume"):
        launch("run", "checkpoint.every=100")
    assert (tmp_path / "run/checkpoints/step-2").exists()
    monkeypatch.undo()
    launch("run", "checkpoint.every=100", resume=True)
    assert metrics(tmp_path / "run") == metrics(launch("other"))


def test_a_run_is_not_overwritten(launch: Callable) -> None:
    launch("run")
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        launch("run")


def test_resuming_with_another_recipe_is_refused(launch: Callable) -> None:
    launch("run")
    with pytest.raises(UserError, match="was started with another optimizer"):
        launch("run", "optimizer.learning_rate=1", resume=True)


def test_a_finished_run_goes_on_with_more_steps(launch: Callable) -> None:
    launch("run", "steps=2")
    folder = launch("run", "steps=4", resume=True)
    assert metrics(folder)[-1] == metrics(launch("straight"))[-1]


@pytest.mark.parametrize(
    ("stop", "last"),
    [("stop.max_tokens=150", 2), ("stop={metric: eval/accuracy, patience: 1}", 2), ("stop.max_hours=1.0e-9", 1)],
)
def test_stop_rules_end_a_run_early(launch: Callable, stop: str, last: int) -> None:
    """A tiny random model says about 12 × 8 tokens a step and does not improve."""
    folder = launch("run", "steps=50", stop)
    assert metrics(folder)[-1]["step"] <= last + 1
    assert (folder / "summary.json").exists()
    assert (folder / "checkpoints" / f"step-{metrics(folder)[-1]['step']}").exists()


def test_the_best_checkpoint_is_kept(launch: Callable) -> None:
    folder = launch("run", "checkpoint={every: 1, keep_last: 1, keep_best: length/mean}")
    lengths = {row["step"]: row["length/mean"] for row in metrics(folder) if "length/mean" in row}
    best = max(lengths, key=lambda step: lengths[step])
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {f"step-{best}", "step-4"}


def test_dynamic_sampling_trains_on_mixed_groups_only(launch: Callable) -> None:
    """Two samples a group, right half of the time: about half of the groups are mixed, so a step needs two or three rounds."""
    even = f"rewards=[{{name: '{__name__}:Even'}}]"
    folder = launch("run", even, "rollout.samples=2", "algorithm.dynamic_sampling={max_rounds: 6}", "data.count=200")
    steps = [row for row in metrics(folder) if "groups/trained" in row]
    assert [row["groups/trained"] for row in steps] == [4] * 4
    assert all(row["groups/degenerate"] == 0 and row["grad_norm"] > 0 for row in steps)
    ledger = pq.read_table(folder / "ledger/step-000001.parquet").to_pylist()
    assert len(ledger) > 8  # more was sampled than trained on, and all of it is in the ledger
    assert len({(row["problem_id"], row["sample"]) for row in ledger}) == len(ledger)


def test_a_run_that_verifies_nothing_says_nothing_of_accuracy(launch: Callable) -> None:
    folder = launch("run", "steps=1", "eval=null", f"rewards=[{DIGITS}]")
    assert not any("accuracy" in name for row in metrics(folder) for name in row)


def test_two_parts_of_a_step_cannot_report_one_metric() -> None:
    assert union([{"a": Mean(1, 1)}, {}, {"b": Mean(2, 1)}]) == {"a": Mean(1, 1), "b": Mean(2, 1)}
    with pytest.raises(UserError, match="two parts of a step report the metric 'a'"):
        union([{"a": Mean(1, 1)}, {"b": Mean(2, 1)}, {"a": Mean(3, 1)}])


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.kl={estimator: k3, coefficient: 0.1}"],
        ["lora={rank: 4}", "algorithm.kl={estimator: k2, coefficient: 0.1}"],
        ["algorithm.correction=token_tis", "rollout.top_p=0.9"],
        ["algorithm.correction={name: bypass_token_mis, cap: 3}", "update.minibatches=2"],
        ["lora={rank: 4}"],
        ["algorithm={advantage: rloo, aggregate: sequence_mean, mask_truncated: true}"],
        ["dtype=bfloat16"],
        ["update={minibatches: 2, epochs: 2, gradient_checkpointing: true}"],
        [f"rewards=[answer, {{name: '{__name__}:Digits', gate: {{component: answer, at_least: 0}}}}]"],
        ["rewards=[answer, {name: overlong, max_tokens: 12, buffer: 6}]"],
        ["eval=null"],
        ["log=[tensorboard]"],
    ],
    ids=lambda o: "+".join(override.split("=")[0] for override in o),
)
def test_what_a_recipe_can_choose_runs(launch: Callable, overrides: list[str]) -> None:
    folder = launch("run", "steps=2", *overrides)
    learned = [row for row in metrics(folder) if "grad_norm" in row]
    assert [row["step"] for row in learned] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in learned)


def test_the_best_checkpoint_and_the_stop_rule_may_watch_different_metrics(launch: Callable) -> None:
    folder = launch("run", "checkpoint={every: 1, keep_best: reward}", "stop={metric: eval/accuracy, patience: 1}", "steps=9")
    assert metrics(folder)[-1]["step"] == 2  # the evaluation of step 2 is the first that could have risen


def test_a_watched_metric_that_does_not_exist_is_refused(launch: Callable) -> None:
    with pytest.raises(UserError, match="watches 'eval/acuracy', which no metric is called"):
        launch("run", "checkpoint.keep_best=eval/acuracy")


def test_the_gsm8k_recipe_runs_on_a_tiny_model(launch: Callable, tiny: Path, tmp_path: Path) -> None:
    """As shipped, but for the model, the files and the length."""
    rows = [json.dumps({"question": f"{n}+{n}=?", "answer": f"twice\n#### {2 * n}"}) for n in range(40)]
    for name, half in (("train", rows[:20]), ("test", rows[20:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(half))
    jobs.run(
        load(
            [
                "grpo_gsm8k",
                f"model={tiny}",
                f"output={tmp_path / 'gsm8k'}",
                "steps=1",
                "rollout.max_new_tokens=8",
                f"data.path={tmp_path / 'train.jsonl'}",
                f"eval.data.path={tmp_path / 'test.jsonl'}",
            ]
        ),
        resume=False,
    )
    assert (tmp_path / "gsm8k/checkpoints/step-1/policy/model/config.json").exists()


COMPRESSED = [
    "algorithm.correction=token_tis",
    "rollout.compression={methods: [{name: magnitude, pattern: [4, 8]}, {name: mvq, codes: 32}], keep_dense: [lm_head]}",
    "rollout.compression={after: 1, guard: {kl: null}}",
    "optimizer.learning_rate=1e-3",
]


def without_seconds(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in rows]


@pytest.mark.parametrize("weights", ["lora=null", "lora={rank: 4}"])
@pytest.mark.parametrize("engine", ["transformers", pytest.param("vllm", marks=pytest.mark.xdist_group("vllm"))])
def test_a_compressed_copy_samples_and_the_policy_itself_is_evaluated(launch: Callable, engine: str, weights: str) -> None:
    options = "{name: vllm, kv_cache_gb: 0.1}" if engine == "vllm" else engine
    folder = launch("run", *COMPRESSED, f"rollout.engine={options}", weights)
    steps = [row for row in metrics(folder) if "parity" in row]
    assert [row["compression/on"] for row in steps] == [0, 1, 1, 1]
    assert all(row["parity"] < 1e-5 for row in steps)
    assert steps[0]["kl/rollout_k3"] < 1e-9
    assert all(row["kl/rollout_k3"] > 1e-7 and row["importance/ratio_max"] > 1.001 for row in steps[1:])
    summary = json.loads((folder / "summary.json").read_text())
    full, small = (summary["compression"][f"bytes_a_sync{which}"] for which in ("_uncompressed", ""))
    # A step after an evaluation, for which the policy itself was sent and then its copy again, pays for those.
    assert {row["compression/bytes_saved"] for row in steps[1:]} == {full - small, full - small - (full + small)}
    assert summary["compression"]["ended"] == "never"
    assert summary["compression"]["bytes_a_sync"] * 2 < summary["compression"]["bytes_a_sync_uncompressed"]
    report = (folder / "report.html").read_text()
    assert "Compressed rollouts" in report
    assert "bytes synced" in report
    again = launch("again", f"model={folder}/checkpoints/step-4/policy/model", "steps=1", *COMPRESSED[3:])
    if engine == "transformers":  # what the run found at its end is what is found of the model that it left
        assert metrics(again)[0]["eval/accuracy"] == summary["accuracy_after"]
        assert json.loads((again / "summary.json").read_text())["entropy_before"] == summary["entropy_after"]


def test_a_broken_compressed_run_resumes_to_the_bit(launch: Callable) -> None:
    """In the middle of the baseline; its codes are fitted anew, to the same."""
    expected = launch("unbroken", *COMPRESSED, "rollout.compression.after=2")
    with broken_off(after=1):
        launch("run", *COMPRESSED, "rollout.compression.after=2")
    folder = launch("run", *COMPRESSED, "rollout.compression.after=2", resume=True)
    assert without_seconds(metrics(folder)) == without_seconds(metrics(expected))
    weights = "checkpoints/step-4/policy/learner.safetensors"
    assert (folder / weights).read_bytes() == (expected / weights).read_bytes()


def test_a_run_goes_on_uncompressed_when_the_copy_is_too_far_from_the_policy(
    launch: Callable, capsys: pytest.CaptureFixture
) -> None:
    """Said once, also where the run is broken off and resumed; in the metrics, the summary and the report."""
    far = [*COMPRESSED, "rollout.compression.guard={kl: 1.0e-8}"]
    with broken_off(after=2):
        launch("run", *far)
    folder = launch("run", *far, resume=True)
    steps = [row for row in metrics(folder) if "parity" in row]
    assert [row["compression/on"] for row in steps] == [0, 1, 1, 0]
    assert [row["sync/bytes"] for row in steps[:2]] == [min(row["sync/bytes"] for row in steps)] * 2
    assert [row["sync/bytes"] for row in steps[2:]] == [max(row["sync/bytes"] for row in steps)] * 2
    assert steps[2]["kl/rollout_k3"] > 1e-7 > 1e-9 > steps[3]["kl/rollout_k3"]
    assert capsys.readouterr().err.count("rollouts are compressed no longer from step 4 on") == 1
    assert "before step 4: the copy is" in json.loads((folder / "summary.json").read_text())["compression"]["ended"]
    assert "before step 4: the copy is" in (folder / "report.html").read_text()
