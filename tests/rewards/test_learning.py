"""Rewards that cross the border to TRL still teach: our answer reward in TRL's GRPOTrainer, a TRL callable in our loop.

Both train the quickstart's toy, which answers a quarter of the problems, for a few of the quickstart's steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rewards.as_trl import as_trl
from rewards.verifiable.answer import Answer
from rlcore import jobs
from rlcore.data.sources.chain import chain
from rlcore.models import ModelSpec, load_tokenizer
from rlcore.recipe.load import load
from rlcore.toy import warmstart


def last_number_is_right(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """TRL's form: lists in, floats out."""
    return [float(text.strip().endswith(f"#### {right}")) for text, right in zip(completions, answer, strict=True)]


@pytest.mark.slow
def test_our_answer_reward_trains_the_toy_in_trl(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    location = warmstart.resolve("toy:chain", 0)
    tokenizer, reward = load_tokenizer(location), Answer()
    problems = [{"prompt": f"{p.prompt}\n", "answer": p.answer} for p in chain(count=2000)]
    trainer = GRPOTrainer(
        model=ModelSpec(location).load(),
        processing_class=tokenizer,
        reward_funcs=[as_trl(reward, tokenizer=tokenizer)],
        train_dataset=Dataset.from_list(problems),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=256,
            num_generations=8,
            max_completion_length=64,
            max_steps=20,
            learning_rate=1.5e-4,
            lr_scheduler_type="constant",
            loss_type="dr_grpo",
            scale_rewards="none",
            beta=0.0,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            seed=0,
        ),
    )
    trainer.train()
    reward.close()
    curve = [row["rewards/answer/mean"] for row in trainer.state.log_history if "rewards/answer/mean" in row]
    assert len(curve) == 20
    assert curve[0] < 0.4
    assert sum(curve[-3:]) / 3 > curve[0] + 0.3


@pytest.mark.slow
def test_a_trl_callable_trains_the_toy_here(tmp_path: Path) -> None:
    """Our own answer component is there to measure, with weight 0."""
    rewards = f"rewards=[{{name: answer, weight: 0}}, {{name: '{__name__}:last_number_is_right'}}]"
    jobs.run(load(["quickstart", f"output={tmp_path / 'run'}", "threads=1", "steps=20", "eval=null", rewards]), False)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    accuracy = [row["accuracy"] for row in rows if "accuracy" in row]
    assert len(accuracy) == 20
    assert accuracy[0] < 0.4
    assert sum(accuracy[-3:]) / 3 > accuracy[0] + 0.3
