"""`--json FILE`, the same for every verb."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.run.folder import write_aside


def write_json(result: Mapping[str, Any], file: str) -> None:
    """Nothing for no file, standard output for `-`."""
    text = json.dumps(dict(result), indent=2)
    if file == "-":
        print(text)
    elif file:
        write_aside(Path(file), text + "\n")
