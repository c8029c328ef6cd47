"""The benchmark sources, `file` and `hub`: what they read, where they look, and what they say of rows that are not right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlcore.errors import UserError
from rlcore.plugins import bind
from rlcore.types import Problem

GSM8K = {"question": "How many clips?", "answer": "48/2 = <<48/2=24>>24 a day.\nIn all <<24*50=1200>>1,200.\n#### 1,200"}
MATH500 = {
    "problem": "What is $1+1$?",
    "solution": "It is $\\boxed{2}$.",
    "answer": "2",
    "subject": "Algebra",
    "level": 1,
    "unique_id": "test/algebra/7.json",
}
MATH = {"problem": "What is $1+1$?", "final_answer": "2"}
MINE = {"prompt": "What is 1+1?", "answer": "2", "proof": "Count."}


def read(source: str, **options: Any) -> list[Problem]:
    return bind("rlcore.data.sources", source, options)()


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_gsm8k_takes_the_answer_after_the_hashes_and_the_solution_without_calculator_annotations(tmp_path: Path) -> None:
    [_, problem] = read("gsm8k", path=jsonl(tmp_path / "mine.jsonl", GSM8K, GSM8K), split="test")
    assert problem == Problem(
        id="gsm8k/test/2",
        prompt="How many clips?",
        answer="1200",
        meta={"solution": "48/2 = 24 a day.\nIn all 1,200."},
    )


def test_math500_takes_its_own_ids(tmp_path: Path) -> None:
    [problem] = read("math500", path=jsonl(tmp_path / "mine.jsonl", MATH500))
    meta = {"subject": "Algebra", "level": 1, "solution": "It is $\\boxed{2}$."}
    assert problem == Problem("math500/test/algebra/7", "What is $1+1$?", "2", meta=meta)


def test_math_marks_a_problem_without_final_answer(tmp_path: Path) -> None:
    path = tmp_path / "math.json"
    path.write_text(json.dumps([MATH, MATH | {"final_answer": ""}]))
    assert read("math", path=str(path)) == [
        Problem("math/train/1", "What is $1+1$?", "2"),
        Problem("math/train/2", "What is $1+1$?", "", meta={"unusable": "no final answer"}),
    ]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [(r"not $\boxed{1}$ but $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"), (r"so $x=\boxed 7$.", "7"), ("no answer", "")],
)
def test_math_takes_the_boxed_answer_where_there_is_a_solution(solution: str, answer: str, tmp_path: Path) -> None:
    [problem] = read("math", path=jsonl(tmp_path / "math.jsonl", {"problem": "Q", "solution": solution}))
    assert problem.answer == answer
    assert problem.meta["solution"] == solution
    assert ("unusable" in problem.meta) == (not answer)


@pytest.mark.parametrize(
    ("source", "rows", "says"),
    [
        ("gsm8k", [GSM8K, {"question": "Q"}], "data.jsonl:2: field 'answer' is missing; the row has 'question'"),
        ("gsm8k", [GSM8K, "\n", {}], "data.jsonl:3: field 'answer' is missing; the row has no fields"),
        ("gsm8k", [GSM8K | {"question": 3}], "data.jsonl:1: field 'question' is not a string but int"),
        ("gsm8k", [GSM8K | {"question": None}], "data.jsonl:1: field 'question' is not a string but NoneType"),
        ("gsm8k", [GSM8K | {"question": " \n"}], "data.jsonl:1: field 'question' is empty"),
        ("gsm8k", [GSM8K | {"answer": "It is 3."}], "data.jsonl:1: there is no '####' in field 'answer'"),
        ("gsm8k", [GSM8K | {"answer": "It is 3.\n####"}], "data.jsonl:1: there is nothing after '####' in field 'answer'"),
        ("gsm8k", [GSM8K, '{"question": \n'], "data.jsonl:2: not JSON: "),
        ("gsm8k", [GSM8K, "[1]\n"], "data.jsonl:2: not a JSON object but list"),
        ("gsm8k", [], "data.jsonl: there are no rows in it"),
        ("gsm8k", ["\n\n"], "data.jsonl: there are no rows in it"),
        ("math500", [MATH500 | {"answer": ""}], "data.jsonl:1: field 'answer' is empty"),
        ("math500", [{k: v for k, v in MATH500.items() if k != "level"}], "data.jsonl:1: field 'level' is missing"),
        ("math500", [MATH500 | {"unique_id": 7}], "data.jsonl:1: field 'unique_id' is not a string but int"),
        ("math", [MATH | {"final_answer": 2}], "data.jsonl:1: field 'final_answer' is not a string but int"),
        ("math", [{"final_answer": "2"}], "data.jsonl:1: field 'problem' is missing"),
        ("file", [MINE, {"question": "Q", "answer": "2"}], "data.jsonl:2: field 'prompt' is missing; the row has 'question'"),
        ("file", [MINE | {"answer": True}], "data.jsonl:1: field 'answer' is not a string but bool"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(source: str, rows: list[Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(source, path=jsonl(tmp_path / "data.jsonl", *rows))
    assert str(error.value).startswith(f"{tmp_path}/{says}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'{"prompt": "Q"}', "a.json: not a JSON array of rows but dict"),
        ("a.json", b'[{"prompt": "Q", "answer": "1"}, 3]', "a.json row 2: not a JSON object but int"),
        ("a.json", b'[{"prompt": "Q", "answer": "1"}, {"prompt": "Q"}]', "a.json row 2: field 'answer' is missing"),
        ("a.json", b"[", "a.json: not JSON: "),
        ("a.json", b"[]", "a.json: there are no rows in it"),
        ("a.jsonl", b'{"prompt": "\xff"}', "a.jsonl:1: not UTF-8: "),
        ("a.csv", b"prompt,answer\nQ,1\nQ\n", "a.csv row 2: field 'answer' is missing"),
        ("a.csv", b"prompt,answer\nQ,1,2\n", "a.csv row 1: more cells than the header has columns"),
        ("a.csv", b'prompt,answer\n"Q,1\n', "a.csv: not CSV (line 2): "),
        ("a.csv", b"prompt,answer\nQ,\xff\n", "a.csv: not CSV (line "),
        ("a.csv", b"prompt,answer\n", "a.csv: there are no rows in it"),
        ("a.parquet", b"PK", "a.parquet: not parquet: "),
        ("a.txt", b"Q", "a.txt: cannot read .txt; known: .jsonl, .json, .csv, .parquet"),
    ],
)
def test_a_malformed_file_is_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read("file", path=str(tmp_path / name))
    assert str(error.value).startswith(f"{tmp_path}/{says}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_file_reads_every_format_alike(suffix: str, tmp_path: Path) -> None:
    rows = [{"q": "What is\n1+1?", "a": 2, "s": "Count."}, {"q": "3, or four?", "a": 4, "s": 'Say "4".'}]
    path = tmp_path / f"mine.{suffix}"
    if suffix == "jsonl":
        jsonl(path, *rows)
    elif suffix == "json":
        path.write_text(json.dumps(rows), encoding="utf-8-sig")
    elif suffix == "csv":
        path.write_text('q,a,s\r\n"What is\n1+1?",2,Count.\r\n"3, or four?",4,"Say ""4""."\r\n', encoding="utf-8-sig")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read("file", path=str(path), prompt="q", answer="a", solution="s") == [
        Problem("file/mine/1", "What is\n1+1?", "2", meta={"solution": "Count."}),
        Problem("file/mine/2", "3, or four?", "4", meta={"solution": 'Say "4".'}),
    ]


def test_file_names_the_grader_of_all_rows_with_its_settings(tmp_path: Path) -> None:
    row = {"prompt": "How far?", "answer": "5 km", "kind": "easy", "n": 3}
    [problem] = read("file", path=jsonl(tmp_path / "a.jsonl", row), grader={"name": "quantity", "rel_tol": 0.01}, meta=["n"])
    assert problem == Problem("file/a/1", "How far?", "5 km", "quantity", {"n": 3, "rel_tol": 0.01})
    puzzle = {"quiz": "Who is what?", "solution_text_format": "(1) Zoey is a knave\n(2) Oliver is a knight"}
    fields = dict(prompt="quiz", answer="solution_text_format")
    [problem] = read("file", path=jsonl(tmp_path / "b.jsonl", puzzle), grader="roles", **fields)
    assert problem.grader == "roles"


def test_file_has_rows_of_several_graders(tmp_path: Path) -> None:
    calls = [{"name": "time", "arguments": {"zone": "CET"}}]
    rows = [
        {"prompt": "Which?", "answer": "b", "kind": "choice", "options": ["one", "two"]},
        {"prompt": "Call.", "answer": calls, "kind": "tool_calls", "options": None},
        {"prompt": "JSON?", "answer": '{"a": 1}', "kind": "json", "options": None},
    ]
    options: dict[str, Any] = {"grader": {"field": "kind"}, "meta": ["options"]}
    problems = read("file", path=jsonl(tmp_path / "mine.jsonl", *rows), **options)
    assert [(p.grader, p.answer, p.meta["options"]) for p in problems] == [
        ("choice", "b", ["one", "two"]),
        ("tool_calls", json.dumps(calls), None),
        ("json", '{"a": 1}', None),
    ]


@pytest.mark.parametrize(
    ("options", "row", "says"),
    [
        (
            {"grader": "quantity"},
            {"answer": "5 apples"},
            "field 'answer': gold answer unparsable: 5 apples (no unit is called apples)",
        ),
        (
            {"grader": "choice", "meta": ["options"]},
            {"options": ["a"]},
            "field 'answer': gold answer unparsable: 2 (it is no option)",
        ),
        ({"grader": "choice", "meta": ["options"]}, {}, "field 'options' is missing; the row has 'prompt', 'answer', 'proof'"),
        ({"grader": "json"}, {"answer": "{"}, "field 'answer': gold answer unparsable: { (Expecting property name"),
        ({"grader": "tool_calls"}, {"answer": []}, "field 'answer': gold answer unparsable: [] (0 calls)"),
        (
            {"grader": "tool_calls"},
            {"answer": "time()\nweather()"},
            "field 'answer': gold answer unparsable: time() weather() (",
        ),
        ({"grader": "roles"}, {}, "field 'answer': gold answer unparsable: 2"),
        (
            {"grader": {"name": "quantity", "rel_tol": -1}},
            {},
            "field 'answer': gold answer unparsable: 2 (`rel_tol` is below 0)",
        ),
        ({"grader": {"field": "kind"}}, {}, "field 'kind' is missing"),
    ],
)
def test_a_gold_answer_that_its_grader_cannot_read_is_refused(
    options: dict[str, Any], row: dict[str, Any], says: str, tmp_path: Path
) -> None:
    path = jsonl(tmp_path / "data.jsonl", MINE | row)
    with pytest.raises(UserError) as error:
        read("file", path=path, **options)
    assert str(error.value).startswith(f"{path}:1: {says}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("grader", "says"),
    [
        ("exakt", "there is no grader 'exakt'; did you mean 'exact'?"),
        ({}, "grader must have a name, or the field that holds it"),
        ({"name": "json", "field": "kind"}, "grader must have a name, or the field that holds it"),
    ],
)
def test_a_grader_that_does_not_exist_is_refused(grader: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read("file", path=jsonl(tmp_path / "data.jsonl", MINE), grader=grader)
    assert says in str(error.value)


def test_file_cut_in_two_gives_each_problem_to_one_side_whatever_its_place(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}+1?", "answer": str(i + 1)} for i in range(400)]
    forth, back = jsonl(tmp_path / "forth.jsonl", *rows), jsonl(tmp_path / "back.jsonl", *reversed(rows))
    train, test = ({p.prompt for p in read("file", path=forth, split=split)} for split in ("train", "test"))
    assert not train & test
    assert len(train | test) == 400
    assert 50 < len(test) < 110  # one in five
    assert {p.prompt for p in read("file", path=back, split="test")} == test


@pytest.mark.parametrize("source", ["gsm8k", "file"])
def test_limit_reads_the_first_rows_only(source: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "data.jsonl", *[GSM8K | MINE | {"answer": "#### 1"}] * 2, "broken")
    assert len(read(source, path=path, limit=2)) == 2
    with pytest.raises(UserError, match="limit must be at least 1, not 0"):
        read(source, path=path, limit=0)


@pytest.mark.parametrize(
    ("source", "split", "says"),
    [
        ("math500", "train", "'math500' has no split 'train'; known: test"),
        ("math", "test", "'math' has no split 'test'; known: train"),
        ("gsm8k", "trian", "'gsm8k' has no split 'trian'; did you mean 'train'?"),
        ("file", "dev", "'file' has no split 'dev'; known: test, train"),
    ],
)
def test_an_unknown_split_is_refused(source: str, split: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read(source, split=split, **({"path": "x.jsonl"} if source == "file" else {}))
    assert str(error.value) == says


def test_the_data_folder_is_looked_into_and_a_path_goes_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLCORE_DATA_DIR", str(tmp_path))
    jsonl(tmp_path / "gsm8k_test.jsonl", GSM8K)
    other = jsonl(tmp_path / "other.jsonl", GSM8K | {"answer": "#### 5"})
    assert [p.answer for p in read("gsm8k", split="test")] == ["1200"]
    assert [p.answer for p in read("gsm8k", split="test", path=other)] == ["5"]


def test_a_file_that_is_named_but_absent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLCORE_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"gsm8k_train\.jsonl: there is no such file; put it there, unset RLCORE_DATA_DIR"):
        read("gsm8k")
    with pytest.raises(UserError, match=r"nowhere\.jsonl: there is no such file"):
        read("gsm8k", path=str(tmp_path / "nowhere.jsonl"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under HF_HUB_OFFLINE=1, which the library reads when it is imported; with an empty cache."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("RLCORE_DATA_DIR", raising=False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "options", "names"),
    [
        ("gsm8k", {}, ["openai/gsm8k/main/train", "RLCORE_DATA_DIR", "gsm8k_train.jsonl", "`path`"]),
        ("math500", {}, ["HuggingFaceH4/MATH-500/test", "RLCORE_DATA_DIR", "math500_test.jsonl", "`path`"]),
        ("math", {}, ["EleutherAI/hendrycks_math/algebra/train", "RLCORE_DATA_DIR", "math_train.json", "`path`"]),
        ("hub", {"dataset": "no/such"}, ["no/such/train", "the source 'file'"]),
    ],
)
def test_without_network_the_error_says_what_to_do(source: str, options: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(UserError) as error:
        read(source, **options)
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


@pytest.mark.usefixtures("offline")
def test_hub_reads_what_the_datasets_library_can_load(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    jsonl(folder / "train.jsonl", {"q": "What is 1+1?", "a": 2}, {"q": "", "a": 4})
    options = {"dataset": str(folder), "prompt": "q", "answer": "a"}
    assert read("hub", **options, limit=1) == [Problem(f"{folder}/train/1", "What is 1+1?", "2")]
    with pytest.raises(UserError, match=r"mine/train row 2: field 'q' is empty"):
        read("hub", **options)
    with pytest.raises(UserError, match=r"cannot load .*mine/test from the Hugging Face hub: "):
        read("hub", **options, split="test")


def test_math_from_the_hub_joins_the_subjects_and_unboxes_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.delenv("RLCORE_DATA_DIR", raising=False)

    def load_dataset(name: str, config: str, split: str) -> list[dict[str, str]]:
        return [{"problem": f"{config}?", "solution": rf"It is $\boxed{{{len(config)}}}$."}] * 2

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    problems = read("math")
    assert len(problems) == len({p.id for p in problems}) == 14
    assert problems[2].prompt == "counting_and_probability?"
    assert problems[2].answer == "24"
    assert read("math", limit=3) == problems[:3]


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize(
    ("source", "split", "rows"),
    [("gsm8k", "train", 7473), ("gsm8k", "test", 1319), ("math500", "test", 500), ("math", "train", 7500)],
)
def test_real_files_are_read_whole(source: str, split: str, rows: int) -> None:
    problems = read(source, split=split)
    assert len({p.id for p in problems}) == len(problems) == rows
    ungradable = [p.id for p in problems if not p.answer]
    assert ungradable == (["math/train/2301", "math/train/2545"] if source == "math" else [])
    assert [p.id for p in problems if "unusable" in p.meta] == ungradable


@pytest.mark.usefixtures("real_data")
def test_real_gsm8k_answers_are_numbers_and_its_solutions_free_of_annotations() -> None:
    for problem in read("gsm8k", split="test"):
        float(problem.answer)
        assert "<<" not in problem.meta["solution"]
        assert "####" not in problem.meta["solution"]


def test_importing_the_data_package_imports_nothing_heavy() -> None:
    modules = "rlcore.data.mixture, rlcore.data.sources.hub, rlcore.data.sources.gym, rlcore.data.sources.gsm8k"
    code = f"import sys, {modules}; print([m for m in ('torch', 'datasets', 'reasoning_gym', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
