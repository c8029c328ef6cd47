"""What every test shares: one thread, no network, and tiny models made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlcore.batch import GradedBatch
    from rlcore.models import ModelSpec
    from trainers.learner import Learner

os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the network
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models; the cores are for the tests side by side
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised toy of 0.1 M parameters, with its tokenizer."""
    from rlcore.toy.model import build

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build("llama-100k", seed=0, folder=folder)
    return folder


@pytest.fixture(scope="session")
def tiny_spec(tiny: Path) -> ModelSpec:
    from rlcore.models import ModelSpec

    return ModelSpec(str(tiny), device="cpu")


@pytest.fixture(scope="session")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    from rlcore.models import load_tokenizer

    return load_tokenizer(str(tiny))


@pytest.fixture
def make_batch() -> Callable:
    return batch_of


def batch_of(rewards: Sequence[float], group: Sequence[int], lengths: Sequence[int], seed: int = 0) -> GradedBatch:
    """A GradedBatch from outcome rewards and lengths; tokens and log-probs are drawn with a seed."""
    import torch

    from rlcore.batch import GradedBatch, pad
    from rlcore.types import Sampling

    generator = torch.Generator().manual_seed(seed)
    present = pad([(1,) * n for n in lengths], torch.float32)
    shape = present.shape
    outcome = pad([(0.0,) * (n - 1) + (r,) for n, r in zip(lengths, rewards, strict=True)], torch.float32)
    return GradedBatch(
        prompt_ids=[(10 + i % 5, 11, 12) for i in range(len(lengths))],
        tokens=(torch.randint(3, 50, shape, generator=generator) * present.long()),
        present=present,
        loss_mask=present.clone(),
        rollout_logprobs=-torch.rand(shape, generator=generator) * present,
        versions=torch.zeros(shape, dtype=torch.long),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        sampling=Sampling(),
        group=torch.tensor(group),
        rewards={"answer": outcome},
        accuracy=torch.tensor(rewards).clamp(0, 1),
    )


def learner_of(model: Any, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Learner:
    """A learner of PPO's loss on short completions, in one process, unless the settings say other."""
    from rlcore.recipe.schema import Optimizer, Update
    from trainers.learner import Learner
    from trainers.losses.ppo_clip import ppo_clip
    from trainers.objective import Objective

    usual = dict(
        optimizer=Optimizer(),
        update=Update(),
        aggregate="token_mean",
        constant_length=16,
        dtype="float32",
        total_steps=1,
    )
    return Learner(model, tokenizer, Objective(ppo_clip), **usual | settings)


@contextmanager
def broken_off(after: int) -> Iterator[None]:
    """Within it a run breaks off, and has to, when it has written the checkpoint of step `after`."""
    from rlcore.run.folder import Interrupted, Run

    keep = Run.checkpoint

    def checkpoint(run: Run, step: int) -> None:
        keep(run, step)
        if step == after:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Run, "checkpoint", checkpoint)
        with pytest.raises(Interrupted):
            yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real GSM8K, MATH500, … files; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("RLCORE_DATA_DIR") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "gsm8k_train.jsonl").exists():
        pytest.skip(f"no data files in {folder}; set RLCORE_DATA_DIR to the folder that has gsm8k_train.jsonl")
    return folder
