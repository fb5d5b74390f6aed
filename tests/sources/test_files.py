"""sources/files.py: every form in which reviews come, what is recognised, and what is refused with its row."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from config import InputError
from helpers import write_file
from sources import files
from sources.files import Columns, check_text, count_texts, folder_files, read_reviews, read_texts

COLUMNS = Columns()


def reviews_of(path: str | Path, columns: Columns = COLUMNS) -> list[tuple[str, int]]:
    """Text and label of each review; the rows count from 1."""
    rows, texts, labels = zip(*read_reviews(path, columns), strict=True)
    assert rows == tuple(range(1, len(rows) + 1))
    return list(zip(texts, labels, strict=True))


def texts_of(path: str | Path, columns: Columns = COLUMNS) -> list[str]:
    return list(read_texts(path, columns))


def refusal(path: Path, columns: Columns = COLUMNS, read=read_reviews) -> str:
    """What a reader says against `path`, after the path; the message has to be a single line."""
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}") as caught:
        list(read(path, columns))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(str(path))


# ---------------------------------------------------------------- kinds of files

REVIEWS = [
    ("Bad, and slow.", 0),
    ('They call it ""good"", it is.', 1),
    ("First line\nsecond line", 0),
    (r"Escaped line\nsecond<br />third", 1),
    ("NA", 1),
    ("null", 0),
    ("nan", 1),
    ("None", 0),
    ("salt &amp; pepper I <3", 1),
    ("caf\u00e9 \u2603 \u4f60\u597d \U0001f600", 0),
    ("7", 1),
]


def to_csv(columns: list[str] | None = None, delimiter: str = ",") -> str:
    """CSV with these columns, or in the Yelp Polarity form."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    if columns is None:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([label + 1, text] for text, label in REVIEWS)
    else:
        writer.writerow(columns)
        writer.writerows([{"text": t, "label": n, "stars": 3}[column] for column in columns] for t, n in REVIEWS)
    return file.getvalue()


def to_jsonl(kind: type = int) -> str:
    return "".join(json.dumps({"text": text, "label": kind(label)}) + "\n" for text, label in REVIEWS)


def to_parquet(names: list[str] | None = None) -> bytes:
    """A Parquet file of `datasets`, with class labels of these names."""
    file = io.BytesIO()
    label = Value("int64") if names is None else ClassLabel(names=names)
    columns = {"text": [text for text, _ in REVIEWS], "label": [number for _, number in REVIEWS]}
    Dataset.from_dict(columns, Features({"text": Value("string"), "label": label})).to_parquet(file)
    return file.getvalue()


FORMS = {
    "yelp.csv": to_csv(),
    "YELP.CSV": to_csv(),
    "headed.csv": to_csv(["text", "label"]),
    "turned.csv": to_csv(["label", "stars", "text"]),
    "marked.csv": to_csv(["text", "label"]).encode("utf-8-sig"),
    "headed.csv.gz": gzip.compress(to_csv(["text", "label"]).encode()),
    "v1.2.CSV.GZ": gzip.compress(to_csv().encode()),
    "headed.tsv": to_csv(["text", "label"], "\t"),
    "headed.Tsv.gz": gzip.compress(to_csv(["label", "text"], "\t").encode()),
    "list.json": json.dumps([{"text": text, "label": label} for text, label in REVIEWS], indent=2),
    "lines.json": to_jsonl(),
    "blank lines.json": "\n\n" + to_jsonl().replace("\n", "\n \n"),
    "lines.jsonl": to_jsonl(),
    "lines.jsonl.gz": gzip.compress(to_jsonl().encode()),
    "floats.jsonl": to_jsonl(float),
    "booleans.jsonl": to_jsonl(bool),
    "strings.jsonl": to_jsonl(str),
    "table.parquet": to_parquet(),
    "TABLE.PARQUET": to_parquet(["neg", "pos"]),
    "yelp on the hub.parquet": to_parquet(["1", "2"]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_file_format_gives_the_same_reviews(tmp_path, name):
    path = write_file(tmp_path, name, FORMS[name])
    assert reviews_of(path) == reviews_of(str(path)) == REVIEWS
    assert texts_of(path) == [text for text, _ in REVIEWS]


def test_class_labels_in_parquet_are_read_by_their_names(tmp_path):
    """Whose order is the data set's own."""
    path = write_file(tmp_path, "table.parquet", to_parquet(["pos", "neg"]))
    assert reviews_of(path) == [(text, 1 - label) for text, label in REVIEWS]
    path = write_file(tmp_path, "table.parquet", to_parquet(["good", "bad"]))
    assert refusal(path).startswith(", row 1: label 'good'; accepted are 0, neg, ")
    labels = {"good": 1, "bad": 0}
    assert reviews_of(path, Columns(labels=labels)) == [(text, 1 - label) for text, label in REVIEWS]


def test_class_label_that_is_missing_is_refused(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["bad", "?"], "label": [0, -1]}, features).to_parquet(tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet").startswith(", row 2: label -1; accepted are ")


def write_folder(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_file(folder, name, content)
    return folder


def test_folder_with_neg_and_pos_is_read(tmp_path):
    folder = write_folder(
        tmp_path / "aclImdb.v1",
        {
            "pos/0_9.txt": "good\nsecond line",
            "Neg/1_2.TXT": "\ufeffbad",
            "Neg/0_1.txt": "worse",
            "Neg/notes.md": "none",
            "unsup/0_0.txt": "unknown",
            "labels.txt": "none",
        },
    )
    assert reviews_of(folder) == [("worse", 0), ("bad", 0), ("good\nsecond line", 1)]
    assert texts_of(folder) == ["worse", "bad", "good\nsecond line"]
    assert [(label, file.name) for label, file in folder_files(folder)] == [
        ("neg", "0_1.txt"),
        ("neg", "1_2.TXT"),
        ("pos", "0_9.txt"),
    ]


def test_bad_file_of_a_folder_is_refused_by_its_name(tmp_path):
    assert refusal(tmp_path) == ": no text files (*.txt) in its subfolders neg and pos"
    folder = write_folder(tmp_path / "reviews", {"neg/1.txt": "bad", "pos/2.txt": b"caf\xe9"})
    assert refusal(folder).startswith("/pos/2.txt: byte 0xe9 at character 4 is not UTF-8")
    write_folder(folder, {"pos/2.txt": " \n"})
    assert refusal(folder) == "/pos/2.txt: the text is empty; remove the file"


def test_texts_come_from_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(to_csv(["text", "label"]).encode())))
    assert texts_of("-") == [text for text, _ in REVIEWS]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"text\ngood\ncaf\xe9\n")))
    with pytest.raises(InputError, match="^-, row 2: byte 0xe9 at character 4 is not UTF-8"):
        texts_of("-")


def test_text_of_any_length_is_read(tmp_path):
    long = "good " * 50_000
    assert texts_of(write_file(tmp_path, "reviews.csv", f"text,label\nbad,0\n{long},1\n"))[1] == long


def test_file_is_read_as_its_rows_are_asked_for(tmp_path):
    """A file larger than the memory can be labelled."""
    path = write_file(tmp_path, "reviews.csv", "text\ngood\nbad\n" + "good\n" * 100_000 + "good, even\n")
    texts = read_texts(path, COLUMNS)
    assert [next(texts), next(texts)] == ["good", "bad"]
    with pytest.raises(InputError, match=r"row 100003: 2 columns"):
        list(texts)


@pytest.mark.parametrize("name", ["a?b.csv", "a*b.csv", "a[1].csv", "a b.csv", "a#b.csv", "a=b.csv"])
def test_special_characters_in_a_file_name_match_no_other_file(tmp_path, name):
    for other in ("a1b.csv", "a1.csv"):
        write_file(tmp_path, other, "1,another bad\n2,another good\n")
    assert reviews_of(write_file(tmp_path, name, "1,bad\n2,good\n")) == [("bad", 0), ("good", 1)]


def test_texts_are_counted_and_checked_and_columns_named_once(tmp_path, caplog):
    caplog.set_level("INFO")
    path = write_file(tmp_path, "reviews.csv", "sentiment,review\nneg,bad\nwho knows,\npos,good\n")
    count, columns = count_texts(path, COLUMNS)
    assert (count, columns) == (3, Columns("review", "sentiment"))
    assert texts_of(path, columns) == ["bad", "", "good"]
    assert len(caplog.messages) == 1
    path = write_file(tmp_path, "reviews.csv", b"text\ngood\ncaf\xe9\n")
    assert refusal(path, read=count_texts).startswith(", row 2: byte 0xe9 ")


# ---------------------------------------------------------------- a row in is a row out


def test_one_column_loses_no_row(tmp_path):
    path = write_file(tmp_path, "texts.csv", 'text\nI loved it\n  \nI hated it\n""\nSo so\n')
    assert texts_of(path) == ["I loved it", "  ", "I hated it", "", "So so"]


def test_blank_line_in_one_column_is_refused_with_its_row(tmp_path):
    path = write_file(tmp_path, "texts.csv", "text\nI loved it\n\nI hated it\n")
    message = ', row 2: the line is blank; write "" for an empty text, or remove the line'
    assert refusal(path, read=read_texts) == message


def test_blank_lines_that_can_be_no_row_are_skipped(tmp_path):
    """Before the header, at the end, and where a row has several columns."""
    assert texts_of(write_file(tmp_path, "a.csv", "\n\ntext\ngood\nbad\n\n\n")) == ["good", "bad"]
    assert reviews_of(write_file(tmp_path, "b.csv", "text,label\n\ngood,1\n\nbad,0\n")) == [("good", 1), ("bad", 0)]


def test_texts_need_no_labels_and_are_not_cleaned(tmp_path):
    path = write_file(tmp_path, "texts.csv", 'text\n"one<br />two"\n""\nNA\n')
    assert texts_of(path) == ["one<br />two", "", "NA"]
    assert refusal(path) == (
        ": no column of labels among ['text']; training and evaluation need one, called label or named by "
        "data.label_column"
    )


# ---------------------------------------------------------------- columns and labels


@pytest.mark.parametrize(
    "header",
    ["review,sentiment", "Text,Label", "REVIEW_TEXT,Polarity", "content,target", "sentence, label", "comment,LABEL"],
)
def test_common_column_names_are_recognised_and_logged(tmp_path, caplog, header):
    caplog.set_level("INFO")
    path = write_file(tmp_path, "reviews.csv", f"{header}\nbad,neg\ngood,pos\n")
    assert reviews_of(path) == [("bad", 0), ("good", 1)]
    text, label = header.split(",")
    assert caplog.messages == [f"{path}: texts are in column {text!r}, labels in {label!r}"]


def test_plain_column_names_are_not_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    reviews_of(write_file(tmp_path, "reviews.csv", "text,label\nbad,0\n"))
    reviews_of(write_file(tmp_path, "reviews.csv", "1,bad\n"))
    assert caplog.messages == []


def test_named_columns_win_over_recognised_ones(tmp_path):
    path = write_file(tmp_path, "reviews.csv", "text,label,body,stars\nno,9,bad,0\nno,9,good,1\n")
    assert reviews_of(path, Columns(text="body", label="stars")) == [("bad", 0), ("good", 1)]
    assert refusal(path, Columns(text="Body")) == (
        ": data.text_column is 'Body'; there are the columns ['text', 'label', 'body', 'stars']"
    )
    assert refusal(path, Columns(label="mark")).startswith(": data.label_column is 'mark'; there are the columns ")


@pytest.mark.parametrize("word", ["0", "neg", "Negative", "FALSE", "0.0", " neg "])
def test_common_labels_are_recognised_in_any_case(tmp_path, word):
    other = {"0": "1", "neg": "pos", "Negative": "Positive", "FALSE": "TRUE", "0.0": "1.0", " neg ": " pos "}[word]
    path = write_file(tmp_path, "reviews.csv", f"text,label\nbad,{word}\ngood,{other}\n")
    assert reviews_of(path) == [("bad", 0), ("good", 1)]


STARS = {"1": 0, "2": 0, "3": None, "4": 1, "5": 1}


@pytest.mark.parametrize("kind", [int, float, str])
def test_stars_are_grouped_and_those_between_left_out_by_their_row(tmp_path, kind):
    lines = [json.dumps({"text": f"{stars} stars", "label": kind(stars)}) + "\n" for stars in (3, 1, 4, 3, 2, 5)]
    lines.insert(3, '{"text": null, "label": 3}\n')
    path = write_file(tmp_path, "reviews.jsonl", "".join(lines))
    assert list(read_reviews(path, Columns(labels=STARS))) == [
        (2, "1 stars", 0),
        (3, "4 stars", 1),
        (6, "2 stars", 0),
        (7, "5 stars", 1),
    ]
    assert refusal(path).startswith(", row 1: label ")


def test_label_outside_the_given_ones_is_refused_with_them(tmp_path):
    path = write_file(tmp_path, "reviews.csv", "text,label\nbad,1\ngood,6\n")
    assert refusal(path, Columns(labels=STARS)) == (
        ", row 2: label '6'; accepted are 1, 2 (negative); 4, 5 (positive); 3 (left out); data.labels gives others"
    )
    with pytest.raises(InputError, match=r"^data\.labels: \['Good', 'good', 'bad'\] has a label twice"):
        list(read_reviews(path, Columns(labels={"Good": 1, "good": 0, "bad": 0})))


def test_given_labels_hold_in_the_yelp_polarity_form(tmp_path):
    path = write_file(tmp_path, "reviews.csv", "1,good\n2,bad\n")
    assert reviews_of(path, Columns(labels={"1": 1, "2": 0})) == [("good", 1), ("bad", 0)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label,text\nbad,0,good\n"),
        ("a.tsv", "text\tlabel\ttext\nbad\t0\tgood\n"),
        ("a.jsonl", '{"text": "bad", "label": 0, "text": "good"}\n'),
        ("a.json", '[{"text": "bad", "label": 0, "text": "good"}]'),
        ("a.parquet", None),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, name, content):
    path = tmp_path / name
    if content is None:
        pq.write_table(pa.Table.from_arrays([["bad"], [0], ["good"]], names=["text", "label", "text"]), path)
    else:
        write_file(tmp_path, name, content)
    assert refusal(path) == ": two columns are called 'text'; rename or remove one"


def test_columns_that_differ_in_case_only_have_to_be_named(tmp_path):
    path = write_file(tmp_path, "a.csv", "Text,text,label\ngood,bad,0\n")
    assert refusal(path) == ": the columns ['Text', 'text'] differ in case only; name one by data.text_column"
    assert reviews_of(path, Columns(text="text")) == [("bad", 0)]


def test_columns_without_a_name_are_no_duplicates(tmp_path):
    assert reviews_of(write_file(tmp_path, "a.csv", ",text,label,\n0,bad,0,\n")) == [("bad", 0)]


# ---------------------------------------------------------------- only text and label matter


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "list.json"])
def test_unused_fields_may_vary_in_type_and_be_missing(tmp_path, name):
    others = [1, "one", None, [1, "2"], {"a": 1}, 1.5, "2024-01-01", "12:30", [], {}, "no date", True] * 100
    records = [{"text": f"review {i}", "label": i % 2, "other": other} for i, other in enumerate(others)]
    del records[0]["other"]
    records[-1]["late"] = 1
    lines = json.dumps(records) if name == "list.json" else "".join(json.dumps(record) + "\n" for record in records)
    expected = [(f"review {i}", i % 2) for i in range(len(others))]
    assert reviews_of(write_file(tmp_path, name, lines)) == expected
    records[1_150]["label"] = 7
    lines = json.dumps(records) if name == "list.json" else "".join(json.dumps(record) + "\n" for record in records)
    assert refusal(write_file(tmp_path, name, lines)).startswith(", row 1151: label 7; accepted are ")


def test_unused_fields_may_hold_bytes_that_are_not_utf_8(tmp_path):
    path = write_file(tmp_path, "a.csv", b"text,label,user\nbad,0,caf\xe9\ngood,1,caf\xe9\n")
    assert reviews_of(path) == [("bad", 0), ("good", 1)]


def parquet_of(texts: list[bytes]) -> bytes:
    """A Parquet file whose texts are these bytes, whatever they are."""
    offsets = pa.array(np.cumsum([0, *map(len, texts)]), pa.int32())
    column = pa.StringArray.from_buffers(len(texts), offsets.buffers()[1], pa.py_buffer(b"".join(texts)))
    table = pa.table({"text": column, "label": [0, 1, 0][: len(texts)]})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


LATIN = "caf\u00e9".encode("latin-1")
NOT_UTF_8 = {
    "yelp.csv": b'1,"bad\nworse"\n2,good\n1,' + LATIN + b"\n",
    "headed.csv": b'text,label\n"bad\nworse",0\ngood,1\n' + LATIN + b",0\n",
    "headed.csv.gz": gzip.compress(b"text,label\nbad,0\ngood,1\n" + LATIN + b",0\n"),
    "headed.tsv": b"text\tlabel\nbad\t0\ngood\t1\n" + LATIN + b"\t0\n",
    "lines.jsonl": b'{"text":"bad","label":0}\n\n{"text":"good","label":1}\n{"text":"' + LATIN + b'","label":0}\n',
    "list.json": b'[{"text":"bad","label":0},\n{"text":"good","label":1},{"text":"' + LATIN + b'","label":0}]',
    "table.parquet": parquet_of([b"bad", b"good", LATIN]),
}


@pytest.mark.parametrize("name", NOT_UTF_8)
def test_text_that_is_not_utf_8_is_refused_with_the_same_row_in_every_format(tmp_path, name):
    path = write_file(tmp_path, name, NOT_UTF_8[name])
    message = ", row 3: byte 0xe9 at character 4 is not UTF-8; save the text as UTF-8, or remove it"
    assert refusal(path) == refusal(path, read=read_texts) == message


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json"])
def test_lone_surrogate_is_refused_with_its_row(tmp_path, name):
    records = ['{"text": "bad", "label": 0}', r'{"text": "so \ud83d it", "label": 1}']
    content = "\n".join(records) if name == "lines.jsonl" else f"[{','.join(records)}]"
    path = write_file(tmp_path, name, content)
    message = ", row 2: the lone surrogate U+D83D at character 4 is not UTF-8; save the text as UTF-8, or remove it"
    assert refusal(path) == refusal(path, read=read_texts) == message
    whole = write_file(tmp_path, "whole.jsonl", r'{"text": "so \ud83d\ude00 it", "label": 1}')
    assert texts_of(whole) == ["so \U0001f600 it"]


def test_check_text_returns_the_text():
    assert check_text("caf\u00e9 \U0001f600", "here") == "caf\u00e9 \U0001f600"
    with pytest.raises(InputError, match=r"^here: the text is nan; expected a string$"):
        check_text(float("nan"), "here")


# ---------------------------------------------------------------- what is refused

COLUMNS_EXPECTED = (
    '; expected a column of texts, called text or named by data.text_column, or the Yelp Polarity form: "1" (negative) '
    'or "2" (positive), then the text'
)
QUOTED = "; expected 2 (a text that contains commas or quotes must be quoted)"
ACCEPTED = (
    "; accepted are 0, neg, negative, false (negative); 1, pos, positive, true (positive); data.labels gives others"
)
YELP_ACCEPTED = "; accepted are 1 (negative); 2 (positive); data.labels gives others"
BAD_FILES = {
    "empty file": (".csv", "", ": the file is empty"),
    "empty JSONL": (".jsonl", "", ": the file is empty"),
    "only blank lines": (".csv", "\n\n", ": no rows; expected reviews"),
    "no rows": (".csv", "text,label\n", ": no rows; expected reviews"),
    "empty list": (".json", "[]", ": no rows; expected reviews"),
    "third column at first": (".csv", "1,bad,x\n2,good\n", ", row 1: 3 columns, ['1', 'bad', 'x']" + QUOTED),
    "third column later": (".csv", "1,bad\n2,good, even\n", ", row 2: 3 columns, ['2', 'good', ' even']" + QUOTED),
    "third column under a header": (
        ".csv",
        "text,label\nbad,0\nok, fine,1\n",
        ", row 2: 3 columns, ['ok', ' fine', '1']" + QUOTED,
    ),
    "one column": (".csv", "bad\ngood\n", ": the first row has the columns ['bad']" + COLUMNS_EXPECTED),
    "one column at first": (".csv", "1\n2,good\n", ", row 1: 1 columns, ['1']" + QUOTED),
    "one column later": (".csv", "1,bad\n2\n", ", row 2: 1 columns, ['2']" + QUOTED),
    "other header": (
        ".csv",
        "title,stars\nbad,0\n",
        ": the first row has the columns ['title', 'stars']" + COLUMNS_EXPECTED,
    ),
    "label 3": (".csv", "1,bad\n3,good\n", ", row 2: label '3'" + YELP_ACCEPTED),
    "label 0 among 1 and 2": (".csv", "1,bad\n0,good\n", ", row 2: label '0'" + YELP_ACCEPTED),
    "label 3 at first": (
        ".csv",
        "3,bad\n1,good\n",
        ": the first row has the columns ['3', 'bad']" + COLUMNS_EXPECTED,
    ),
    "label good": (".csv", "1,bad\ngood,fine\n", ", row 2: label 'good'" + YELP_ACCEPTED),
    "label 2 under a header": (".csv", "text,label\nbad,1\ngood,2\n", ", row 2: label '2'" + ACCEPTED),
    "label 0.5": (
        ".jsonl",
        '{"text": "a", "label": 0.0}\n{"text": "b", "label": 0.5}',
        ", row 2: label 0.5" + ACCEPTED,
    ),
    "label null": (
        ".jsonl",
        '{"text": "a", "label": 0}\n{"text": "b", "label": null}',
        ", row 2: label None" + ACCEPTED,
    ),
    "label missing": (".jsonl", '{"text": "a", "label": 0}\n{"text": "b"}', ", row 2: label None" + ACCEPTED),
    "label good in JSON": (".json", '[{"text": "good", "label": "good"}]', ", row 1: label 'good'" + ACCEPTED),
    "unclosed quote": (".csv", '1,bad\n2,"good\n', ", row 2: unexpected end of data"),
    "text after a quote": (".csv", 'text,label\nbad,0\n"good" x,1\n', ", row 2: ',' expected after '\"'"),
    "null text": (
        ".jsonl",
        '{"text": "bad", "label": 0}\n{"text": null, "label": 1}\n',
        ", row 2: the text is None; expected a string",
    ),
    "number for a text": (".jsonl", '{"text": 5, "label": 0}\n', ", row 1: the text is 5; expected a string"),
    "JSON of columns": (
        ".json",
        '{"text": ["bad", "good"], "label": ["neg"]}',
        ", row 1: label ['neg']" + ACCEPTED,
    ),
    "list in a list": (".json", '[["bad", 0]]', ", row 1: found ['bad', 0]; expected an object with text and label"),
    "truncated JSONL": (
        ".jsonl",
        '{"text": "bad", "label": 0}\n{"text": "good", "la',
        ", row 2: not a JSON object on one line: Unterminated string starting at: line 1 column 18 (char 17)",
    ),
    "unknown kind": (
        ".txt",
        "1,bad\n",
        ": unknown kind '.txt'; accepted are .csv, .tsv, .json, .jsonl, .parquet (text files also .gz) and folders "
        "with neg and pos",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file_is_refused_with_name_row_and_accepted_values(tmp_path, case):
    suffix, content, message = BAD_FILES[case]
    assert refusal(write_file(tmp_path, f"reviews{suffix}", content)) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"text": "bad"', ": not readable as JSON: "),
        ("a.json", "hello", ", row 1: not a JSON object on one line: "),
        ("a.json", "[" * 100_000, ": not readable as JSON: "),
        ("a.parquet", "hello", ": not readable as Parquet: "),
        ("a.parquet", to_parquet()[:-9], ": not readable as Parquet: "),
        ("a.csv.gz", "text\ngood\n", ": can't be read (Not a gzipped file"),
        ("a.csv.gz", gzip.compress(to_csv().encode())[:-9], ": can't be read (Compressed file ended"),
        (
            "a.csv.gz",
            gzip.compress(to_csv().encode())[:20] + b"x" * 99,
            ": can't be read (Error -3 while decompressing",
        ),
        ("a.parquet.gz", "", ": the file is empty"),
        ("a.parquet.gz", "x", ": unknown kind '.gz'; accepted are .csv, "),
        ("a.gz", "x", ": unknown kind '.gz'; accepted are .csv, "),
        ("Dr. Who reviews", "x", ": unknown kind '. Who reviews'; accepted are .csv, "),
        ("reviews", "x", ": unknown kind ''; accepted are .csv, "),
    ],
)
def test_damaged_or_unknown_file_is_refused_with_its_name(tmp_path, name, content, message):
    assert refusal(write_file(tmp_path, name, content)).startswith(message)


def test_missing_file_is_refused(tmp_path):
    assert refusal(tmp_path / "missing.csv") == ": no such file"


def test_row_number_does_not_depend_on_the_kind_of_error(tmp_path):
    """Otherwise a message would send its reader to the wrong row."""
    for bad in ("good,3", "good", '"go"od,1', "caf\udce9,1"):
        content = f"text,label\nbad,0\n{bad}\ngood,1\n".encode("utf-8", "surrogateescape")
        assert refusal(write_file(tmp_path, "reviews.csv", content)).startswith(", row 2: "), bad


def test_shorten_cuts_long_values():
    assert files.shorten("good") == "'good'"
    assert files.shorten("x" * 200) == "'" + "x" * 79 + "..."
