"""Which problems a reward model was trained on, as digests beside its weights: nobody shall measure it on them unawares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from rlcore.data.overlap import normalise

FILE = "trained_on.json"


def digest(problem: str) -> str:
    """The same for texts that `normalise` makes equal."""
    return hashlib.blake2b(normalise(problem).encode(), digest_size=8).hexdigest()


def keep(folder: Path, problems: Iterable[str]) -> None:
    (folder / FILE).write_text(json.dumps(sorted(set(map(digest, problems)))) + "\n", encoding="utf-8")


def trained_on(folder: Path) -> frozenset[str]:
    """Digests; none for a model that does not say."""
    return frozenset(json.loads((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).is_file() else ())
