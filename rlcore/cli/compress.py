"""`rlcore compress`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlcore.cli.job import done
from rlcore.cli.output import check_json, write_json
from rlcore.errors import UserError
from rlcore.recipe.schema import Compress, Sensitivity
from rlcore.report.headline import number

COLUMNS = {
    "bits_per_weight": "bits a weight",
    "bits_per_parameter": "bits a parameter",
    "perplexity": "perplexity",
    "solution": "log-prob of a solution token",
    "divergence": "KL to the dense model",
    "accuracy": "accuracy",
    "fit_s": "seconds",
}


def run(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(Compress, arguments, resume, json_file)
    for name, label in COLUMNS.items():
        if summary.get(name) is not None:
            print(f"  {label:<28} {number(summary[name])}", file=sys.stderr)
    print(f"done: {loaded.recipe.folder}/model, {loaded.recipe.folder}/report.html", file=sys.stderr)
    write_json(summary, json_file)


def sensitivity(arguments: Sequence[str], resume: bool, json_file: str) -> None:
    loaded, summary = done(Sensitivity, arguments, resume, json_file)
    from rlcore.report.sensitivity import PICTURE, read, told

    folder = Path(loaded.recipe.folder)
    measurements = read(folder)
    print(f"KL to the dense model by the relative norm of what changes its {summary['perturbed']}:", file=sys.stderr)
    for line in told(measurements):
        print(f"  {line}", file=sys.stderr)
    print(f"done: {folder}/{PICTURE}, {folder}/report.html", file=sys.stderr)
    write_json({**summary, "measurements": measurements}, json_file)


def report(runs: Sequence[str], plot: str, json_file: str) -> None:
    check_json(json_file)
    found = {folder: _summary(Path(folder)) for folder in runs}
    shown = [name for name in COLUMNS if any(summary.get(name) is not None for summary in found.values())]
    from rlcore.repro.tables import table

    rows = ([_label(folder), *(number(summary.get(name)) for name in shown)] for folder, summary in found.items())
    for line in table(["run", *(COLUMNS[name] for name in shown)], rows):
        print(line)
    if plot:
        from rlcore.report.compression import draw

        draw({_label(folder): Path(folder) for folder in runs}, Path(plot))
        print(plot, file=sys.stderr)
    write_json({_label(folder): summary for folder, summary in found.items()}, json_file)


def export(model: str, folder: str, dtype: str, compressed_tensors: bool, json_file: str) -> None:
    check_json(json_file)
    if dtype not in ("bfloat16", "float32"):
        raise UserError(f"--dtype {dtype!r} is neither bfloat16 nor float32")
    if Path(folder).exists():
        raise UserError(f"{folder} exists already: choose another folder")
    import torch

    from compress import compressed_tensors as format_of_vllm
    from compress.compressed import CompressedModel
    from compress.compressed import load as load_compressed
    from rlcore import models

    place = Path(models.locate(model))
    compressed = load_compressed(place)
    write = format_of_vllm.export if compressed_tensors else CompressedModel.export
    write(compressed, Path(folder), models.load_tokenizer(str(place)), getattr(torch, dtype))
    print(folder)
    write_json({"folder": folder, "dtype": dtype}, json_file)


def _summary(folder: Path) -> Mapping[str, Any]:
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} is no finished run: it has no summary.json")
    summary: Mapping[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    if "bits_per_weight" not in summary:
        raise UserError(f"{folder} is no run of job: compress: rlcore report {folder}")
    return summary


def _label(folder: str) -> str:
    return Path(folder).name
