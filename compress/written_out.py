"""A compressed model as a plain checkpoint of its reconstructions, in float32: engines and trainers know no other."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.compressed import load, verified
from rlcore import models


def written_out(folder: Path) -> str:
    """The checkpoint's folder; made once, and kept beside other models. Raises UserError where the files are not as they were
    written."""
    digest = verified(folder)["sha256"]
    key = "-".join(found[:12] for found in digest.values())
    return str(
        models.cached(
            f"compressed-{key}", lambda target: load(folder).export(target, models.load_tokenizer(str(folder)), torch.float32)
        )
    )
