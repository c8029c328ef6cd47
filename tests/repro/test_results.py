"""From run folders to numbers, and from numbers to the page, on runs written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlcore.recipe.load import load
from rlcore.repro import best_of_n, page
from rlcore.repro.experiment import BestOfN, Experiment
from rlcore.repro.results import Result, summarise
from rlcore.repro.training import METRICS, collect, first_at, table
from rlcore.run import alarms
from rlcore.run.alarms import Alarm


def run_folder(folder: Path, rows: list[dict[str, float]], completions: dict[int, int]) -> Path:
    """A run with two reward components, so with two rows a completion in its ledger."""
    (folder / "ledger").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("job: rl\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps({"accuracy_before": 0.2, "accuracy_after": 0.8, "wall_s": 60.0}))
    for step, count in completions.items():
        rows = [(component, i) for i in range(count) for component in ("answer", "format")]
        ledger = {
            **{"problem_id": [f"p{i // 8}" for _, i in rows], "sample": [i % 8 for _, i in rows]},
            **{"component": [component for component, _ in rows], "value": [1.0 for _ in rows]},
            **{"completion": [f"{i}" for _, i in rows], "length": [1 for _ in rows]},
        }
        pq.write_table(pa.table(ledger), folder / "ledger" / f"step-{step:06d}.parquet")
    return folder


ROWS: list[dict[str, float]] = [
    {"step": 0, "eval/accuracy": 0.2},
    {
        "step": 1,
        "tokens": 100,
        "time/step": 2.0,
        "time/generate": 0.9,
        "monitor/steps": 3.0,
        "accuracy": 0.1,
        "length/mean": 10.0,
    },
    {
        "step": 2,
        "tokens": 300,
        "time/step": 4.0,
        "time/generate": 0.7,
        "tree/shared": 0.5,
        "accuracy": 0.6,
        "length/mean": 15.0,
    },
    {"step": 2, "eval/accuracy": 0.6},
    {
        "step": 3,
        "tokens": 50,
        "time/step": 1.0,
        "time/generate": 0.5,
        "monitor/steps": 4.0,
        "accuracy": 0.8,
        "length/mean": 6.5,
    },
    {"step": 3, "eval/accuracy": 0.8},
    *({"step": step, "time/generate": seconds} for step, seconds in ((1, 0.9), (2, 0.7), (3, 0.5))),
]


def test_a_runs_numbers_by_hand(tmp_path: Path) -> None:
    """10 + 20 completions for 0.6, 8 more for 0.8: 0.7 lies half-way, at 34 completions, and at 6.5 of 7 seconds."""
    folder = run_folder(tmp_path / "run", ROWS, {1: 10, 2: 20, 3: 8})
    result = collect(folder, load(["quickstart"]).recipe, target=0.7)  # type: ignore[arg-type]
    assert result.curve == {
        **{"samples": [0, 30, 38], "wall_s": [0, 6.0, 7.0], "accuracy": [0.2, 0.6, 0.8]},
        **{"step": [1, 2, 3], "accuracy_sampled": [0.1, 0.6, 0.8], "length_sampled": [10.0, 15.0, 6.5]},
        "generate_s": [0.9, 0.7, 0.5],
    }
    wanted = {"samples": 38, "tokens": 100 + 150 + 50, "wall_s": 7.0, "accuracy_before": 0.2, "accuracy_after": 0.8}
    assert {name: result.metrics[name] for name in wanted} == wanted
    assert result.metrics["samples_to_target"] == pytest.approx(34)
    assert result.metrics["wall_to_target"] == pytest.approx(6.5)
    assert result.metrics["greedy_accuracy_after"] is None
    assert result.metrics["steps_after"] == 3.5
    assert result.metrics["accuracy_sampled"] == pytest.approx(0.5)  # each step counts alike, however much it sampled
    assert result.metrics["length_sampled"] == pytest.approx(10.5)
    assert result.metrics["accuracy_sampled_early"] == 0.1  # a fifth of three steps is the first
    assert result.metrics["generate_again_s"] == 0.5  # the third step's problem had come, the second's third one had not
    assert result.metrics["tokens_per_pass"] is None
    assert result.elapsed_s == 60.0


def test_runs_that_sampled_the_same_have_the_same_fingerprint(tmp_path: Path) -> None:
    found = []
    for name, at in (("one", None), ("two", None), ("three", 3)):
        folder = run_folder(tmp_path / name, ROWS, {1: 10, 2: 20, 3: 8})
        if at:
            file = folder / "ledger" / f"step-{at:06d}.parquet"
            ledger = pq.read_table(file)
            said = ledger["completion"].to_pylist()
            changed = pa.array([*said[:-1], f"{said[-1]}!"])
            pq.write_table(ledger.set_column(ledger.column_names.index("completion"), "completion", changed), file)
        metrics = collect(folder, load(["quickstart"]).recipe, target=0.7).metrics  # type: ignore[arg-type]
        found.append(metrics["fingerprint"])
    assert found[0] == found[1] != found[2]


def test_what_was_lost_when_the_monitor_spoke(tmp_path: Path) -> None:
    """0.2, 0.6 and 0.3 at the steps 0, 2 and 5: at step 3, a third of the way down, 0.1 of the best is lost."""
    rows: list[dict[str, float]] = [{"step": step, "eval/accuracy": value} for step, value in ((0, 0.2), (2, 0.6), (5, 0.3))]
    folder = run_folder(tmp_path / "run", rows, {})
    quiet = collect(folder, load(["quickstart"]).recipe, target=0.7).metrics  # type: ignore[arg-type]
    assert (quiet["accuracy_best"], quiet["alarms"], quiet["lost_at_alarm"]) == (0.6, 0, None)
    alarms.append(folder, [Alarm("one_step", step, 2, {}, [], "warn") for step in (3, 5)])
    told = collect(folder, load(["quickstart"]).recipe, target=0.7).metrics  # type: ignore[arg-type]
    assert (told["alarms"], told["lost_at_alarm"]) == (2, pytest.approx(0.1))


def test_remaxs_greedy_completions_were_sampled_too(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", ROWS, {1: 16, 2: 16, 3: 16})
    recipe = load(["quickstart", "rollout.samples=8", "algorithm.advantage=remax"]).recipe
    assert collect(folder, recipe, target=0.7).metrics["samples"] == 3 * 18  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accuracy", "reached"),
    [
        ([0.1, 0.2, 0.3], None),
        ([0.7, 0.2, 0.9], 0.0),  # before the first step
        ([0.5, 0.7, 0.9], 100.0),
        ([0.5, 0.9, 0.1], 50.0),
        ([0.6, 0.4, 0.8], 250.0),  # from the evaluation before it, however low that was
    ],
)
def test_the_target_is_reached_on_the_line_from_the_evaluation_before(accuracy: list[float], reached: float | None) -> None:
    spent = [0.0, 100.0, 300.0]
    assert first_at(0.7, accuracy, spent) == (None if reached is None else pytest.approx(reached))


def test_a_metric_that_a_seed_does_not_have_has_no_mean() -> None:
    whole = summarise({100: 1.0, 101: 2.0, 102: 3.0})
    assert (whole["mean"], whole["seeds"], whole["per_seed"]) == (2.0, 3, {"100": 1.0, "101": 2.0, "102": 3.0})
    assert (whole["low"], whole["high"]) == pytest.approx((-0.4841, 4.4841), abs=1e-4)
    part = summarise({100: 1.0, 101: None})
    assert (part["mean"], part["low"], part["seeds"]) == (None, None, 1)
    assert summarise({100: 1.0})["mean"] == 1.0


def made(accuracies: dict[str, list[float | None]], claims: dict[str, str], panels: tuple[str, ...] = ()) -> dict[str, Any]:
    experiment = Experiment(
        title="Arms by hand",
        about="About.",
        base=["quickstart"],
        arms={arm: [] for arm in accuracies},
        seeds=[100, 101, 102],
        claims=claims,
        panels=panels,
        tried=["one", "two"],
    )
    results = {
        arm: {
            seed: Result(
                dict.fromkeys(METRICS) | {"accuracy_after": end, "samples": 256.0, "samples_to_target": reached(end)},
                {"samples": [0, 128, 256], "wall_s": [0, 1.0, 2.0], "accuracy": [0.1, 0.2, end]}
                | {"step": [1, 2], "accuracy_sampled": [0.1, end], "length_sampled": [20.0, 30.0 - 10 * end]},
                10.0,
            )
            for seed, end in zip(experiment.seeds, ends, strict=True)
        }
        for arm, ends in accuracies.items()
    }
    return page.document(
        "by-hand", experiment, results, command="rlcore repro by-hand", models={"toy:chain": "0123456789abcdef"}
    )


def reached(end: float) -> float | None:
    return 200.0 if end >= 0.7 else None


ENDS = {"low": [0.3, 0.4, 0.5], "best": [0.8, 0.9, 1.0], "near": [0.88, 0.81, 0.95]}
CLAIMS = {
    "best_is_above": "accuracy_after[best] - accuracy_after[low] > 0",
    "near_is_above": "accuracy_after[near] - accuracy_after[best] > 0",
    "low_is_above": "accuracy_after[low] - accuracy_after[best] > 0",
    "low_gets_there": "samples_to_target[low] / samples_to_target[best] < 2",
}


def test_claims_are_judged_on_differences_of_the_same_seed() -> None:
    """best − low is 0.5 with every seed, though both arms spread; near − best is 0.08, −0.09, −0.05."""
    claims = made(ENDS, CLAIMS)["claims"]
    assert [claims[name]["holds"] for name in CLAIMS] == [True, None, False, None]
    assert claims["best_is_above"]["interval"] == pytest.approx([0.5, 0.5])
    assert claims["low_gets_there"]["per_seed"] == {"100": None, "101": None, "102": None}
    assert claims["low_gets_there"]["interval"] is None


def test_the_page_is_rendered_from_all_that_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page.write(made({f"arm_{i}": [i / 20, i / 20, i / 20] for i in range(13)}, {"c": "samples[arm_0] > 0"}) | {"name": "a"})
    text = page.write(made(ENDS, CLAIMS)).read_text()
    lines = text.splitlines()
    arms = [line.split("|")[1].strip() for line in lines if line.startswith(("| best |", "| near |", "| low |"))]
    assert arms == ["best", "near", "low"]  # the highest first
    assert "Highest accuracy after training: best; not to be told from it by these seeds: near (" in text
    assert "| best is above | `accuracy_after[best] - accuracy_after[low] > 0` | yes | 0.500 to 0.500 |" in lines
    assert "| low is above | `accuracy_after[low] - accuracy_after[best] > 0` | **no** | −0.500 to −0.500 |" in lines
    assert "| low gets there | `samples_to_target[low] / samples_to_target[best] < 2` | cannot tell | — |" in lines
    assert text.count("## Arms by hand") == 2
    assert "- one\n- two\n" in text
    assert "toy:chain (0123456789ab)" in text
    for name in ("a", "by-hand"):
        drawn = ElementTree.parse(tmp_path / "docs" / "results" / f"{name}.svg")
        labels = {element.text for element in drawn.iter() if element.text}
        assert {"completions sampled", "seconds of training"} <= labels
    assert {"best", "near", "low"} <= labels


def test_pages_that_ask_for_an_experiment_are_given_its_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    guide, other = tmp_path / "docs" / "guide.md", tmp_path / "docs" / "other.md"
    guide.write_text("Before.\n\n<!-- results: by-hand -->\nold\n<!-- end -->\n\nAfter.\n")
    other.write_text("<!-- results: another -->\n<!-- end -->\n")
    for _ in range(2):  # the second time in the place of the first
        page.write(made(ENDS, CLAIMS))
        lines = guide.read_text().splitlines()
        assert (lines[0], lines[-1], "old" in lines) == ("Before.", "After.", False)
        assert sum(line.startswith("| best |") for line in lines) == 1
    assert other.read_text() == "<!-- results: another -->\n<!-- end -->\n"


def test_a_plot_has_the_panels_that_its_experiment_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The legend goes by the first: there the shortest is last."""
    monkeypatch.chdir(tmp_path)
    text = page.write(made(ENDS, CLAIMS, panels=("length", "samples"))).read_text()
    assert "![tokens a completion by training step, held-out accuracy by completions sampled](results/by-hand.svg)" in text
    drawn = ElementTree.parse(tmp_path / "docs" / "results" / "by-hand.svg")
    labels = [element.text for element in drawn.iter() if element.text]
    assert {"training step", "tokens a completion", "completions sampled", "held-out accuracy"} <= set(labels)
    assert "seconds of training" not in labels
    assert [label for label in labels if label in ENDS] == ["low", "near", "best"]


def test_how_arms_sync_is_told_where_they_differ_in_it() -> None:
    def head(bytes_of_b: float) -> list[str]:
        values = {"a": {"sync_bytes": 100.0, "sync_s": 1.0}, "b": {"sync_bytes": bytes_of_b, "sync_s": 1.5}}
        arms = {arm: {m: summarise({100: of.get(m, 0.5)}) for m in METRICS} for arm, of in values.items()}
        return list(table({"arms": arms, "seeds": [100]})[0])

    assert {"bytes a sync", "of the sync"} <= set(head(40.0))
    assert not {"bytes a sync", "of the sync"} & set(head(100.0))


def test_what_was_written_once_is_written_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = made(ENDS, CLAIMS)
    files = [page.write(result), *(tmp_path / "docs" / "results").iterdir()]
    before = [file.read_bytes() for file in files]
    page.write(result)
    assert [file.read_bytes() for file in files] == before


def curve(*values: float) -> dict[str, dict[str, float]]:
    return {str(n): {"value": value} for n, value in zip((1, 4), values, strict=True)}


def test_what_reward_models_choose_is_read_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of whole solutions has no choice step by step, a control no training, `pass` and `majority` no reward model."""
    monkeypatch.chdir(tmp_path)
    experiment = Experiment(
        title="Choices",
        about="About.",
        base=["prm_chain"],
        arms={"orm": [], "prm": []},
        best_of_n=BestOfN(policy="p", data={}, n=(1, 4), controls={"truth": {"name": "t"}}, max_new_tokens=8),
        seeds=[100, 101],
        claims={"rises": "stepwise_4[prm] - stepwise_1[prm] > 0", "no_steps": "stepwise_4[orm] - stepwise_1[orm] > 0"},
        tried="nothing",
    )
    asked, found = experiment.best_of_n, {}
    assert asked is not None
    for seed, shift in ((100, 0.0), (101, 0.05)):
        measured = best_of_n.measurement("choices", asked, seed, [])
        ends = {"prm": 0.6 + shift, "truth": 0.9 + shift}
        judges = {name: {"whole": curve(0.3, 0.4), "stepwise": curve(0.3, end)} for name, end in ends.items()}
        judges = {"orm": {"whole": curve(0.3, 0.5)}} | judges
        measured.folder.parent.mkdir(parents=True, exist_ok=True)
        written = {"judges": judges, "pass": curve(0.3, 0.8), "majority": curve(0.3, 0.35)}
        measured.folder.with_name(f"{seed}.json").write_text(json.dumps(written))
        found[seed] = best_of_n.collect(asked, measured, [])
    assert found[100]["orm"].metrics == {
        **{"whole_1": 0.3, "whole_4": 0.5, "stepwise_1": None, "stepwise_4": None},
        **{"auc": None, "gain": None},
    }
    results = {arm: {seed: found[seed][arm] for seed in found} for arm in experiment.measured}
    text = page.write(page.document("choices", experiment, results, command="c", models={})).read_text()
    assert "| rises | `stepwise_4[prm] - stepwise_1[prm] > 0` | yes | " in text
    assert "| no steps | `stepwise_4[orm] - stepwise_1[orm] > 0` | cannot tell | — |" in text
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if " of whole solutions |" in line]
    assert rows == [f"{arm}, of whole solutions" for arm in ("truth", "prm", "orm", "pass", "majority")]
    assert "| orm, step by step |" not in text
    assert "Highest accuracy at the largest N, chosen step by step if any is: truth; every other arm is below it" in text
    drawn = ElementTree.parse(tmp_path / "docs" / "results" / "choices.svg")
    labels = {element.text for element in drawn.iter() if element.text}
    assert {"N whole solutions", "N candidates for each step", "pass", "majority", "orm", "truth", "4"} <= labels


def test_reward_models_of_whole_solutions_are_ranked_by_these() -> None:
    values = {"whole_1": summarise({100: 0.3}), "whole_4": summarise({100: 0.5}), "stepwise_4": summarise({100: None})}
    assert best_of_n.headline({"arms": {"orm": values, "pass": values}}) == "whole_4"


def test_an_arm_without_a_value_is_not_the_best_one() -> None:
    """Whichever way the best is, and where values are below 0."""
    arms = {"none": {"m": {"mean": None}}, "low": {"m": {"mean": -2.0}}, "high": {"m": {"mean": -1.0}}}
    assert list(page._best_first(arms, "m", True)) == ["high", "low", "none"]
    assert list(page._best_first(arms, "m", False)) == ["low", "high", "none"]
