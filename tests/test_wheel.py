"""A wheel installed somewhere else finds its recipes and its report's page, and launches by name."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_a_wheel_built_and_installed_elsewhere_runs_the_quickstarts_dry_run(tmp_path: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path, REPOSITORY], check=True)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("recipes/quickstart.yaml", "recipes/toy/chain.yaml", "rlcore/py.typed", "rlcore/report/template.html"):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]
    site = tmp_path / "site"
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True)
    script = f"import sys; sys.path.insert(0, {str(site)!r}); from rlcore.cli.main import main; main()"
    command = [sys.executable, "-c", script, "train", "quickstart", "--dry-run", "--offline"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "# recipes/quickstart.yaml:" in done.stdout
    assert "token ids: [" in done.stdout
    assert "memory of this process, at worst:" in done.stdout
    origin = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); import rlcore; print(rlcore.__file__)"]
    assert str(site) in subprocess.run(origin, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
