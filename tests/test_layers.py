"""The house's layers: each package imports only those before it, and the light doors stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent

TOP_OF_RLCORE = {"cli", "cluster", "evaluation", "jobs", "preview", "report", "repro", "toy.warmstart"}
LAYERS = ["rlcore", "compress", "rollout", "rewards", "trainers"]  # then the top of rlcore


def layer(module: str) -> int:
    parts = module.split(".")
    if parts[0] == "rlcore" and len(parts) > 1 and (parts[1] in TOP_OF_RLCORE or ".".join(parts[1:3]) in TOP_OF_RLCORE):
        return len(LAYERS)
    return LAYERS.index(parts[0])


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in found if name.split(".")[0] in LAYERS]


def modules() -> list[Path]:
    return sorted(p for package in LAYERS for p in (REPOSITORY / package).rglob("*.py"))


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_a_module_imports_only_its_own_layer_and_lower_ones(path: Path) -> None:
    own = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for name in imports(path):
        assert layer(name) <= layer(own), f"{own} imports {name}"


def test_importing_rlcore_does_not_import_torch() -> None:
    code = "import sys, rlcore; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_a_recipe_does_not_import_torch() -> None:
    code = "import sys; from rlcore.recipe.load import load; load(['quickstart']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_imports_nothing_heavy() -> None:
    """What keeps `rlcore --help` under half a second."""
    code = (
        "import sys; sys.argv = ['rlcore', '--help']\n"
        "from rlcore.cli.main import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
