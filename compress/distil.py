"""Gradient training of a few parameters of a compressed model, towards what the dense one says.

    L = mean over tokens of KL( p_dense(· | x_<t) ‖ p(· | x_<t) )

on the calibration's rows, in shuffled order; AdamW with a linear warm-up over a tenth of the steps and a cosine to 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import PreTrainedModel

from compress.calibration import Calibration
from rlcore.protocols import Progress, no_progress


def distil(
    student: PreTrainedModel,
    calibration: Calibration,
    parameters: Sequence[nn.Parameter],
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    progress: Progress = no_progress,
) -> None:
    """Train these parameters, and nothing else of the student, by as many steps of `calibration.rows_at_once` rows. `progress`
    hears of each step."""
    teacher = calibration.dense()
    for parameter in student.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    order = torch.Generator().manual_seed(seed)
    batches: list[Tensor] = []
    for _ in range(steps):
        if not batches:
            shuffled = calibration.rows[torch.randperm(len(calibration.rows), generator=order)]
            batches = list(shuffled.split(calibration.rows_at_once))
        rows = batches.pop().to(student.device)
        with torch.no_grad():
            wanted = teacher(rows, use_cache=False).logits.log_softmax(-1)
        found = student(rows, use_cache=False).logits.log_softmax(-1)
        loss = kl_div(found, wanted, log_target=True, reduction="sum") / rows.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(1)
    for parameter in student.parameters():
        parameter.requires_grad_(True)


def _rate(step: int, steps: int) -> float:
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
