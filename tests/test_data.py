"""data.py: readers and what they refuse, splits, the cache, tokens and padding, batches, atomic writes."""

import csv
import errno
import random
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoTokenizer

import data
from config import DataConfig, InputError, RunError
from data import (
    TokenizedReviews,
    TokenizedTexts,
    atomic_path,
    balanced_subset,
    batch_loader,
    clean,
    evaluation_batches,
    hold_out,
    is_disk_full,
    load_reviews,
    load_splits,
    load_tokenizer,
    packaged_encoder,
    pad,
    read_file,
    read_imdb,
    training_batches,
    write_source,
    write_text,
)
from helpers import assert_same_tensors, write_file
from sources.files import Columns

LOGS = Path(__file__).resolve().parents[1] / "logs" / "reference"


def contents(reviews: Dataset) -> list[tuple[str, int, int]]:
    """Text, label and row of each review."""
    return list(zip(reviews["text"], reviews["label"], reviews["row"], strict=True))


def read_splits(config: DataConfig) -> dict[str, Dataset]:
    """The splits of a source, in memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_source(config, Path(folder), lambda texts: [[len(text)] for text in texts])
        splits = {name: reviews.dataset for name, reviews in load_splits(Path(folder)).items()}
        return {name: Dataset.from_dict(split[:], features=split.features) for name, split in splits.items()}


def rows_of(reviews: Dataset) -> set[int]:
    """The rows of reviews, of which none may come twice."""
    rows = list(reviews["row"])
    assert len(set(rows)) == len(rows)
    return set(rows)


# ---------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one<br />two", "one two"),
        ("one<br>two<BR/>three", "one two three"),
        ('<p class="x">one</p>', "one"),
        (r"one\ntwo", "one\ntwo"),
        ('a ""good"" one', 'a "good" one'),
        (r"a \"good\" one", 'a "good" one'),
        ("salt &amp; pepper", "salt & pepper"),
        ("it&#39;s &quot;good&quot;", 'it\'s "good"'),
        ("  one \n", "one"),
        ("I <3 it", "I <3 it"),
        ("a < b", "a < b"),
        ("a < b and c > d", "a < b and c > d"),
        ("1 &lt; 2", "1 < 2"),
        ("<bold> is no tag", "<bold> is no tag"),
        ("<br", "<br"),
        ("plain, with 'quotes' and \"these\"", "plain, with 'quotes' and \"these\""),
        ("<br /><br />", ""),
    ],
)
def test_clean_resolves_escapes_and_leaves_the_rest(text, cleaned):
    assert clean(text) == cleaned


# ---------------------------------------------------------------- reviews of a file


def write_yelp(path: Path, reviews: list[tuple[str, int]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([label + 1, text] for text, label in reviews)
    return path


def test_file_becomes_cleaned_reviews_with_their_rows(tmp_path):
    path = write_yelp(tmp_path / "a.csv", [(' ""good"" &amp; fast ', 1), (r"First\nsecond<br />third", 0), ("NA", 1)])
    expected = [('"good" & fast', 1, 0), ("First\nsecond third", 0, 1), ("NA", 1, 2)]
    assert contents(read_file(path)) == contents(read_file(str(path))) == expected
    assert read_file(path).features["label"].names == ["negative", "positive"]


def test_rows_count_reviews_that_are_left_out(tmp_path):
    path = write_file(tmp_path, "a.csv", "stars,review\n3,so so\n1,bad\n5,good\n")
    columns = Columns("review", "stars", {"1": 0, "3": None, "5": 1})
    assert contents(read_file(path, columns)) == [("bad", 0, 1), ("good", 1, 2)]


@pytest.mark.parametrize("text", ["", '" "', "<br />"])
def test_text_that_is_empty_once_cleaned_is_refused_with_its_row(tmp_path, text):
    path = write_file(tmp_path, "a.csv", f"1,bad\n2,{text}\n")
    with pytest.raises(
        InputError, match=r"a\.csv, row 2: the text is empty; give every row a text, or remove the row$"
    ):
        read_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1,bad\n1,worse\n", "all 2 reviews are negative; both classes are needed"),
        ("2,good\n", "all 1 reviews are positive; both classes are needed"),
        ("3,so so\n", "no review is left; both classes are needed"),
    ],
)
def test_file_of_one_class_is_refused(tmp_path, content, message):
    path = write_file(tmp_path, "a.csv", "label,text\n" + content)
    with pytest.raises(InputError, match=rf"a\.csv: {message}$"):
        read_file(path, Columns(labels={"1": 0, "2": 1, "3": None}))


def test_columns_and_labels_of_the_settings_are_used(tmp_path):
    rows = "".join(f"{1 + i % 5},text {i},x\n" for i in range(100))
    path = write_file(tmp_path, "reviews.csv", "stars,body,text\n" + rows)
    labels = {"1": 0, "2": 0, "3": None, "4": 1, "5": 1}
    config = DataConfig("files", str(path), text_column="body", label_column="stars", labels=labels)
    reviews = [review for split in read_splits(config).values() for review in contents(split)]
    assert sorted(row for _, _, row in reviews) == [i for i in range(100) if i % 5 != 2]
    assert {(text, label) for text, label, _ in reviews} == {(f"text {i}", i % 5 > 2) for i in range(100) if i % 5 != 2}


# ---------------------------------------------------------------- Yelp through the hub

HUB = {
    "train": {"label": [0, 1] * 10, "text": [f"train {i}\\nmore" for i in range(20)]},
    "test": {"label": [1, 1, 0, 0, 1, 0], "text": [f"test {i} good" for i in range(6)]},
}


@pytest.fixture
def unreachable(monkeypatch, tmp_path) -> list:
    """No hub, no hub cache; every attempt to connect is refused and recorded."""
    calls = []

    def refuse(*arguments, **options):
        calls.append(arguments)
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    for owner, name in ((socket.socket, "connect"), (socket, "getaddrinfo"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    return calls


@pytest.fixture
def hub(monkeypatch) -> list:
    """A hub with a small Yelp Polarity; the calls that it received."""
    calls = []

    def load_dataset(name, revision=None):
        calls.append((name, revision, datasets.config.HF_HUB_OFFLINE))
        return DatasetDict({split: Dataset.from_dict(columns) for split, columns in HUB.items()})

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *arguments, **options: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_yelp_without_network_names_hub_cache_and_alternatives(unreachable, tmp_path):
    offline = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(InputError) as caught:
        read_splits(DataConfig(source="yelp"))
    message = str(caught.value)
    assert "\n" not in message
    for part in ("data.source=yelp", "fancyzhx/yelp_polarity", str(tmp_path), "data.source=imdb"):
        assert part in message
    assert datasets.config.HF_HUB_OFFLINE is offline
    # One look at the hub and no more: the loader itself would retry for minutes.
    assert all(isinstance(arguments[0], huggingface_hub.HfApi) for arguments in unreachable)


def test_yelp_without_network_is_read_from_the_hub_cache(hub, monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no network in tests")

    offline = datasets.config.HF_HUB_OFFLINE
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    splits = read_splits(DataConfig(source="yelp", validation_first=2))
    assert len(splits["train"]) == 20
    assert [call[2] for call in hub] == [True]
    assert datasets.config.HF_HUB_OFFLINE is offline


def test_hub_failure_is_an_input_error(hub, monkeypatch):
    def fail(*arguments, **options):
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        InputError, match=r"data\.source=yelp='fancyzhx/yelp_polarity' could not be loaded \(An error occurred"
    ):
        read_splits(DataConfig(source="yelp"))


def test_yelp_validates_on_the_first_test_reviews_and_tests_on_all(hub):
    splits = read_splits(DataConfig(source="yelp", validation_first=4, revision="abc"))
    assert [call[:2] for call in hub] == [("fancyzhx/yelp_polarity", "abc")]
    assert contents(splits["train"]) == [(f"train {i}\nmore", i % 2, i) for i in range(20)]
    assert contents(splits["test"]) == [(f"test {i} good", label, i) for i, label in enumerate(HUB["test"]["label"])]
    assert contents(splits["validation"]) == contents(splits["test"])[:4]
    assert list(splits) == ["train", "validation", "test"]


def test_validation_first_is_capped_at_the_test_split(hub):
    splits = read_splits(DataConfig(source="yelp", validation_first=1000))
    assert contents(splits["validation"]) == contents(splits["test"])


def test_yelp_validation_is_held_out_of_training_by_default(hub):
    splits = read_splits(DataConfig(source="yelp", validation_fraction=0.2))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [16, 4, 6]
    assert rows_of(splits["train"]) | rows_of(splits["validation"]) == set(range(20))
    assert sum(splits["validation"]["label"]) == 2


# ---------------------------------------------------------------- IMDB from the installed package


@pytest.fixture(scope="module")
def imdb() -> Dataset:
    return data.make_dataset(read_imdb(), "IMDB")


@pytest.fixture(scope="module")
def imdb_splits(imdb) -> dict[str, DatasetDict]:
    """The splits of the default seed and of another; the CSV file is read only once."""
    with pytest.MonkeyPatch.context() as patch:
        rows = list(read_imdb())
        patch.setattr(data, "read_imdb", lambda: iter(rows))
        seeds = {"first": 0, "other": 1}
        return {name: read_splits(DataConfig(split_seed=seed)) for name, seed in seeds.items()}


def test_imdb_reviews_are_clean_and_balanced(imdb):
    assert len(imdb) == 25_000
    assert sum(imdb["label"]) == 12_500
    assert not any("<br" in text or not text for text in imdb["text"])


def test_imdb_splits_are_disjoint_and_lose_no_text(imdb, imdb_splits):
    splits = imdb_splits["first"]
    texts = [text for split in splits.values() for text in split["text"]]
    assert len(set(texts)) == len(texts)
    assert set(texts) == set(imdb["text"])


def test_imdb_splits_have_the_requested_sizes_and_are_stratified(imdb_splits):
    splits = imdb_splits["first"]
    total = sum(len(split) for split in splits.values())
    assert abs(len(splits["validation"]) - DataConfig.validation_fraction * total) <= 1
    assert abs(len(splits["test"]) - DataConfig.test_fraction * total) <= 1
    shares = [np.mean(split["label"]) for split in splits.values()]
    assert max(shares) - min(shares) < 0.01
    assert abs(shares[0] - 0.5) < 0.01


def test_imdb_rows_point_into_the_source(imdb, imdb_splits):
    rows = list(imdb_splits["first"]["test"]["row"])
    assert contents(imdb.select(rows)) == contents(imdb_splits["first"]["test"])


def test_imdb_splits_are_those_of_the_committed_logs_and_depend_on_the_seed(imdb_splits):
    for name in ("validation", "test"):
        first, other = (list(imdb_splits[key][name]["row"]) for key in ("first", "other"))
        with (LOGS / "imdb" / "1_lstm" / f"{name}_predictions.csv").open() as file:
            assert first == [int(line["row"]) for line in csv.DictReader(file)], name
        assert set(first) != set(other), name
        assert len(first) == len(other), name


# ---------------------------------------------------------------- subsets and held-out splits


@pytest.fixture
def labels() -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat([0, 1], [40, 61]))


@pytest.mark.parametrize(("size", "counts"), [(2, [1, 1]), (20, [10, 10]), (21, [11, 10]), (80, [40, 40])])
def test_subset_is_balanced_with_an_odd_review_from_class_0(labels, size, counts):
    chosen = balanced_subset(labels, size, 0, "data.max_train_samples")
    assert np.bincount(labels[chosen]).tolist() == counts
    assert (np.diff(chosen) > 0).all()


def test_subset_depends_on_the_seed_alone(labels):
    first, again, other = (balanced_subset(labels, 20, seed, "data.max_train_samples") for seed in (0, 0, 1))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_subset_is_drawn_from_the_whole_split(labels):
    """Not from its beginning, where the source may list one kind of review."""
    drawn = np.concatenate([balanced_subset(labels, 20, seed, "data.max_train_samples") for seed in range(40)])
    assert set(drawn.tolist()) == set(range(len(labels)))


def test_subset_larger_than_a_class_allows_is_refused(labels):
    with pytest.raises(
        InputError, match=r"data\.max_train_samples=82 needs 41 reviews of class negative, there are 40$"
    ):
        balanced_subset(labels, 82, 0, "data.max_train_samples")
    with pytest.raises(InputError, match=r"data\.max_eval_samples=82 needs 41 reviews of class negative"):
        balanced_subset(labels, 82, 0, "data.max_eval_samples", at_most=True)
    with pytest.raises(InputError, match=r"=102 needs 51 reviews"):
        balanced_subset(labels, 102, 0, "data.max_train_samples")


@pytest.mark.parametrize("options", [{"size": None}, {"size": 101, "at_most": True}, {"size": 500, "at_most": True}])
def test_all_reviews_are_taken_without_a_smaller_size(labels, options):
    chosen = balanced_subset(labels, seed=0, key="data.max_eval_samples", **options)
    assert chosen.tolist() == list(range(101))


def small_dataset(negative: int, positive: int) -> Dataset:
    labels = [0] * negative + [1] * positive
    return data.make_dataset(((i + 1, f"review {i}", label) for i, label in enumerate(labels)), "reviews")


def test_hold_out_is_stratified_and_depends_on_the_seed():
    reviews = small_dataset(60, 40)
    kept, held = hold_out(reviews, 10, 0, "test")
    assert rows_of(kept) | rows_of(held) == set(range(100))
    assert (len(kept), len(held)) == (90, 10)
    assert (sum(kept["label"]), sum(held["label"])) == (36, 4)
    assert list(hold_out(reviews, 10, 0, "test")[1]["row"]) == list(held["row"])
    assert rows_of(hold_out(reviews, 10, 1, "test")[1]) != rows_of(held)


@pytest.mark.parametrize(("negative", "positive", "size"), [(10, 10, 1), (10, 10, 0), (10, 1, 4), (2, 2, 3)])
def test_impossible_hold_out_is_refused(negative, positive, size):
    message = rf"^{size} of {negative + positive} training reviews can't be held out for validation: "
    with pytest.raises(InputError, match=message):
        hold_out(small_dataset(negative, positive), size, 0, "validation")


def test_duplicate_texts_are_dropped_before_a_split(tmp_path):
    reviews = [(f"{word} {i % 15}", label) for i in range(30) for label, word in enumerate(("bad", "good"))]
    write_yelp(tmp_path / "reviews.csv", reviews)
    config = DataConfig(source="files", train=str(tmp_path / "reviews.csv"), test_fraction=0.2)
    splits = read_splits(config)
    texts = [text for split in splits.values() for text in split["text"]]
    assert sorted(texts) == sorted({text for text, _ in reviews})
    # The first of each is kept: the second half of the file holds only duplicates.
    assert max(row for split in splits.values() for row in split["row"]) < 30


def test_separate_split_files_are_used_unchanged(tmp_path):
    paths = {}
    for name, size in (("train", 3), ("validation", 2), ("test", 4)):
        paths[name] = str(tmp_path / f"{name}.csv")
        write_yelp(Path(paths[name]), [("same", 0), ("same", 1)] * size)
    splits = read_splits(DataConfig(source="files", **paths))
    assert {name: contents(split) for name, split in splits.items()} == {
        name: [("same", i % 2, i) for i in range(2 * size)]
        for name, size in (("train", 3), ("validation", 2), ("test", 4))
    }


def test_validation_first_works_on_a_held_out_test_split(tmp_path):
    rows = "".join(f"text {i},{i % 2}\n" for i in range(100))
    path = write_file(tmp_path, "reviews.csv", "text,label\n" + rows)
    splits = read_splits(DataConfig(source="files", train=str(path), test_fraction=0.2, validation_first=8))
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [80, 8, 20]
    assert list(splits["validation"]["text"]) == list(splits["test"]["text"])[:8]


# ---------------------------------------------------------------- from files to tokens, and the cache

MAX_LENGTH = 13


@pytest.fixture
def files(tmp_path) -> DataConfig:
    """Sixty reviews of one to thirty words, and a cache beside them."""
    words = ["fine", "unbelievably", "caf\u00e9", "slow,", "xyzzyx", "\u4f60\u597d", "<3", "service"]
    rng = np.random.default_rng(3)
    reviews = [(f"{i} " + " ".join(rng.choice(words, rng.integers(0, 30))), i % 2) for i in range(60)]
    write_yelp(tmp_path / "reviews.csv", reviews)
    return DataConfig(
        source="files",
        train=str(tmp_path / "reviews.csv"),
        max_length=MAX_LENGTH,
        validation_fraction=0.2,
        test_fraction=0.3,
        cache_dir=str(tmp_path / "cache"),
    )


def tokens(reviews: TokenizedReviews) -> list[list[int]]:
    return list(reviews.dataset["input_ids"])


def cached(config: DataConfig) -> list[str]:
    folder = Path(config.cache_dir)
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_files_become_three_tokenized_splits(files):
    reviews = load_reviews(files)
    source = contents(read_file(files.train))
    assert [len(split) for split in (reviews.train, reviews.validation, reviews.test)] == [30, 12, 18]
    rows = []
    for split in (reviews.train, reviews.validation, reviews.test):
        rows += zip(split.texts, split.labels.tolist(), split.rows.tolist(), strict=True)
    assert sorted(rows, key=lambda review: review[2]) == source
    assert cached(files) == [reviews.fingerprint]


def test_tokens_equal_the_tokenizer_on_each_text_alone(files):
    reviews = load_reviews(files)
    tokenizer = AutoTokenizer.from_pretrained(packaged_encoder())
    lengths = []
    for split in (reviews.train, reviews.validation, reviews.test):
        alone = [tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in split.texts]
        assert tokens(split) == alone
        assert split.lengths.tolist() == [len(ids) for ids in alone]
        lengths += map(len, alone)
    assert min(lengths) < MAX_LENGTH == max(lengths)
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in tokens(reviews.train))


def test_second_load_reads_the_cache(files, monkeypatch):
    first = load_reviews(files)

    def read_again(*arguments):
        raise AssertionError("the source was read again")

    monkeypatch.setattr(data, "write_source", read_again)
    second = load_reviews(files)
    assert second.fingerprint == first.fingerprint
    for name in ("train", "validation", "test"):
        before, now = getattr(first, name), getattr(second, name)
        assert tokens(now) == tokens(before), name
        assert (now.texts, now.rows.tolist()) == (before.texts, before.rows.tolist()), name
    with pytest.raises(AssertionError, match="read again"):
        load_reviews(replace(files, max_length=MAX_LENGTH - 1))


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": MAX_LENGTH - 1},
        {"split_seed": 1},
        {"test_fraction": 0.2},
        {"validation_fraction": 0.1},
        {"validation_first": 4},
        {"test": "the same file"},
        {"text_column": "text"},
        {"label_column": "label of Yelp Polarity"},
        {"labels": {"1": 1, "2": 0}},
    ],
    ids=str,
)
def test_setting_that_changes_the_splits_changes_the_cache_key(files, change):
    if "test" in change:
        change = {"test": files.train}
    first, changed = load_reviews(files), load_reviews(replace(files, **change))
    assert cached(files) == sorted({first.fingerprint, changed.fingerprint})
    assert len(cached(files)) == 2
    if "max_length" in change:
        assert max(map(len, tokens(changed.train))) == MAX_LENGTH - 1
    if "split_seed" in change:
        assert sorted(changed.test.rows) != sorted(first.test.rows)


def test_changed_file_is_read_again(files):
    first = load_reviews(files)
    path = Path(files.train)
    # Same name and size: only the content tells.
    path.write_bytes(path.read_bytes().replace(b"fine", b"dull"))
    second = load_reviews(files)
    assert second.fingerprint != first.fingerprint
    texts = " ".join(second.train.texts + second.validation.texts + second.test.texts)
    assert "dull" in texts
    assert "fine" not in texts


def test_one_name_for_texts_or_labels_gives_two_cache_keys(files):
    tokenizer = load_tokenizer("packaged")
    keys = {data._cache_key(replace(files, **{name: "text"}), tokenizer) for name in ("text_column", "label_column")}
    assert len(keys) == 2


def test_same_folder_under_another_path_has_the_same_cache_key(files, tmp_path):
    keys = []
    for name, ignored in (("a", "unsup/0.txt"), ("b", "notes.txt")):
        for label, text in (("neg", "bad"), ("pos", "good")):
            (tmp_path / name / label).mkdir(parents=True)
            write_file(tmp_path / name / label, "0.txt", text)
        (tmp_path / name / ignored).parent.mkdir(exist_ok=True)
        write_file(tmp_path / name, ignored, "no review")
        keys.append(data.file_digest(tmp_path / name))
    assert keys[0] == keys[1]
    (tmp_path / "a" / "neg").rename(tmp_path / "a" / "0")
    (tmp_path / "a" / "pos").rename(tmp_path / "a" / "neg")
    (tmp_path / "a" / "0").rename(tmp_path / "a" / "pos")
    assert data.file_digest(tmp_path / "a") != keys[1]


@pytest.mark.parametrize(
    "change", [{"max_train_samples": 10}, {"max_eval_samples": 4}, {"group_by_length": False}], ids=str
)
def test_setting_that_only_selects_reviews_shares_the_cache(files, change):
    assert load_reviews(replace(files, **change)).fingerprint == load_reviews(files).fingerprint
    assert len(cached(files)) == 1


def test_another_tokenizer_changes_the_cache_key(files, tmp_path):
    changed = load_tokenizer("packaged")
    changed.add_tokens(["xyzzyx"])
    changed.save_pretrained(tmp_path / "tokenizer")
    first, second = load_reviews(files), load_reviews(replace(files, tokenizer=str(tmp_path / "tokenizer")))
    assert first.fingerprint != second.fingerprint
    assert len(second.tokenizer) == len(first.tokenizer) + 1
    assert max(max(ids) for ids in tokens(second.train)) == len(first.tokenizer)


def test_damaged_tokenizer_is_refused_by_name(files, tmp_path):
    load_tokenizer("packaged").save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"data\.tokenizer='.*tokenizer' could not be loaded"):
        load_reviews(replace(files, tokenizer=str(tmp_path / "tokenizer")))


def test_missing_folder_of_a_tokenizer_is_refused(files, tmp_path):
    with pytest.raises(
        InputError, match=r"data\.tokenizer='.*nowhere': no such folder, and not a name on the hub"
    ) as caught:
        load_reviews(replace(files, tokenizer=str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value)


def fail_half_way(error: Exception):
    """A `write_reviews` that fails after it has written something."""

    def write_reviews(path, *arguments):
        path.write_text("half")
        raise error

    return write_reviews


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (RuntimeError("no more memory"), RuntimeError, "no more memory"),
        (OSError(errno.EIO, "no more bytes"), OSError, "no more bytes"),
        (OSError(errno.ENOSPC, "no more bytes"), RunError, "no space left on the disk"),
    ],
    ids=["tokenizing", "writing", "disk full"],
)
def test_failed_build_leaves_an_empty_cache(files, monkeypatch, failure, error, message):
    with monkeypatch.context() as patch:
        patch.setattr(data, "write_reviews", fail_half_way(failure))
        with pytest.raises(error, match=message):
            load_reviews(files)
    # Half-written files of Yelp Polarity would be hundreds of megabytes an attempt.
    assert cached(files) == []
    assert len(load_reviews(files).train) == 30


def damage(folder: Path, how: str) -> None:
    reviews, splits = folder / "train.arrow", folder / "splits.npz"
    if how == "no reviews":
        reviews.unlink()
    elif how == "truncated":
        reviews.write_bytes(reviews.read_bytes()[:-1000])
    elif how == "no rows":
        splits.write_bytes(splits.read_bytes()[:100])
    elif how == "no split":
        np.savez(splits, **{"train of train": np.arange(3)})
    elif how == "other rows":
        np.savez(splits, **{f"{name} of train": np.array([60]) for name in ("train", "validation", "test")})
    else:
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize("how", ["no reviews", "truncated", "no rows", "no split", "other rows", "empty"])
def test_damaged_cache_is_made_again_with_a_warning(files, caplog, how):
    first = load_reviews(files)
    expected = tokens(first.test)
    folder = Path(files.cache_dir) / first.fingerprint
    del first
    damage(folder, how)
    caplog.clear()
    assert tokens(load_reviews(files).test) == expected
    (message,) = [text for text in caplog.messages if "damaged" in text]
    assert message.startswith(f"warning: {folder}: the cached reviews are damaged (")
    assert "\n" not in message
    caplog.clear()
    assert tokens(load_reviews(files).test) == expected
    assert not [text for text in caplog.messages if "damaged" in text]
    assert cached(files) == [folder.name]


def test_cache_that_may_not_be_read_is_no_damaged_one(files, monkeypatch):
    load_reviews(files)

    def refuse(folder):
        raise PermissionError(errno.EACCES, "denied", folder)

    monkeypatch.setattr(Dataset, "from_file", refuse)
    with pytest.raises(PermissionError, match="denied"):
        load_reviews(files)


def test_concurrent_builds_end_in_one_cache_folder(files, monkeypatch):
    write_reviews = data.write_reviews

    def overtaken(*arguments):
        monkeypatch.setattr(data, "write_reviews", write_reviews)
        load_reviews(files)
        return write_reviews(*arguments)

    monkeypatch.setattr(data, "write_reviews", overtaken)
    reviews = load_reviews(files)
    assert len(reviews.train) == 30
    assert cached(files) == [reviews.fingerprint]


def test_subsets_are_balanced_and_of_the_requested_sizes(files):
    whole = load_reviews(files)
    reviews = load_reviews(replace(files, max_train_samples=10, max_eval_samples=14))
    assert [len(split) for split in (reviews.train, reviews.validation, reviews.test)] == [10, 12, 14]
    for name in ("train", "test"):
        part = getattr(reviews, name)
        assert int(part.labels.sum()) * 2 == len(part), name
        full = getattr(whole, name)
        where = {row: i for i, row in enumerate(full.rows.tolist())}
        assert tokens(part) == [tokens(full)[where[row]] for row in part.rows.tolist()], name
    with pytest.raises(
        InputError, match=r"data\.max_train_samples=32 needs 16 reviews of class negative, there are 15$"
    ):
        load_reviews(replace(files, max_train_samples=32))


# ---------------------------------------------------------------- held-out splits with few reviews of a class


def warnings_of(caplog) -> list[str]:
    return [message for message in caplog.messages if message.startswith("warning")]


@pytest.mark.parametrize(("count", "is_few"), [(29, True), (30, False)])
def test_held_out_split_with_few_reviews_of_a_class_is_named_in_a_warning(tmp_path, caplog, count, is_few):
    paths = {}
    for name, negative, positive in (("train", 2, 2), ("validation", 40, count), ("test", count, 50)):
        reviews = [(f"{i}", 0) for i in range(negative)] + [(f"{i}", 1) for i in range(positive)]
        paths[name] = str(write_yelp(tmp_path / f"{name}.csv", reviews))
    load_reviews(DataConfig("files", **paths, max_length=3, cache_dir=str(tmp_path / "cache")))
    few = [
        f"warning: the {name} split has {counts} reviews; with fewer than 30 of a class, its metrics are rough"
        for name, counts in (("validation", "40 negative and 29 positive"), ("test", "29 negative and 50 positive"))
    ]
    assert warnings_of(caplog) == (few if is_few else [])


def test_held_out_split_of_one_class_is_named_in_a_warning(tmp_path, caplog):
    """The first test reviews, of a file that is sorted by class."""
    paths = {
        name: str(write_yelp(tmp_path / f"{name}.csv", [("a", 0)] * 40 + [("b", 1)] * 40)) for name in ("train", "test")
    }
    load_reviews(DataConfig("files", **paths, max_length=3, validation_first=35, cache_dir=str(tmp_path / "cache")))
    assert warnings_of(caplog) == [
        "warning: the validation split has 35 negative and 0 positive reviews; with one class only, its accuracy and "
        "F1 are no result"
    ]


# ---------------------------------------------------------------- padding


def padded(sequences: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Ids and mask, padded one row at a time."""
    width = max(map(len, sequences))
    ids = [ids + [0] * (width - len(ids)) for ids in sequences]
    return ids, [[1] * len(row) + [0] * (width - len(row)) for row in sequences]


def test_ragged_rows_are_padded_with_zeros_at_the_end():
    batch = pad(np.array([0, 3, 4, 9]), np.array([11, 12, 13, 21, 31, 32, 33, 34, 35], dtype=np.int32))
    assert batch["input_ids"].tolist() == [[11, 12, 13, 0, 0], [21, 0, 0, 0, 0], [31, 32, 33, 34, 35]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_token_with_the_padding_id_is_not_masked():
    batch = pad(np.array([0, 2, 5]), np.array([0, 7, 8, 0, 9]))
    assert batch["input_ids"].tolist() == [[0, 7, 0], [8, 0, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_one_row_of_one_token_is_a_batch():
    batch = pad(np.array([0, 1]), np.array([5]))
    assert (batch["input_ids"].tolist(), batch["attention_mask"].tolist()) == ([[5]], [[1]])


def test_sliced_list_column_is_padded_from_its_offset():
    rows = [[1, 2], [3, 4, 5, 6], [7], [8, 9], [10, 11, 12]]
    column = pa.array(rows, pa.list_(pa.int32())).slice(1, 3)
    assert column.offsets[0].as_py() == 2
    batch = pad(column.offsets.to_numpy(), column.values.to_numpy())
    assert (batch["input_ids"].tolist(), batch["attention_mask"].tolist()) == padded(rows[1:4])


ROWS = [list(range(100 * i + 1, 100 * i + 2 + (7 * i) % 11)) for i in range(23)]


@pytest.fixture
def tokenized() -> TokenizedReviews:
    features = Features(
        {
            "text": Value("string"),
            "label": datasets.ClassLabel(names=data.LABELS),
            "row": Value("int64"),
            "input_ids": datasets.List(Value("int32")),
            "length": Value("int32"),
        }
    )
    columns = {
        "text": [f"text {i}" for i in range(len(ROWS))],
        "label": [i * i % 3 % 2 for i in range(len(ROWS))],
        "row": [1000 + i for i in range(len(ROWS))],
        "input_ids": ROWS,
        "length": list(map(len, ROWS)),
    }
    return TokenizedReviews(Dataset.from_dict(columns, features=features))


@pytest.mark.parametrize(
    "indices", [[0], [22], [3, 4, 5], [20, 21, 22], [5, 3, 19, 4], [7, 7, 0], list(range(23))], ids=str
)
@pytest.mark.parametrize("part", [range(23), range(4, 27), [9, 2, 17, 16, 5] * 5], ids=["all", "sliced", "picked"])
def test_batch_equals_its_reviews_padded_row_by_row(tokenized, part, indices):
    part = [i % 23 for i in part]
    chosen = tokenized.dataset.select(part[: len(part) - 4] if part[0] == 4 else part)
    reviews = TokenizedReviews(chosen)
    indices = [i % len(reviews) for i in indices]
    batch = reviews[np.array(indices)]
    ids, mask = padded([ROWS[part[i]] for i in indices])
    assert batch["input_ids"].tolist() == ids
    assert batch["attention_mask"].tolist() == mask
    assert batch["labels"].tolist() == [part[i] ** 2 % 3 % 2 for i in indices]
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), torch.int64
    )


def test_columns_of_reviews_keep_their_order(tokenized):
    reviews = TokenizedReviews(tokenized.dataset.select([5, 2, 8]))
    assert len(reviews) == 3
    assert reviews.texts == ["text 5", "text 2", "text 8"]
    assert reviews.labels.tolist() == [1, 1, 1]
    assert reviews.rows.tolist() == [1005, 1002, 1008]
    assert reviews.lengths.tolist() == [len(ROWS[i]) for i in (5, 2, 8)]


def without_labels(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


@pytest.mark.parametrize("indices", [[0], [22], [5, 3, 19, 4], [7, 7, 0], list(range(23))], ids=str)
@pytest.mark.parametrize("kind", [list, np.array], ids=["lists", "arrays"])
def test_tokenized_texts_give_the_batches_of_tokenized_reviews(tokenized, indices, kind):
    texts = TokenizedTexts([kind(row) for row in ROWS])
    batch = texts[np.array(indices)]
    assert_same_tensors(batch, without_labels(tokenized[np.array(indices)]))
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_tokenized_texts_load_like_tokenized_reviews(tokenized):
    texts = TokenizedTexts(ROWS)
    assert len(texts) == len(tokenized)
    assert texts.lengths.tolist() == tokenized.lengths.tolist()
    batches = evaluation_batches(texts.lengths, 4)
    loaded = zip(batch_loader(texts, batches), batch_loader(tokenized, batches), strict=True)
    for batch, reviews in loaded:
        assert_same_tensors(batch, without_labels(reviews))


def test_no_texts_have_no_batches():
    texts = TokenizedTexts([])
    assert len(texts) == 0
    assert evaluation_batches(texts.lengths, 4) == []


# ---------------------------------------------------------------- batches


@pytest.fixture
def lengths() -> np.ndarray:
    return np.random.default_rng(5).integers(3, 257, size=2003)


def flat(batches: list[np.ndarray]) -> list[int]:
    return np.concatenate(batches).tolist()


def num_pads(batches: list[np.ndarray], lengths: np.ndarray) -> int:
    """Pads in all batches together."""
    return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches)


@settings(deadline=None)
@given(
    lengths=arrays(np.int64, st.integers(1, 400), elements=st.integers(1, 9)),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(1, 10),
    group_by_length=st.booleans(),
)
# The ends of an epoch, of a batch and of a window, which random examples may miss.
@example(lengths=np.full(1, 3), batch_size=4, seed=0, epoch=1, group_by_length=True)
@example(lengths=np.full(4, 3), batch_size=4, seed=0, epoch=1, group_by_length=True)
@example(lengths=np.full(2 * data.BUCKET_BATCHES, 3), batch_size=2, seed=0, epoch=1, group_by_length=True)
@example(lengths=np.full(2 * data.BUCKET_BATCHES + 1, 3), batch_size=2, seed=0, epoch=1, group_by_length=True)
@example(lengths=np.full(5, 3), batch_size=4, seed=0, epoch=1, group_by_length=False)
def test_epoch_contains_every_review_exactly_once(lengths, batch_size, seed, epoch, group_by_length):
    batches = training_batches(lengths, batch_size, seed, epoch, group_by_length)
    assert sorted(flat(batches)) == list(range(len(lengths)))
    full, rest = divmod(len(lengths), batch_size)
    assert sorted(map(len, batches)) == [rest] * (rest > 0) + [batch_size] * full


@pytest.mark.parametrize("group_by_length", [True, False])
def test_training_batches_depend_on_seed_and_epoch_alone(lengths, group_by_length):
    first = flat(training_batches(lengths, 16, 3, 1, group_by_length))
    np.random.seed(9)
    assert flat(training_batches(lengths, 16, 3, 1, group_by_length)) == first
    assert flat(training_batches(lengths, 16, 3, 2, group_by_length)) != first
    assert flat(training_batches(lengths, 16, 4, 1, group_by_length)) != first
    # Seed and epoch count apart, not by their sum.
    assert flat(training_batches(lengths, 16, 1, 3, group_by_length)) != first


@pytest.mark.parametrize("group_by_length", [True, False])
def test_reviews_of_equal_length_are_regrouped_every_epoch(group_by_length):
    equal = np.full(64, 7)
    first, second = (
        {frozenset(batch.tolist()) for batch in training_batches(equal, 4, 0, epoch, group_by_length)}
        for epoch in (1, 2)
    )
    assert len(first & second) <= 1


def test_grouping_by_length_saves_most_padding(lengths):
    grouped = training_batches(lengths, 16, 0, 1)
    assert num_pads(grouped, lengths) * 10 < num_pads(training_batches(lengths, 16, 0, 1, False), lengths)


def test_grouped_batches_are_not_in_order_of_length(lengths):
    batches = training_batches(lengths, 16, 0, 1)
    longest = [int(lengths[batch].max()) for batch in batches]
    steps = np.sign(np.diff(longest))
    # In sorted windows the lengths would rise but for the seams; shuffled ones change direction at every other step.
    assert (np.diff(steps) != 0).sum() > len(batches) / 3


def test_evaluation_batches_contain_every_review_once_in_order_of_length(lengths):
    batches = evaluation_batches(lengths, 128)
    assert sorted(flat(batches)) == list(range(2003))
    assert [len(batch) for batch in batches] == [128] * 15 + [83]
    in_order = lengths[flat(batches)]
    assert (np.diff(in_order) >= 0).all()
    assert flat(batches) == flat(evaluation_batches(lengths, 128))


def test_loader_yields_the_batches_in_order(tokenized):
    batches = training_batches(tokenized.lengths, 4, 0, 1)
    loaded = list(batch_loader(tokenized, batches))
    assert len(loaded) == len(batches) == 6
    for batch, indices in zip(loaded, batches, strict=True):
        assert batch.keys() == {"input_ids", "attention_mask", "labels"}
        assert_same_tensors(batch, tokenized[indices])


def random_states() -> list[bytes | str]:
    return [torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())]


def test_batches_leave_the_global_random_states_unchanged(tokenized):
    """Otherwise the dropout of a run would depend on how often it was evaluated."""
    before = random_states()
    batches = training_batches(tokenized.lengths, 4, 0, 1)
    for chosen in (batches, evaluation_batches(tokenized.lengths, 4)):
        assert isinstance(loader := batch_loader(tokenized, chosen), Iterator)
        assert len(list(loader)) == 6
    assert random_states() == before


# ---------------------------------------------------------------- atomic writes


def fill(path: Path, content: str) -> None:
    """A file, or a folder with a file of the name `content`, by the name of `path`."""
    if path.suffix:
        path.write_text(content)
    else:
        path.mkdir()
        write_file(path, content, content)


def read(path: Path) -> str:
    """What `fill` wrote at `path`, with nothing left of what stood there before."""
    if path.suffix:
        return path.read_text()
    (file,) = path.iterdir()
    assert file.read_text() == file.name
    return file.name


@pytest.fixture(params=["file.json", "folder"])
def target(request, tmp_path) -> Path:
    """Of a file or a folder, in a folder of its own that is not there yet."""
    return tmp_path / "made" / request.param


def test_atomic_path_makes_the_whole_target_when_the_block_ends(target):
    with atomic_path(target) as partial:
        fill(partial, "new")
        assert not target.exists()
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_path_replaces_the_target_when_the_block_ends(target):
    target.parent.mkdir()
    fill(target, "old")
    with atomic_path(target) as partial:
        fill(partial, "new")
        assert read(target) == "old"
    assert read(target) == "new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_failed_block_leaves_the_target_as_it_was(target, error):
    for before in ([], [target]):
        with pytest.raises(error, match="half-way"), atomic_path(target) as partial:  # noqa: PT012
            fill(partial, "new")
            raise error("half-way")
        assert list(target.parent.iterdir()) == before
        if not before:
            fill(target, "old")
    assert read(target) == "old"


def test_failed_rename_restores_the_target(target, monkeypatch):
    def refuse(self, target):
        raise OSError(errno.EIO, "rename failed")

    target.parent.mkdir()
    fill(target, "old")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="rename failed"), atomic_path(target) as partial:
        fill(partial, "new")
    assert read(target) == "old"
    assert list(target.parent.iterdir()) == [target]


def test_without_replace_the_target_of_another_process_stays(target):
    with atomic_path(target, replace=False) as partial:
        fill(partial, "new")
        fill(target, "other")
    assert read(target) == "other"
    assert list(target.parent.iterdir()) == [target]


def test_without_replace_a_rename_lost_to_another_process_is_no_error(target, monkeypatch):
    def overtaken(source, target, aside):
        fill(target, "other")
        raise OSError(errno.ENOTEMPTY, "directory not empty")

    monkeypatch.setattr(data, "_move", overtaken)
    with atomic_path(target, replace=False) as partial:
        fill(partial, "new")
    assert read(target) == "other"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(("error", "is_made"), [(OSError, False), (ValueError, True)])
def test_without_replace_other_errors_are_raised(target, error, is_made):
    with pytest.raises(error, match="half-way"), atomic_path(target, replace=False):  # noqa: PT012
        if is_made:
            fill(target, "other")
        raise error("half-way")


FULL_DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("Error while serializing: IoError(Os { code: 28, message: No space left on device })"),
]


@pytest.fixture
def free_space(monkeypatch) -> None:
    """3.4 MB are free on every disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_400_000))


@pytest.mark.parametrize("error", FULL_DISK, ids=["space", "quota", "safetensors"])
@pytest.mark.parametrize("replace", [True, False])
def test_full_disk_is_one_message_with_path_needed_and_free_space(target, free_space, error, replace):
    with pytest.raises(RunError) as caught, atomic_path(target, 12_000_000, replace, " (or a hint)"):
        raise error
    assert str(caught.value) == (
        f"{target}: no space left on the disk: 12.0 MB are needed and 3.4 MB are free; what was saved before is "
        "untouched: free some space (or a hint) and run the same command again"
    )
    assert list(target.parent.iterdir()) == []


def test_full_disk_leaves_the_target_as_it_was(target, free_space):
    target.parent.mkdir()
    fill(target, "old")
    message = f"^{re.escape(str(target))}: no space left on the disk: 3.4 MB are free; "
    with pytest.raises(RunError, match=message), atomic_path(target) as partial:  # noqa: PT012
        fill(partial, "new")
        raise FULL_DISK[0]
    assert read(target) == "old"
    assert list(target.parent.iterdir()) == [target]


def test_free_space_is_that_of_the_disk_of_a_folder_not_made_yet(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    data.disk_full_error(tmp_path / "not" / "made" / "file.json")
    monkeypatch.chdir(tmp_path)
    data.disk_full_error(Path("file.json"))
    assert asked == [tmp_path, tmp_path]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "input/output error"), ValueError("no space"), MemoryError()])
def test_other_errors_are_not_a_full_disk(error):
    assert not is_disk_full(error)


def test_write_text_replaces_a_file_in_utf_8(tmp_path):
    path = tmp_path / "made" / "notes.txt"
    for text in ("caf\u00e9 \u2603\n", "shorter"):
        write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


def test_write_text_on_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_file(tmp_path, "notes.txt", "old")

    def refuse(self, text, encoding=None):
        raise FULL_DISK[0]

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(RunError, match=r"notes\.txt: no space left on the disk: 0\.0 MB are needed and "):
        write_text(path, "new")
    assert path.read_text() == "old"
