"""Rows: what stands in a data file or hub dataset, before a source makes `Problem`s of it.

A row knows where it came from, so that whatever is wrong with it is reported with file, line and field. Used by
`rlcore.data.sources` and `rlcore.data.formats`; knows nothing of problems.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlcore.errors import UserError

T = TypeVar("T")
KINDS = {str: "a string", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True, slots=True)
class Row:
    where: str
    number: int  # from 1; in a jsonl file, the line
    fields: Mapping[str, Any]

    def value(self, name: str) -> Any:
        if name not in self.fields:
            raise self.error(f"field {name!r} is missing; the row has {', '.join(map(repr, self.fields)) or 'no fields'}")
        return self.fields[name]

    def of(self, name: str, kind: type[T]) -> T:
        """A value that is of this kind, one of `KINDS`, and of no other: true is not an integer."""
        value = self.value(name)
        if type(value) is not kind:
            raise self.error(f"field {name!r} is not {KINDS[kind]} but {type(value).__name__}")
        return value

    def string(self, name: str) -> str:
        return self.of(name, str).strip()

    def text(self, name: str) -> str:
        """A string with something in it, without the white space around it."""
        text = self.string(name)
        if not text:
            raise self.error(f"field {name!r} is empty")
        return text

    def answer(self, name: str) -> str:
        """A text, or a number as text: data sets with integer answers often hold them as numbers."""
        value = self.value(name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return str(value) if is_number else self.text(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, at least one."""
        items = self._items(name)
        if not items.fields:
            raise self.error(f"field {name!r} is empty")
        return tuple(items.text(item) for item in items.fields)

    def integers(self, name: str) -> tuple[int, ...]:
        items = self._items(name)
        return tuple(items.of(item, int) for item in items.fields)

    def object(self, name: str) -> Row:
        """An object within the row, as a row whose errors name the place."""
        return Row(f"{self.where}: {name}", self.number, self.of(name, dict))

    def objects(self, name: str) -> tuple[Row, ...]:
        items = self._items(name)
        return tuple(items.object(item) for item in items.fields)

    def without(self, *names: str) -> dict[str, Any]:
        """The other fields."""
        return {name: value for name, value in self.fields.items() if name not in names}

    def error(self, what: str) -> UserError:
        return UserError(f"{self.where}: {what}")

    def _items(self, name: str) -> Row:
        """The items of a list, each as a field that is called by its place in the list."""
        return Row(self.where, self.number, {f"{name}[{i}]": item for i, item in enumerate(self.of(name, list))})


def rows_of_file(path: Path, limit: int | None = None) -> list[Row]:
    """The rows of a jsonl, json, csv or parquet file, in order. Raises UserError for a file without rows."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; known: {', '.join(readers)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return _first(readers[path.suffix](path), limit, str(path))


def rows_of_hub(dataset: str, config: str | None, split: str, limit: int | None = None, *, remedy: str) -> list[Row]:
    """The rows of a hub dataset (or of one in the local cache). `remedy` ends the message when it cannot be had."""
    import datasets

    where = "/".join(filter(None, (dataset, config, split)))
    try:
        table = datasets.load_dataset(dataset, config, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        why = str(error).strip().partition("\n")[0]
        raise UserError(f"cannot load {where} from the Hugging Face hub: {why}; {remedy}") from error
    return _first((Row(f"{where} row {n}", n, fields) for n, fields in enumerate(table, 1)), limit, where)


def _first(rows: Iterable[Row], limit: int | None, where: str) -> list[Row]:
    if limit is not None and limit < 1:
        raise UserError(f"{where}: limit must be at least 1, not {limit}")
    taken = list(itertools.islice(rows, limit))
    if not taken:
        raise UserError(f"{where}: there are no rows in it")
    return taken


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _row(f"{path}:{number}", number, _parsed(f"{path}:{number}", line))


def _json(path: Path) -> Iterator[Row]:
    array = _parsed(str(path), path.read_bytes())
    if not isinstance(array, list):
        raise UserError(f"{path}: not a JSON array of rows but {type(array).__name__}")
    for number, value in enumerate(array, 1):
        yield _row(f"{path} row {number}", number, value)


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, restkey="", strict=True)
        try:
            for number, cells in enumerate(reader, 1):
                row = Row(f"{path} row {number}", number, {name: cell for name, cell in cells.items() if cell is not None})
                if "" in cells:
                    raise row.error("more cells than the header has columns")
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not CSV (line {reader.reader.line_num}): {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not parquet: {error}") from error
    for number, fields in enumerate(table.to_pylist(), 1):
        yield Row(f"{path} row {number}", number, fields)


def _parsed(where: str, text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason} at byte {error.start}") from error


def _row(where: str, number: int, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object but {type(value).__name__}")
    return Row(where, number, value)
