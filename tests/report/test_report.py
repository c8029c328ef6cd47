"""The report of a synthetic run folder: what it says, that text cannot break out of it, and what it does with odd runs."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from rlcore.errors import UserError
from rlcore.report import samples
from rlcore.report.layout import sections
from rlcore.report.page import write_report
from rlcore.report.read import read_run

XSS = "</script><script>alert('$boo')</script><!--"


class Right:
    """Stands for the verifiable component; the report only asks what it is."""

    verifiable = True


def make_run(folder: Path, rows: list[dict[str, Any]], summary: dict[str, Any] | None = None, **recipe: Any) -> Path:
    folder.mkdir(exist_ok=True)
    rewards = [{"name": f"{__name__}:Right", "label": "answer"}, {"name": "builtins:object", "label": "format"}]
    resolved = {"job": "rl", "name": "my run", "model": "toy:chain", "steps": 30, "rewards": rewards, **recipe}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(resolved))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def make_ledger(folder: Path, step: int, groups: int, *, invalid: bool = False, text: str = "so it is 7") -> None:
    """Groups of four: sample 0 is right, the others wrong; the last completion of the step is invalid if asked."""
    (folder / "ledger").mkdir(exist_ok=True)
    rows = []
    for group, sample in [(g, s) for g in range(groups) for s in range(4)]:
        value = None if invalid and (group, sample) == (groups - 1, 3) else float(sample == 0)
        shared = {"step": step, "problem_id": f"p{group}", "sample": sample, "prompt": "3 + 4?", "completion": text}
        shared |= {"answer": "7", "length": 5, "finish_reason": "stop", "judged": "7"}
        reason = "gold unparsable" if value is None else "" if value else "not equal"
        weighted = None if value is None else step / 10
        rows.append({**shared, "component": "answer", "verifiable": True, "value": value, "weighted": value, "reason": reason})
        rows.append(
            {**shared, "component": "format", "verifiable": False, "value": step / 10, "weighted": weighted, "reason": ""}
        )
    pq.write_table(pa.Table.from_pylist(rows), folder / "ledger" / f"step-{step:06d}.parquet")


def step(number: int) -> dict[str, Any]:
    metrics = {"accuracy": number / 30, "reward": 1.0, "reward/answer": number / 30, "length/mean": 40, "grad_norm": 0.5}
    times = {"time/generate": 1 + 1 / number, "time/learn": 1.0, "time/step": 2 + 1 / number}
    return {"step": number, **metrics, **times, "kl/reference": 1e-5 * number, "mine/depth": 3}


def evaluation(number: int, accuracy: float) -> dict[str, Any]:
    bounds = {"eval/accuracy_low": accuracy - 0.05, "eval/accuracy_high": accuracy + 0.05}
    return {"step": number, "eval/accuracy": accuracy, **bounds, "eval/pass@8": accuracy + 0.1, "time/step": 99.0}


class Page(HTMLParser):
    """What a browser would make of the page: its tags with their attributes, its scripts, its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    @property
    def samples(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A finished run of 30 steps with four evaluations and a ledger of 12 of them."""
    rows = [evaluation(0, 0.2)]
    for number in range(1, 31):
        rows += [step(number), evaluation(number, number / 40)] if number % 10 == 0 else [step(number)]
    summary = {"accuracy_before": 0.2, "accuracy_before_low": 0.15, "accuracy_before_high": 0.25, "accuracy_after": 0.75}
    summary |= {"accuracy_before_best_temperature": 0.31, "wall_s": 312.4, "steps": 30, "stopped": XSS}
    summary |= {"length_before": 31.25, "length_after": 40.0, "problems_before": 200, "problems_after": 200}
    summary["temperatures_before"] = {"0": 0.31, "1": 0.2}
    run = make_run(tmp_path_factory.mktemp("run"), rows, summary, name=XSS)
    for number in range(1, 13):
        make_ledger(run, number, groups=16, invalid=number == 6, text=XSS)
    return Page(write_report(run))


def test_says_what_the_run_came_to(page: Page) -> None:
    assert "toy:chain · rl · finished at step 30 of 30" in page.text
    for said in (
        "before, best temperature",
        "0.200",
        "0.150 – 0.250",
        "0.310",
        "0.750",
        "+0.550",
        "5 min 12 s",
        "length31.2 → 40.0",
        "problems200",
        "0: 0.310 · 1: 0.200",
    ):
        assert said in page.text


def test_draws_every_metric_once(page: Page) -> None:
    titles = re.findall(r"<h3>(.*?)</h3>", page.source)
    assert titles[:2] == ["evaluation", "training"]
    assert len(titles) == len(set(titles)) == page.source.count("<svg ")
    assert "eval/accuracy_low" not in page.text
    assert "time/generate" in page.text


def test_what_never_changed_is_told_and_not_drawn(page: Page) -> None:
    titles = re.findall(r"<h3>(.*?)</h3>", page.source)
    assert "constant: mine/depth 3.00" in page.text  # unknown to the layout, yet shown
    assert "constant: grad_norm 0.500" in page.text
    assert not {"mine/depth", "grad_norm", "reward"} & set(titles)
    assert {"seconds per step", "reward/answer"} <= set(titles)  # one part of the time is constant, the whole is not


def test_an_evaluation_is_drawn_even_where_it_never_changed(tmp_path: Path) -> None:
    report = Page(write_report(make_run(tmp_path, [evaluation(0, 0.5), evaluation(20, 0.5)])))
    assert re.findall(r"<h3>(.*?)</h3>", report.source) == ["evaluation"]


def test_is_self_contained(page: Page) -> None:
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name.endswith(("href", "src"))]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert "url(http" not in page.source
    assert "@import" not in page.source


def test_text_cannot_break_out(page: Page) -> None:
    assert [attributes for tag, attributes in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "samples-data"},
        {},
    ]
    assert "<script>alert" not in page.source
    assert page.samples[0]["completion"] == XSS
    assert page.text.count(XSS) == 4  # title, heading, summary, recipe


def test_chooses_samples_over_the_whole_run(page: Page) -> None:
    shown = page.samples
    assert f"{len(shown)} of 768 completions from 12 steps" in page.text
    steps = {sample["step"] for sample in shown}
    assert {1, 12} <= steps
    assert len(steps) == samples.STEPS
    middle = [(sample["problem"], sample["sample"]) for sample in shown if sample["step"] == 7]
    assert middle == [(f"p{group}", sample) for group in range(6) for sample in range(4)]  # whole groups
    assert {sample["step"] for sample in shown if sample["extreme"] == "best"} == {12}
    assert {sample["step"] for sample in shown if sample["extreme"] == "worst"} == {1}


def test_a_sample_has_a_verdict_and_its_scores(page: Page) -> None:
    first, second = page.samples[:2]
    assert (first["verdict"], second["verdict"]) == ("correct", "wrong")
    assert first["reward"] == pytest.approx(1.1)
    assert second["scores"][0] == {
        "component": "answer",
        "verifiable": True,
        "value": 0.0,
        "weighted": 0.0,
        "judged": "7",
        "reason": "not equal",
    }


def test_an_invalid_completion_is_neither_wrong_nor_the_worst(tmp_path: Path) -> None:
    run = make_run(tmp_path, [step(1)])
    make_ledger(run, 1, groups=2, invalid=True)
    shown = Page(write_report(run)).samples
    assert [sample["verdict"] for sample in shown].count("invalid") == 1
    assert shown[-1]["reward"] is None
    assert shown[-1]["extreme"] is None


def test_a_long_text_is_cut_and_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, [step(1)])
    make_ledger(run, 1, groups=1, text="a" * (samples.LONGEST + 1234))
    assert "1,234 characters left out" in Page(write_report(run)).samples[0]["completion"]


def test_one_step_without_ledger_or_evaluation(tmp_path: Path) -> None:
    report = Page(write_report(make_run(tmp_path, [step(1)])))
    assert "not finished: step 1 of 30" in report.text
    assert "kept no ledger" in report.text
    assert report.source.count("<svg ") == 8


def test_an_unfinished_run_shows_its_evaluations_so_far(tmp_path: Path) -> None:
    report = Page(write_report(make_run(tmp_path, [evaluation(0, 0.2), step(1), evaluation(1, 0.5)])))
    assert "+0.300" in report.text
    assert "0.450 – 0.550" in report.text


def test_a_supervised_run(tmp_path: Path) -> None:
    rows = [{"step": number, "loss": 1 / number, "learning_rate": 1e-4} for number in range(1, 5)]
    run = make_run(tmp_path, rows, job="sft")
    report = Page(write_report(run))
    assert re.findall(r"<h3>(.*?)</h3>", report.source) == ["loss"]
    assert "constant: learning_rate 0.0001" in report.text


def test_nan_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [step(number) | {"loss": float("nan")} for number in range(1, 41)]
    rows[7]["grad_norm"], rows[8]["grad_norm"], rows[9]["time/learn"] = float("inf"), None, float("nan")
    report = Page(write_report(make_run(tmp_path, rows)))
    assert "no finite value 40 of 40 not finite" in report.text
    assert "0.500 2 of 40 not finite" in report.text
    assert "nan" not in "".join(re.findall(r"<path[^>]*>", report.source)).lower()


def test_a_step_counts_before_its_evaluation(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, [step(1), evaluation(1, 0.5)]))
    assert run.metrics["time/step"].values.tolist() == [3.0]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, [step(1)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "accu')
    assert read_run(run).last_step == 1


def test_known_metrics_have_a_place(tmp_path: Path) -> None:
    names = "accuracy reward reward/x length/mean length/truncated answers/missing invalid/fraction groups/degenerate loss "
    names += "entropy kl/reference kl/rollout kl/rollout_k3 importance/ratio_max importance/capped ratio/max clip_fraction "
    names += "grad_norm learning_rate tokens time/step tokens_per_second "
    names += "eval/accuracy eval/pass@8 eval/maj@8 eval/length eval/entropy eval/truncated eval/no_answer eval/invalid"
    run = read_run(make_run(tmp_path, [{"step": 1, **dict.fromkeys(names.split(), 1.0)}]))
    found = sections(run.metrics)
    assert "Other" not in [section.title for section in found]
    assert sorted(name for section in found for panel in section.panels for name in panel.names) == sorted(names.split())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda run: (run / "recipe.yaml").unlink(), "is no run folder"),
        (lambda run: (run / "recipe.yaml").write_text("a: ["), "not readable as YAML"),
        (lambda run: (run / "metrics.jsonl").unlink(), "nothing to report yet"),
        (lambda run: (run / "metrics.jsonl").write_text(""), "nothing to report yet"),
        (lambda run: (run / "metrics.jsonl").write_text('{"loss": 1}\n'), r"metrics\.jsonl:1: not a line of metrics"),
        (lambda run: (run / "metrics.jsonl").write_text('{"step": 1, "loss": "x"}\n'), r"metrics\.jsonl:1"),
        (lambda run: (run / "summary.json").write_text("{"), "not a JSON object"),
        (lambda run: (run / "ledger" / "step-000001.parquet").write_bytes(b"x"), "not readable as a ledger"),
        (
            lambda run: pq.write_table(pa.table({"sample": [1]}), run / "ledger" / "step-000001.parquet"),
            "not readable as a ledger",
        ),
    ],
)
def test_what_is_no_run_is_an_error_of_one_line(tmp_path: Path, break_it: Any, message: str) -> None:
    run = make_run(tmp_path, [step(1)])
    make_ledger(run, 1, groups=1)
    break_it(run)
    with pytest.raises(UserError, match=message) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_imports_no_torch() -> None:
    code = "import sys, rlcore.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
