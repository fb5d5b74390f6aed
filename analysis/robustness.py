"""Robustness of trained models: accuracy lost on perturbed text, its significance, and what changes in the input.

    python -m analysis.robustness RUN_DIR [RUN_DIR ...] --output robustness.json

Every model reads the same perturbed texts. A loss of accuracy is a paired difference on the same reviews, with a 95%
interval and a test. What a perturbation changes in a model's input is measured on its tokens. A measurement that was
killed resumes when the same command is run again.
"""

import argparse
import hashlib
import inspect
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import false_discovery_control
from tqdm import tqdm

from analysis.attack import attack
from analysis.logs import files_of_runs, identify, load_run
from analysis.robustness_figures import figure_paths, write_figures
from analysis.statistics import check_classes, is_correct, mcnemar_p, paired_interval
from config import InputError, load_config
from data import balanced_subset, file_digest, load_reviews, read_file, warn_of_few_reviews, write_text
from models import WEIGHTS
from perturbations import LETTER_EDITS, PERTURBATIONS, WORD, WORD_EDITS, perturb
from predict import TrainedModel, predicted_labels
from training.command import check_output, run_command
from training.device import device_name, pick_device

_log = logging.getLogger(__name__)

AMOUNTS = (0.15, 0.4, 0.8)
# A perturbation -> its controls, against which its effect is measured and not assumed: the same words as [UNK] or
# removed; the same sentence at the other end; and the same tokens without those that occur in no training review, whose
# vectors were never trained.
UNTRAINED_REMOVED = "untrained tokens removed"
CONTROLS = {
    "homoglyph": ("homoglyph_unknown", "homoglyph_removed", UNTRAINED_REMOVED),
    "qwerty": ("qwerty_unknown", "qwerty_removed", UNTRAINED_REMOVED),
    "antonym": ("antonym_removed",),
    "distractor_front": ("distractor_end",),
}
COMPOSITIONS = (
    LETTER_EDITS,
    WORD_EDITS,
    ("contraction", "homoglyph"),
    ("qwerty", "joined"),
    ("uppercase", "punctuation", "spaces"),
    ("names", "numbers"),
    ("dropped", "shuffled"),
    ("negation_removed", "antonym"),
    ("distractor_front", "distractor_end"),
    ("truncated_front", "truncated_end"),
)
COMPOSITION_LABELS = {WORD_EDITS: "all eight word edits", LETTER_EDITS: "five letter edits"}
# Flipped reviews kept for each model and condition.
NUM_EXAMPLES = 2
PART_KEYS = ("rows", "mechanisms", "examples")

# (name, compute) -> the result of `compute`, or the one that is stored under that name.
Cache = Callable[[str, Callable[[], dict]], dict]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description="Robustness of trained models against perturbations of the text.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument(
        "--data", type=Path, metavar="FILE", help="labelled reviews; default: the first run's validation split"
    )
    parser.add_argument("--reviews", type=int, metavar="N", help="a random N, half of each class; default: all")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="JSON log x.json; the plots x_*.png stand beside it"
    )
    amounts = {"default": list(AMOUNTS), "metavar": "AMOUNT", "help": "shares of the eligible places to change"}
    parser.add_argument("--amounts", type=float, nargs="+", **amounts)
    parser.add_argument("--seed", type=int, default=0, help="of the perturbations and the choice of reviews")
    attack_help = "reviews to attack, a random N, half of each class; 0: no attack"
    parser.add_argument("--attack", type=int, default=500, metavar="N", help=attack_help)
    parser.add_argument("--budget", type=int, default=5, metavar="N", help="words of a review that the attack may edit")
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure_runs(options))


@dataclass(frozen=True)
class Condition:
    """Perturbations applied one after the other, each with the same amount."""

    names: tuple[str, ...]
    amount: float

    @property
    def label(self) -> str:
        """`qwerty + joined`"""
        return COMPOSITION_LABELS.get(self.names) or " + ".join(self.names)

    @property
    def kind(self) -> str:
        """The kind of its perturbation; "composition" of several."""
        return PERTURBATIONS[self.names[0]].kind if len(self.names) == 1 else "composition"


@dataclass(frozen=True)
class NamedModel:
    """A trained model, and the name of its results.

    Args:
        name: unique among the models that are measured together: `4`, or `4 seed 1`.
        label: short name, such as `LSTM encoder-decoder + attention`.
        seed: of its training.
        trained: the model.
        weights: digest of its weights.
        tokenization: the tokenizer's settings and the length limit; models in which they are equal share the tokens.
    """

    name: str
    label: str
    seed: int
    trained: TrainedModel
    weights: str
    tokenization: str


@dataclass(frozen=True)
class Sample:
    """Cleaned reviews, their labels, (n,) 0/1, the seed of their perturbations, and the training reviews; without
    these every token counts as untrained."""

    texts: Sequence[str]
    labels: np.ndarray
    seed: int = 0
    training_texts: Sequence[str] = ()


@dataclass(frozen=True)
class Tokens:
    """Texts as one model reads them: ids cut to the length limit, and those left out; tokens before the cut and [UNK]s
    among them, (n,)."""

    ids: list[list[int]]
    left_out: list[list[int]]
    lengths: np.ndarray
    num_unknown: np.ndarray
    max_length: int

    @property
    def is_whole(self) -> np.ndarray:
        """(n,) bool: whether the model reads the whole text."""
        return self.lengths <= self.max_length


@dataclass(frozen=True)
class Clean:
    """The unperturbed reviews: their tokens by tokenization; the probabilities of positive, (n,), by model name; and by
    tokenization the ids that the training reviews have within the limit."""

    tokens: dict[str, Tokens]
    probabilities: dict[str, np.ndarray]
    trained_ids: dict[str, frozenset[int]]


def all_conditions(amounts: Sequence[float] = AMOUNTS) -> list[Condition]:
    """Every perturbation and composition at every amount; controls have rows of their own (`measure_controls`)."""
    names = [*((name,) for name, p in PERTURBATIONS.items() if p.kind != "control"), *COMPOSITIONS]
    return [Condition(steps, amount) for steps in names for amount in amounts]


def load_models(run_dirs: Sequence[Path]) -> list[NamedModel]:
    """The models of some runs, each under a name that is unique among them (`analysis.logs.identify`), and computing in
    the precision in which it was trained, where this device can.

    Raises:
        InputError: a folder has no summary or no model, or two runs can't be told apart.
    """
    models = []
    for name, run in identify([load_run(run_dir) for run_dir in run_dirs]).items():
        weights = file_digest(run.folder / "best" / WEIGHTS)
        trained = TrainedModel(run.folder, _precision(run.folder))
        about = run.summary["architecture"], run.summary["seed"]
        models.append(NamedModel(name, *about, trained, weights, _tokenization(trained)))
    return models


def measure(
    models: Sequence[NamedModel],
    sample: Sample,
    conditions: Sequence[Condition],
    cache: Cache = lambda name, compute: compute(),
    report: Callable[[str], None] = lambda line: None,
) -> dict:
    """Every model under every condition.

    Args:
        models: to compare.
        sample: reviews.
        conditions: perturbations and amounts.
        cache: stores and returns parts by name (`Parts`).
        report: receives a line after each condition.

    Returns:
        What the JSON log holds: `models`, `rows` (one for each model and condition), `mechanisms` (one for each
        condition and tokenization) and `examples`.
    """
    clean = read_clean(models, sample, cache)
    parts = []
    for condition in tqdm(conditions, desc="conditions", leave=False, disable=None):
        compute = partial(measure_condition, models, sample, clean, condition)
        parts.append(cache(f"{condition.label} {condition.amount:g}", compute))
        report(_progress(condition, parts[-1]["rows"]))
    rows, mechanisms, examples = ([item for part in parts for item in part[key]] for key in PART_KEYS)
    adjusted = false_discovery_control([row["mcnemar_p"] for row in rows])
    return {
        "reviews": len(sample.texts),
        "seed": sample.seed,
        "device": device_name(models[0].trained.device),
        "correction": "Benjamini-Hochberg over all rows",
        "models": [_describe_model(model, clean, sample.labels) for model in models],
        "rows": [{**row, "adjusted_p": float(p)} for row, p in zip(rows, adjusted, strict=True)],
        "mechanisms": mechanisms,
        "examples": examples,
    }


def read_clean(models: Sequence[NamedModel], sample: Sample, cache: Cache = lambda name, compute: compute()) -> Clean:
    """The tokens of the reviews, and what each model makes of them."""
    tokens = encode_once(models, sample.texts)

    def probabilities() -> dict[str, list[float]]:
        return {
            model.name: model.trained.probabilities_of_ids(tokens[model.tokenization].ids).tolist() for model in models
        }

    distinct = {model.tokenization: model.trained for model in models}
    trained_ids = {
        tokenization: frozenset(i for ids in trained.token_ids(["", *sample.training_texts]) for i in ids)
        for tokenization, trained in distinct.items()
    }
    by_name = {name: np.array(values) for name, values in cache("clean", probabilities).items()}
    return Clean(tokens, by_name, trained_ids)


def measure_condition(models: Sequence[NamedModel], sample: Sample, clean: Clean, condition: Condition) -> dict:
    """The rows, mechanisms and examples of one condition."""
    perturbed = perturb(sample.texts, condition.names, condition.amount, sample.seed)
    tokens = encode_once(models, perturbed)
    where = {"condition": condition.label, "kind": condition.kind, "amount": condition.amount}
    mechanisms = [
        {
            **where,
            **input_changes(sample.texts, perturbed, clean.tokens[key], after),
            **window_changes(clean.tokens[key], after, clean.trained_ids[key]),
        }
        for key, after in tokens.items()
    ]
    changed = np.array([old != new for old, new in zip(sample.texts, perturbed, strict=True)])
    rows, examples = [], []
    for model in models:
        before = clean.probabilities[model.name]
        after = _probabilities_after(model, clean, tokens[model.tokenization].ids)
        is_whole = clean.tokens[model.tokenization].is_whole & tokens[model.tokenization].is_whole
        row = {"model": model.name, **where, **compare(before, after, sample.labels)}
        row["uncut"] = compare_uncut(before, after, sample.labels, is_whole)
        if condition.kind == "directional":
            expects = PERTURBATIONS[condition.names[0]].expects
            row |= directional_effect(before, after, sample.labels, changed, expects)
        rows.append(row)
        origin = {key: row[key] for key in ("model", "condition", "amount")}
        examples += [{**origin, **example} for example in _flipped_reviews(sample, perturbed, before, after)]
    return {"rows": rows, "mechanisms": mechanisms, "examples": examples}


def measure_controls(
    models: Sequence[NamedModel], sample: Sample, clean: Clean, amounts: Sequence[float]
) -> list[dict]:
    """Each perturbation of `CONTROLS` against its controls, which change the same words of the same reviews.

    Returns:
        A row for each perturbation, control, amount and model, as of `compare`: `drop` is the accuracy that the
        perturbation loses in addition to its control.
    """
    rows = []
    pairs = [(name, amount) for name in CONTROLS for amount in amounts]
    for name, amount in tqdm(pairs, desc="controls", leave=False, disable=None):
        perturbed = encode_once(models, perturb(sample.texts, name, amount, sample.seed))
        after = {m.name: _probabilities_after(m, clean, perturbed[m.tokenization].ids) for m in models}
        for control in CONTROLS[name]:
            ids = control_ids(control, models, sample, clean, perturbed, amount)
            for model in models:
                before = _probabilities_after(model, clean, ids[model.tokenization])
                row = {"model": model.name, "condition": name, "control": control, "amount": amount}
                rows.append({**row, **compare(before, after[model.name], sample.labels)})
    return rows


def control_ids(
    control: str,
    models: Sequence[NamedModel],
    sample: Sample,
    clean: Clean,
    perturbed: dict[str, Tokens],
    amount: float,
) -> dict[str, list[list[int]]]:
    """By tokenization, the ids that a control of the perturbed reviews gives to the models."""
    if control == UNTRAINED_REMOVED:
        return {
            tokenization: [[i for i in ids if i in clean.trained_ids[tokenization]] for ids in tokens.ids]
            for tokenization, tokens in perturbed.items()
        }
    tokens = encode_once(models, perturb(sample.texts, control, amount, sample.seed))
    return {tokenization: read.ids for tokenization, read in tokens.items()}


def compare(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict:
    """What a perturbation changes in the predictions of one model.

    Args:
        before: (n,) probabilities of positive on the unperturbed texts.
        after: (n,) those on the perturbed texts.
        labels: (n,) 0/1.

    Returns:
        Accuracy on the perturbed texts, its drop with a 95% interval, the number of reviews whose prediction became
        wrong (`lost`) and correct (`won`), McNemar's p, the share of flipped predictions, and the mean change of the
        true label's probability.
    """
    correct_before, correct_after = is_correct(before, labels), is_correct(after, labels)
    lost, won = int((correct_before & ~correct_after).sum()), int((~correct_before & correct_after).sum())
    return {
        "accuracy": float(correct_after.mean()),
        "drop": (lost - won) / len(labels),
        "drop_interval": paired_interval(lost, won, len(labels)),
        "lost": lost,
        "won": won,
        "mcnemar_p": mcnemar_p(lost, won),
        "flip_rate": float((predicted_labels(before) != predicted_labels(after)).mean()),
        "probability_change": float(np.where(labels == 1, after - before, before - after).mean()),
    }


def compare_uncut(before: np.ndarray, after: np.ndarray, labels: np.ndarray, is_whole: np.ndarray) -> dict:
    """`accuracy` and `drop`, as of `compare`, on the reviews that a model reads whole both before and after, where the
    length limit plays no part; `reviews` says how many. Without any, the others are None.

    Args:
        before, after, labels: as of `compare`.
        is_whole: (n,) bool.
    """
    num_reviews = int(is_whole.sum())
    if not num_reviews:
        return {"reviews": 0, "accuracy": None, "drop": None, "drop_interval": None}
    row = compare(before[is_whole], after[is_whole], labels[is_whole])
    return {"reviews": num_reviews} | {key: row[key] for key in ("accuracy", "drop", "drop_interval")}


def directional_effect(
    before: np.ndarray, after: np.ndarray, labels: np.ndarray, changed: np.ndarray, expects: int | None
) -> dict:
    """Whether a change of meaning moves the predictions of one model as it should.

    Args:
        before: (n,) probabilities of positive on the unperturbed texts.
        after: (n,) those on the perturbed texts.
        labels: (n,) 0/1.
        changed: (n,) whether the perturbation changed the text.
        expects: the label that the change argues for; None if it reverses what the text says.

    Returns:
        `num_targeted`, the number of changed reviews against whose label the change argues; of these `share_lowered`,
        the share whose true label lost probability, and `share_flipped`, the share whose prediction changed from
        correct to wrong, which is desired here. Both are None if there are no such reviews.
    """
    targeted = changed & (labels != expects) if expects is not None else changed
    if not targeted.any():
        return {"num_targeted": 0, "share_lowered": None, "share_flipped": None}
    change = np.where(labels == 1, after - before, before - after)[targeted]
    flipped = is_correct(before, labels) & ~is_correct(after, labels)
    return {
        "num_targeted": int(targeted.sum()),
        "share_lowered": float((change < 0).mean()),
        "share_flipped": float(flipped[targeted].mean()),
    }


def input_changes(texts: Sequence[str], perturbed: Sequence[str], before: Tokens, after: Tokens) -> dict:
    """What a perturbation changes in the words and tokens: shares and means over the reviews.

    Changed words are those that the perturbed text no longer has, so words that only move are not counted.
    """
    pairs = list(zip(texts, perturbed, strict=True))
    num_changed = sum((Counter(WORD.findall(old)) - Counter(WORD.findall(new))).total() for old, new in pairs)
    past_limit = (after.lengths > after.max_length) & (before.lengths <= before.max_length)
    return {
        "reviews_changed": float(np.mean([old != new for old, new in pairs])),
        "words_changed": num_changed / max(1, sum(len(WORD.findall(text)) for text in texts)),
        "tokens_added": float(after.lengths.sum() / before.lengths.sum() - 1),
        "unknown_before": float(before.num_unknown.sum() / before.lengths.sum()),
        "unknown_after": float(after.num_unknown.sum() / after.lengths.sum()),
        "pushed_past_the_limit": float(past_limit.mean()),
        "token_limit": before.max_length,
    }


def window_changes(before: Tokens, after: Tokens, trained_ids: frozenset[int]) -> dict:
    """What a perturbation changes in the tokens that a model sees, as shares of the visible tokens over all reviews.

    Args:
        before: tokens of the unperturbed texts.
        after: those of the perturbed ones.
        trained_ids: that occur in training.

    Returns:
        `tokens_lost`, that the model sees no longer, and of these `pushed_out`, which the text still has behind the
        limit; `tokens_new`, that it did not see before, and of these `let_in`, which the text had behind the limit
        (shares of the visible tokens before; counted as multisets, so a token that moves within the limit is neither).
        `untrained_before` and `untrained_after`: visible tokens that occur in no training review within the limit.
    """
    lost = pushed_out = new = let_in = 0
    for old, old_rest, ids, rest in zip(before.ids, before.left_out, after.ids, after.left_out, strict=True):
        gone, added = Counter(old) - Counter(ids), Counter(ids) - Counter(old)
        lost, new = lost + gone.total(), new + added.total()
        pushed_out += (gone & Counter(rest)).total()
        let_in += (added & Counter(old_rest)).total()
    num_before, num_after = (sum(map(len, tokens.ids)) for tokens in (before, after))
    untrained = [sum(i not in trained_ids for ids in tokens.ids for i in ids) for tokens in (before, after)]
    return {
        "tokens_lost": lost / num_before,
        "pushed_out": pushed_out / num_before,
        "tokens_new": new / num_before,
        "let_in": let_in / num_before,
        "untrained_before": untrained[0] / num_before,
        "untrained_after": untrained[1] / num_after,
    }


def encode(model: TrainedModel, texts: Sequence[str]) -> Tokens:
    """The tokens of any texts; [CLS] and [SEP] alone of an empty one."""
    encoded = model.tokenizer(list(texts), truncation=True, max_length=model.max_length)
    num_special = model.tokenizer.num_special_tokens_to_add()
    lengths, num_unknown, left_out = [], [], []
    for encoding in encoded.encodings:
        # The tokens after the cut are in further pieces, each with special tokens of its own.
        pieces = [encoding, *encoding.overflowing]
        lengths.append(num_special + sum(len(piece) - num_special for piece in pieces))
        num_unknown.append(sum(piece.ids.count(model.tokenizer.unk_token_id) for piece in pieces))
        further = [zip(piece.ids, piece.special_tokens_mask, strict=True) for piece in encoding.overflowing]
        left_out.append([i for piece in further for i, is_special in piece if not is_special])
    return Tokens(encoded["input_ids"], left_out, np.array(lengths), np.array(num_unknown), model.max_length)


def encode_once(models: Sequence[NamedModel], texts: Sequence[str]) -> dict[str, Tokens]:
    """The texts' tokens by tokenization; models of the same tokenization share them."""
    distinct = {model.tokenization: model.trained for model in models}
    return {tokenization: encode(trained, texts) for tokenization, trained in distinct.items()}


def mark_changes(before: str, after: str, num_before: int = 12, max_characters: int = 300) -> tuple[str, str]:
    """Excerpts of both texts in which the words that the other does not have at that place are in double brackets.

    Args:
        before: a text.
        after: the same text, perturbed.
        num_before: words kept before the first change.
        max_characters: length of an excerpt.
    """
    old, new = before.split(), after.split()
    opcodes = SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = [opcode[1:] for opcode in opcodes if opcode[0] != "equal"]
    removed = {i for start, end, _, _ in changes for i in range(start, end)}
    added = {i for _, _, start, end in changes for i in range(start, end)}
    # Both texts have the same words up to the first change.
    first = max(0, changes[0][0] - num_before) if changes else 0
    return _excerpt(old, removed, first, max_characters), _excerpt(new, added, first, max_characters)


class Parts:
    """A `Cache` in a file, a JSON line for each part, so that a killed measurement resumes.

    Args:
        output: the log that is measured; the file is written beside it.
        identity: everything that the parts depend on; another identity uses another file.
    """

    def __init__(self, output: Path, identity: Sequence[str]):
        digest = hashlib.sha256("\0".join(identity).encode("utf-8", "surrogatepass")).hexdigest()
        self.path = output.with_name(f"{output.stem}-{digest[:12]}.part.jsonl")
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        parts = [_read_part(line) for line in lines]
        self._parts: dict[str, dict] = {name: value for part in parts for name, value in part.items()}
        if not all(parts):
            # A killed process may have left an incomplete last line.
            _log.warning("%s: %d damaged lines; what they held is measured again", self.path, parts.count({}))
            write_text(self.path, "".join(json.dumps(part) + "\n" for part in parts if part))

    def __call__(self, name: str, compute: Callable[[], dict]) -> dict:
        """The part of that name: read from the file, or computed and written."""
        if name not in self._parts:
            line = json.dumps({name: compute()}, allow_nan=False)
            with self.path.open("a") as file:
                file.write(line + "\n")
            self._parts |= json.loads(line)
        return self._parts[name]


# ---------------------------------------------------------------- the command


def _read_part(line: bytes) -> dict:
    """The part in a line of the file of parts; empty if the line is damaged."""
    try:
        part = json.loads(line)
    except ValueError:
        return {}
    return part if isinstance(part, dict) else {}


def _measure_runs(options: argparse.Namespace) -> None:
    _check_options(options)
    for path in (options.output, *figure_paths(options.output).values()):
        check_output(path, *filter(None, [options.data]), *files_of_runs(options.run_dirs))
    models = load_models(options.run_dirs)
    sample = _read_sample(options.run_dirs[0], options.data, options.reviews, options.seed)
    parts = Parts(options.output, _identity(models, sample))
    conditions = all_conditions(options.amounts)
    log = measure(models, sample, conditions, parts, _print_line)
    log["controls"] = parts(
        f"controls {options.amounts}",
        lambda: {"rows": measure_controls(models, sample, read_clean(models, sample, parts), options.amounts)},
    )["rows"]
    log["attacks"] = _measure_attacks(models, sample, options.attack, options.budget, parts)
    log["conditions"] = [asdict(condition) for condition in conditions]
    write_text(options.output, json.dumps(log, indent=1, allow_nan=False) + "\n")
    write_figures(log, options.output)
    parts.path.unlink(missing_ok=True)


def _print_line(line: str) -> None:
    """Print above the progress bar."""
    with tqdm.external_write_mode():
        print(line, flush=True)


def _check_options(options: argparse.Namespace) -> None:
    if len(set(options.amounts)) < len(options.amounts):
        raise InputError(f"--amounts: found {options.amounts}; expected every amount once")
    for amount in options.amounts:
        if not 0 <= amount <= 1:
            raise InputError(f"--amounts: found {amount:g}; expected shares from 0 to 1")
    for name, lowest in (("seed", 0), ("attack", 0), ("budget", 0), ("reviews", 2)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise InputError(f"--{name}: found {value}; expected an integer of at least {lowest}")
    if options.attack == 1:
        raise InputError("--attack: found 1; expected 0 for no attack, or at least 2, one review of each class")


def _read_sample(run_dir: Path, data: Path | None, num_reviews: int | None, seed: int) -> Sample:
    """The reviews of a file, or else of the run's validation split; a balanced sample of them if limited. The training
    reviews are the run's."""
    splits = load_reviews(load_config(run_dir / "config.yaml").data)
    if data is not None:
        reviews = read_file(data)
        texts, labels, where = list(reviews["text"]), np.array(reviews["label"]), str(data)
    else:
        split = splits.validation
        texts, labels, where = list(split.texts), split.labels, f"validation split of {run_dir}"
    check_classes(labels, where)
    if data is not None:
        # Those of a split have been counted where they were read.
        warn_of_few_reviews(where, labels)
    sample = Sample(texts, labels, seed, list(splits.train.texts))
    return sample if num_reviews is None else balanced_sample(sample, num_reviews)


def balanced_sample(sample: Sample, size: int) -> Sample:
    """At most `size` of the reviews, in their order: a random choice by the seed, of each class equally many (in an odd
    number one more that is negative)."""
    size = min(size, 2 * int(np.bincount(sample.labels, minlength=2).min()))
    chosen = balanced_subset(sample.labels, size, sample.seed, "sample")
    return replace(sample, texts=[sample.texts[i] for i in chosen], labels=sample.labels[chosen])


def _identity(models: Sequence[NamedModel], sample: Sample) -> list[str]:
    """Everything that a part depends on beside its name: code, models, reviews and seed."""
    code = [inspect.getfile(item) for item in (measure, attack, is_correct, perturb, TrainedModel)]
    return [
        *(Path(path).read_text() for path in code),
        *(part for model in models for part in (model.name, model.weights, model.tokenization)),
        *sample.texts,
        *sample.training_texts,
        str(sample.labels.tolist()),
        str(sample.seed),
    ]


def _measure_attacks(
    models: Sequence[NamedModel], sample: Sample, num_reviews: int, budget: int, cache: Cache
) -> list[dict]:
    """`attack` of each model on the same balanced sample of the reviews."""
    if not num_reviews:
        return []
    chosen = balanced_sample(sample, num_reviews)

    def attack_one(model: NamedModel) -> dict:
        accuracies = attack(model.trained, chosen.texts, chosen.labels, budget, sample.seed)
        return {"model": model.name, "reviews": len(chosen.texts), "budget": budget, **accuracies}

    bar = tqdm(models, desc="attacks", leave=False, disable=None)
    return [cache(f"attack {model.name} {num_reviews} {budget}", partial(attack_one, model)) for model in bar]


# ---------------------------------------------------------------- the measurement


def _tokenization(model: TrainedModel) -> str:
    settings = json.loads(model.tokenizer.backend_tokenizer.to_str())
    # The tokenizer's last call is not part of its settings.
    settings |= {"truncation": None, "padding": None}
    return json.dumps([settings, model.max_length], sort_keys=True)


def _precision(run_dir: Path) -> str:
    """That in which the run was trained, or fp32 where this device can't compute in it."""
    precision = load_config(run_dir / "config.yaml").train.precision
    try:
        pick_device("auto", precision)
    except InputError:
        return "fp32"
    return precision


def _describe_model(model: NamedModel, clean: Clean, labels: np.ndarray) -> dict:
    return {
        "model": model.name,
        "label": model.label,
        "seed": model.seed,
        "accuracy": float(is_correct(clean.probabilities[model.name], labels).mean()),
        "max_length": model.trained.max_length,
    }


def _progress(condition: Condition, rows: Sequence[dict]) -> str:
    drops = ", ".join(f"{row['model']}: {100 * row['drop']:.1f}" for row in rows)
    return f"{condition.label}, amount {condition.amount:g}: points of accuracy lost by model {drops}"


def _probabilities_after(model: NamedModel, clean: Clean, ids: Sequence[Sequence[int]]) -> np.ndarray:
    """(n,) probabilities on the perturbed texts; of a review with the same tokens the same one, to the last bit."""
    pairs = zip(clean.tokens[model.tokenization].ids, ids, strict=True)
    changed = [i for i, (old, new) in enumerate(pairs) if old != new]
    after = clean.probabilities[model.name].copy()
    if changed:
        after[changed] = model.trained.probabilities_of_ids([ids[i] for i in changed])
    return after


def _flipped_reviews(sample: Sample, perturbed: Sequence[str], before: np.ndarray, after: np.ndarray) -> list[dict]:
    """The reviews, predicted correctly before and wrongly after, whose probability changed most, with their texts."""
    lost = np.flatnonzero(is_correct(before, sample.labels) & ~is_correct(after, sample.labels))
    chosen = lost[np.argsort(-np.abs(after - before)[lost], kind="stable")][:NUM_EXAMPLES]
    examples = []
    for i in chosen:
        marked_before, marked_after = mark_changes(sample.texts[i], perturbed[i])
        examples.append(
            {
                "review": int(i),
                "label": int(sample.labels[i]),
                "probability_before": float(before[i]),
                "probability_after": float(after[i]),
                "before": marked_before,
                "after": marked_after,
            }
        )
    return examples


def _excerpt(words: Sequence[str], marked: set[int], first: int, max_characters: int) -> str:
    """The words from index `first` on, the marked ones in double brackets, cut at a word."""
    text = " ".join(f"[[{words[i]}]]" if i in marked else words[i] for i in range(first, len(words)))
    if len(text) > max_characters:
        text = text[:max_characters].rsplit(" ", 1)[0] + " ..."
    return "... " + text if first else text


if __name__ == "__main__":
    sys.exit(main())
