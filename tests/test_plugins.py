"""Plugins by name: what counts as one, what is refused, and that two files cannot hide each other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from rlcore import plugins
from rlcore.errors import UserError
from rlcore.plugins import with_options
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PACKAGES = [
    "trainers.advantages",
    "trainers.losses",
    "rollout.engines",
    "rollout.drafters",
    "rollout.prefill.patterns",
    "rewards",
    "rlcore.data.sources",
    "compress",
]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_in_a_folder_of_plugins_is_one(package: str) -> None:
    """So that the list that an unknown name is answered with has nothing in it that cannot be used."""
    found = plugins.names(package)
    assert found
    for name in found:
        assert callable(plugins.find(package, name))


@pytest.mark.parametrize(
    ("row", "package"),
    [
        ("rewards", "rewards"),
        ("advantages", "trainers.advantages"),
        ("losses", "trainers.losses"),
        ("preference losses", "trainers.preference.losses"),
        ("engines", "rollout.engines"),
        ("drafters", "rollout.drafters"),
        ("prefill", "rollout.prefill.patterns"),
    ],
)
def test_the_readme_leaves_none_out_of_what_there_is(row: str, package: str) -> None:
    [told] = re.findall(rf"^\| {row} \| (.*) \|$", README, re.MULTILINE)
    assert plugins.names(package).keys() <= set(re.findall(r"`(\w+)`", told))


def test_helpers_beside_the_folders_of_rewards_are_no_plugins() -> None:
    assert plugins.names("rewards")["answer"] == "rewards.verifiable.answer"
    for helper in ("compose", "as_trl", "from_trl"):
        with pytest.raises(UserError, match=f"there is no {helper!r} in rewards; "):
            plugins.find("rewards", helper)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`shelf.one.same`, `shelf.two.other` and `shelf.two.hollow`, which holds nothing of its name."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"shelf_{tmp_path.name}"
    for file in ("one/same", "two/other", "two/hollow"):
        path = tmp_path / name / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if "hollow" in file else f"def {path.stem}(): ...\n")
        (path.parent / "__init__.py").touch()
    (tmp_path / name / "__init__.py").touch()
    return name


def test_two_files_of_one_name_are_refused(package: str, tmp_path: Path) -> None:
    assert set(plugins.names(package)) == {"same", "other", "hollow"}
    (tmp_path / package / "two/same.py").write_text("def same(): ...\n")
    with pytest.raises(ValueError, match=r"\.one\.same and .*\.two\.same are both the plugin 'same': rename one"):
        plugins.names(package)


def test_a_file_without_what_its_name_promises_is_named(package: str) -> None:
    with pytest.raises(UserError, match=f"{package}.two.hollow is no plugin: it holds nothing called 'hollow'"):
        plugins.find(package, "hollow")


def test_options_are_read_as_they_are_annotated() -> None:
    """YAML 1.1 has `3e-4` for a string; what is out of bounds or no number is refused by name, value and reason."""

    def target(*, rate: Annotated[float, Field(gt=0)], free=None) -> None: ...  # type: ignore[no-untyped-def]

    parameters = list(inspect.signature(target).parameters.values())
    bound = with_options("target", target, {"rate": "3e-4", "free": "3e-4"}, parameters)
    assert bound.keywords == {"rate": 3e-4, "free": "3e-4"}  # type: ignore[attr-defined]
    for value, reason in ((0, "greater than 0"), ("fast", "valid number"), (None, "valid number")):
        with pytest.raises(UserError, match=f"'target': rate cannot be {value!r}: input should be .*{reason}"):
            with_options("target", target, {"rate": value}, parameters)
