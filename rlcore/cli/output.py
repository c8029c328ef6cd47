"""`--json FILE`, the same for every verb."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcore.errors import UserError
from rlcore.run.folder import write_aside


def check_json(file: str) -> None:
    """Refuse, before the work, a place where the result could not be written."""
    folder = Path(file).parent
    if file not in ("", "-") and (not folder.is_dir() or Path(file).is_dir() or not os.access(folder, os.W_OK)):
        raise UserError(f"--json {file}: cannot write there; its folder must exist and be writable")


def write_json(result: Mapping[str, Any], file: str) -> None:
    """Nothing for no file, standard output for `-`."""
    text = json.dumps(dict(result), indent=2)
    if file == "-":
        print(text)
    elif file:
        write_aside(Path(file), text + "\n")
