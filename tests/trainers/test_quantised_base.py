"""The model with its matrices rounded, which training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress import compressed
from rlcore.errors import UserError
from rlcore.models import ModelSpec
from rlcore.recipe.load import load
from rlcore.run.folder import claim
from trainers.build import build_policy
from trainers.quantised_base import start_of


@pytest.fixture
def start(tiny: Path, tmp_path: Path) -> Callable[..., str]:
    def made(*overrides: str) -> str:
        return start_of(load(["quickstart", f"output={tmp_path / 'run'}", *overrides]).recipe, str(tiny))

    return made


def test_without_one_training_starts_from_the_model(start: Callable, tiny: Path) -> None:
    assert start() == str(tiny)


@pytest.mark.parametrize("name", ["rtn", "nf4", "clipped", "cube_root"])
def test_its_matrices_are_rounded_and_nothing_else(start: Callable, tiny: Path, name: str) -> None:
    """What is computed with is what the codes say, to the bit."""
    location = Path(start(f"quantised_base={{name: {name}, run: 32}}"))
    before, after = load_file(tiny / "model.safetensors"), load_file(location / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    stored = compressed.load(location.parent / "compressed")
    assert set(stored.held) == changed
    assert all(torch.equal(stored.model.get_parameter(name), tensor) for name, tensor in after.items())
    assert stored.size().per_weight == 4.5
    assert stored.history[0]["method"] == name


def test_keep_dense_leaves_matrices_as_they_are(start: Callable, tiny: Path) -> None:
    location = Path(start("quantised_base={name: rtn, run: 32, keep_dense: [lm_head, self_attn]}"))
    assert set(compressed.load_held(location.parent / "compressed")) == {
        f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (0, 1) for part in ("gate", "up", "down")
    }


def test_a_run_that_holds_nothing_begins_with_a_base_of_its_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not with that of a run which was killed, whose recipe may have been another; one that is resumed goes on with its."""
    monkeypatch.chdir(tmp_path)
    stale, held = Path("run/base/model"), Path("run/checkpoints/step-1")
    loaded = load(["quickstart", "output=run"])
    for begun in (False, True):
        stale.mkdir(parents=True)
        if begun:
            held.mkdir(parents=True)
            (held / "state.json").write_text("{}")
        with claim(loaded, resume=begun):
            assert stale.exists() == begun
    held.joinpath("state.json").unlink()
    held.rmdir()
    Path("run/summary.json").write_text("{}")  # one that ended, of a job without checkpoints, keeps what it was made from
    with claim(loaded, resume=True):
        assert stale.exists()


def test_it_is_made_once_and_whole(start: Callable, tmp_path: Path) -> None:
    (tmp_path / "run/.base/model").mkdir(parents=True)  # of a process that was killed
    file = Path(start("quantised_base={name: rtn, run: 32}")) / "model.safetensors"
    made = file.stat().st_mtime_ns
    assert start("quantised_base={name: rtn, run: 32}") == str(file.parent)
    assert file.stat().st_mtime_ns == made
    assert not (tmp_path / "run/.base").exists()


@pytest.mark.parametrize("how", ["lora={rank: 2}", "lora=null"])
def test_other_ways_to_train_start_from_it(start: Callable, how: str, tmp_path: Path) -> None:
    given = ["quantised_base={name: rtn, run: 32}", how]
    location = start(*given)
    policy = build_policy(load(["quickstart", "device=cpu", *given]).recipe, location)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(policy(ids).logits, ModelSpec(location, device="cpu").load()(ids).logits)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rtm", "there is no 'rtm' in compress/quantise; did you mean 'rtn'"),
        ("{name: rtn, bitts: 4}", "'rtn' has no option 'bitts'"),
        ("{name: rtn, run: 48}", r"q_proj\.weight: rows of 64 weights are no multiple of runs of 48"),
        ("{name: rtn, activations: 8}", "rounds activations, which no engine does"),
        ("{name: 'compress.prune.wanda:Wanda', share: 0.5}", "is no quantiser that rounds a matrix by itself"),
        ("{name: rtn, run: 32, keep_dense: [mlpp]}", "keep_dense names 'mlpp', and no matrix is called that"),
    ],
)
def test_what_cannot_be_a_base_is_refused(start: Callable, tmp_path: Path, asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(f"quantised_base={asked}")
    assert not (tmp_path / "run/base").exists()
