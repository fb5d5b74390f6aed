"""Reviews from files and folders as people have them, row by row; what can't be read is refused with its row.

Accepted are CSV in the Yelp Polarity form (no header, "1" negative or "2" positive, then the text); CSV, TSV, JSON,
JSONL and Parquet with a column of texts and one of labels; any of the text files compressed (.gz); and a folder with
the subfolders neg and pos of text files. Rows are counted from 1, without the header.
"""

import contextlib
import csv
import gzip
import itertools
import json
import logging
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from config import InputError

log = logging.getLogger(__name__)

LABELS = ["negative", "positive"]
# Names by which columns are recognised, in this order and in any case.
TEXT_NAMES = ("text", "review", "review_text", "content", "sentence", "comment")
LABEL_NAMES = ("label", "sentiment", "polarity", "target")
# What labels stand for, in any case, where nothing else is said.
LABEL_WORDS = {"0": 0, "neg": 0, "negative": 0, "false": 0, "1": 1, "pos": 1, "positive": 1, "true": 1}
# The column of labels of a file in the Yelp Polarity form, which has no header.
_YELP_LABEL = "label of Yelp Polarity"


@dataclass(frozen=True)
class Columns:
    """Which columns of a file hold the reviews.

    Args:
        text: name of the column of texts; None recognises `TEXT_NAMES`.
        label: name of the column of labels; None recognises `LABEL_NAMES`.
        labels: what each label stands for: 0, 1, or None for reviews to leave out; empty recognises `LABEL_WORDS`.
    """

    text: str | None = None
    label: str | None = None
    labels: dict[str, int | None] | None = None


def read_reviews(path: str | Path, columns: Columns) -> Iterator[tuple[int, str, int]]:
    """Row, text and label (0 negative, 1 positive) of each review of a file or folder.

    Raises:
        InputError: there is no such file, it can't be read, has other columns, or a label that is not accepted.
    """
    names, records = _peek(path)
    text_name, label_name = _recognise(path, names, columns)
    if label_name is None:
        raise InputError(
            f"{path}: no column of labels among {shorten(names)}; training and evaluation need one, called label or "
            "named by data.label_column"
        )
    classes = _classes(label_name, columns)
    for row, record in enumerate(records, start=1):
        where = f"{path}, row {row}"
        label = _read_label(record.get(label_name), classes, where)
        if label is not None:
            yield row, check_text(record.get(text_name), where), label


def read_texts(path: str | Path, columns: Columns) -> Iterator[str]:
    """The texts of a file (`-`: CSV on standard input), one after the other; labels are not needed.

    Raises:
        InputError: as `read_reviews`; an empty text is a text.
    """
    names, records = _peek(path)
    text_name, _ = _recognise(path, names, columns)
    for row, record in enumerate(records, start=1):
        yield check_text(record.get(text_name), f"{path}, row {row}")


def count_texts(path: str | Path, columns: Columns) -> tuple[int, Columns]:
    """How many texts a file holds, all of them checked, and its columns as recognised; see `read_texts`."""
    names, records = _peek(path)
    text_name, label_name = _recognise(path, names, columns)
    row = 0
    for row, record in enumerate(records, start=1):
        check_text(record.get(text_name), f"{path}, row {row}")
    return row, Columns(text_name, label_name, columns.labels)


def check_text(value: Any, where: str) -> str:
    """The text itself.

    Raises:
        InputError: it is no string, or no valid Unicode: a byte that is not UTF-8 (read as half of a surrogate pair),
            or the half of a pair that JSON and Python can hold but no file.
    """
    if not isinstance(value, str):
        raise InputError(f"{where}: the text is {shorten(value)}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        byte = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"the lone surrogate U+{code:04X}"
        raise InputError(
            f"{where}: {byte} at character {error.start + 1} is not UTF-8; save the text as UTF-8, or remove it"
        ) from None
    return value


def file_kind(path: Path) -> str:
    """The kind of a file, such as `.csv`, by its name's ending: in any case, and without `.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def folder_files(path: Path) -> list[tuple[str, Path]]:
    """The text files of a folder's subfolders neg and pos (in any case), each after its subfolder's name."""
    folders = {folder.name.lower(): folder for folder in sorted(path.iterdir()) if folder.is_dir()}
    return [
        (name, file)
        for name in ("neg", "pos")
        if name in folders
        for file in sorted(folders[name].iterdir())
        if file.suffix.lower() == ".txt"
    ]


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


# ---------------------------------------------------------------- columns and labels


def _peek(path: str | Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The names of a file's columns, and all its rows by name."""
    records = _read_records(Path(path))
    first = next(records, None)
    if first is None:
        raise InputError(f"{path}: no rows; expected reviews")
    return list(first), itertools.chain([first], records)


def _recognise(path: str | Path, names: list[str], columns: Columns) -> tuple[str, str | None]:
    """The names of the columns of texts and of labels (None where there is none)."""
    text = _column(path, names, "data.text_column", columns.text, TEXT_NAMES)
    label = _column(path, names, "data.label_column", columns.label, (*LABEL_NAMES, _YELP_LABEL.lower()))
    if text is None:
        raise InputError(
            f"{path}: the first row has the columns {shorten(names)}; expected a column of texts, called text or named "
            'by data.text_column, or the Yelp Polarity form: "1" (negative) or "2" (positive), then the text'
        )
    is_plain = text in ("text", columns.text) and label in ("label", _YELP_LABEL, columns.label, None)
    if not is_plain:
        log.info("%s: texts are in column %r, labels in %r", path, text, label)
    return text, label


def _column(path: str | Path, names: list[str], key: str, name: str | None, candidates: Sequence[str]) -> str | None:
    """The column of that name, or else the first that a candidate names in any case."""
    if name is not None:
        if name not in names:
            raise InputError(f"{path}: {key} is {name!r}; there are the columns {shorten(names)}")
        return name
    for candidate in candidates:
        same = [column for column in names if column.strip().lower() == candidate]
        if len(same) > 1:
            raise InputError(f"{path}: the columns {shorten(same)} differ in case only; name one by {key}")
        if same:
            return same[0]
    return None


def _classes(label_name: str, columns: Columns) -> dict[str, int | None]:
    """What each label stands for, by its `_word`."""
    if columns.labels:
        classes = {_word(label): value for label, value in columns.labels.items()}
        if len(classes) < len(columns.labels):
            raise InputError(
                f"data.labels: {shorten(list(columns.labels))} has a label twice; case makes no difference"
            )
        return classes
    return {"1": 0, "2": 1} if label_name == _YELP_LABEL else LABEL_WORDS


def _read_label(value: Any, classes: dict[str, int | None], where: str) -> int | None:
    """0, 1, or None for a review to leave out; `InputError` for a label that stands for nothing."""
    word = _word(value)
    if word not in classes:
        accepted = [
            f"{', '.join(label for label, c in classes.items() if c == number)} ({meaning})"
            for number, meaning in ((0, LABELS[0]), (1, LABELS[1]), (None, "left out"))
            if number in classes.values()
        ]
        raise InputError(f"{where}: label {value!r}; accepted are {'; '.join(accepted)}; data.labels gives others")
    return classes[word]


def _word(label: Any) -> str:
    """A label in lower case; by the kind of file it is text, an integer, a float or a boolean."""
    return str(label).strip().lower().removesuffix(".0")


# ---------------------------------------------------------------- kinds of files


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file or a folder, by the names of the columns."""
    if path.is_dir():
        return _folder_records(path)
    if str(path) == "-":
        return _csv_records(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    kind = file_kind(path)
    if kind not in _KINDS or (_is_compressed(path) and kind == ".parquet"):
        raise InputError(
            f"{path}: unknown kind {path.suffix!r}; accepted are {', '.join(_KINDS)} (text files also .gz) "
            "and folders with neg and pos"
        )
    return _KINDS[kind](path)


def _csv_records(path: Path, delimiter: str = ",") -> Iterator[dict[str, Any]]:
    """Rows of a CSV file with a header, or without one in the Yelp Polarity form."""
    names, row, is_blank = None, 0, False
    # The module's own limit is 131,072 characters.
    csv.field_size_limit(2**31 - 1)
    try:
        for fields in csv.reader(_lines(path), delimiter=delimiter, strict=True):
            if not fields:
                # In a file of one column it could be an empty text, or none at all.
                is_blank = names is not None and len(names) == 1
                continue
            if names is None:
                names = _header(path, fields)
                if names is fields:
                    continue
            row += 1
            if is_blank:
                raise InputError(
                    f'{path}, row {row}: the line is blank; write "" for an empty text, or remove the line'
                )
            if len(fields) != len(names):
                raise InputError(
                    f"{path}, row {row}: {len(fields)} columns, {shorten(fields)}; expected {len(names)} "
                    "(a text that contains commas or quotes must be quoted)"
                )
            yield dict(zip(names, fields, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, row {row + 1}: {error}") from None


def _header(path: Path, fields: list[str]) -> list[str]:
    """The names of the columns: the first row itself, unless the file is in the Yelp Polarity form."""
    if fields[0] in ("1", "2"):
        return [_YELP_LABEL, "text"]
    _refuse_duplicates(path, fields)
    return fields


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON list of objects, or of JSON lines."""
    first = next((line for line in _lines(path) if line.strip()), "")
    if not first.lstrip().startswith("["):
        yield from _jsonl_records(path)
        return
    records = _load_json(path, "".join(_lines(path)), f"{path}: not readable as JSON")
    yield from (_check_object(path, row, record) for row, record in enumerate(records, start=1))


def _jsonl_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file with a JSON object a line."""
    for row, line in enumerate((line for line in _lines(path) if line.strip()), start=1):
        yield _check_object(path, row, _load_json(path, line, f"{path}, row {row}: not a JSON object on one line"))


def _load_json(path: Path, text: str, failure: str) -> Any:
    """The content of a JSON text without two equal keys in an object."""

    def to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_duplicates(path, [name for name, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=to_object)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{failure}: {error}") from None


def _check_object(path: Path, row: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise InputError(f"{path}, row {row}: found {shorten(record)}; expected an object with text and label")
    return record


def _parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file; numbers that `datasets` wrote as class labels become the classes' names."""
    try:
        file = pq.ParquetFile(path)
        _refuse_duplicates(path, file.schema_arrow.names)
        classes = _class_names(file.schema_arrow)
        for batch in file.iter_batches():
            columns = {name: _values(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            for name in classes.keys() & columns.keys():
                columns[name] = [_class_name(value, classes[name]) for value in columns[name]]
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {' '.join(str(error).split())}") from None


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that `datasets` wrote as `ClassLabel`."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {}).items()
    classes = {
        name: feature["names"]
        for name, feature in features
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
    # Yelp Polarity on the hub: 0 is named "1", for one star; the numbers are what they look like.
    return {name: names for name, names in classes.items() if names != ["1", "2"]}


def _class_name(value: Any, names: list[str]) -> Any:
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value


def _values(column: pa.Array) -> list:
    """The values of a column; bytes of a text that are not UTF-8 become halves of surrogate pairs, as in `_lines`."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _folder_records(path: Path) -> Iterator[dict[str, Any]]:
    """A text file a review, in the subfolders neg and pos."""
    files = folder_files(path)
    if not files:
        raise InputError(f"{path}: no text files (*.txt) in its subfolders neg and pos")
    for name, file in files:
        text = check_text("".join(_lines(file)), str(file))
        if not text.strip():
            raise InputError(f"{file}: the text is empty; remove the file")
        yield {"text": text, "label": name}


_KINDS = {
    ".csv": _csv_records,
    ".tsv": partial(_csv_records, delimiter="\t"),
    ".json": _json_records,
    ".jsonl": _jsonl_records,
    ".parquet": _parquet_records,
}


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, plain or compressed, or of standard input, each with its end.

    Bytes that are not UTF-8 become halves of surrogate pairs: `check_text` refuses them where they matter.
    """
    with _open(path) as file:
        try:
            for number, line in enumerate(file):
                yield line.decode("utf-8" if number else "utf-8-sig", "surrogateescape")
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: can't be read ({' '.join(str(error).split())})") from None


def _open(path: Path) -> contextlib.AbstractContextManager:
    if str(path) == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    return gzip.open(path) if _is_compressed(path) else path.open("rb")


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    """Refuse (`InputError`) two columns of one name: one of them would be read in silence."""
    for name in names:
        if name and list(names).count(name) > 1:
            raise InputError(f"{path}: two columns are called {name!r}; rename or remove one")
