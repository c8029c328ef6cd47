"""A compressed model as a plain checkpoint of its reconstructions, in float32: engines and trainers know no other."""

from __future__ import annotations

from pathlib import Path

import torch

from compress.compressed import load, verified
from rlcore import models


def written_out(folder: Path) -> str:
    """The checkpoint's folder; made once, and kept beside other models. Raises UserError where the files are not as they were
    written, and where a plain checkpoint cannot say what they are."""
    key = f"compressed-{verified(folder)['digest'][:24]}"  # of all that is said of the model and of its files
    return str(
        models.cached(key, lambda target: load(folder).export(target, models.load_tokenizer(str(folder)), torch.float32))
    )
