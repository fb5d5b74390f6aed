"""What happens to trained models when the text is damaged: how much accuracy is lost, whether it is real, and why.

    python perturbations.py RUN_DIR [RUN_DIR ...] --output robustness.json

Every model reads the same perturbed texts. A loss is a paired difference on the same reviews, with an interval and a
test; how the damage reaches the model is measured on its tokens.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import false_discovery_control

import perturbations
from analysis.figures import attack_curves, heat_map, mechanism_bars, severity_curves
from analysis.statistics import mcnemar_p, paired_interval
from config import InputError, load_config
from data import file_digest, load_reviews, read_file
from models import WEIGHTS, load_model
from perturbations import EIGHT, PERTURBATIONS, WORD, how_many, perturb, random_numbers, replace_spans
from predict import predict_tokens
from training.checkpoint import write_text
from training.device import device_name, pick_device

SEVERITIES = (0.15, 0.4, 0.8)
# What an explanation says, measured beside it: if homoglyphs hurt because their words become [UNK], the control that
# makes the same words [UNK] hurts as much.
CONTROLS = {"homoglyph": "unknown"}
PART_KEYS = ("rows", "mechanisms", "examples")
LETTER_EDITS = ("swap", "qwerty", "deletion", "insertion", "substitution")
LETTER_SWAPS = (*LETTER_EDITS, "homoglyph")
COMPOSITIONS = (
    LETTER_EDITS,
    EIGHT,
    ("contraction", "homoglyph"),
    ("qwerty", "joined"),
    ("uppercase", "punctuation", "spaces"),
    ("names", "numbers"),
    ("dropped", "shuffled"),
    ("negation_removed", "antonym"),
    ("distractor_front", "distractor_end"),
    ("truncated_front", "truncated_end"),
)


@dataclass(frozen=True)
class Condition:
    """Perturbations made one after the other, each with the same amount."""

    names: tuple[str, ...]
    amount: float

    @property
    def label(self) -> str:
        """`qwerty + joined`"""
        known = {EIGHT: "all eight swaps", LETTER_EDITS: "five letter edits"}
        return known.get(self.names) or " + ".join(self.names)

    @property
    def kind(self) -> str:
        """The kind of its perturbations; "composition" of several."""
        return PERTURBATIONS[self.names[0]].kind if len(self.names) == 1 else "composition"


def all_conditions(severities: Sequence[float] = SEVERITIES) -> list[Condition]:
    """Every perturbation and composition at every severity."""
    return [Condition(names, s) for names in (*((name,) for name in PERTURBATIONS), *COMPOSITIONS) for s in severities]


# ---------------------------------------------------------------- models and their tokens


@dataclass(frozen=True)
class Tokens:
    """Texts as one tokenizer sees them: ids cut to the model's length, tokens before the cut, those that are [UNK]."""

    ids: list[list[int]]
    lengths: np.ndarray
    unknown: np.ndarray
    limit: int


class TrainedModel:
    """The model that a run has kept.

    Args:
        run_dir: the run's folder.

    Raises:
        InputError: there is no model, or no summary.
    """

    def __init__(self, run_dir: str | Path):
        run_dir = Path(run_dir)
        model, self.tokenizer, self.max_length = load_model(run_dir / "best")
        try:
            summary = json.loads((run_dir / "summary.json").read_text())
            self.experiment, self.name = summary["experiment"], summary["name"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{run_dir / 'summary.json'}: not the summary of a run ({error!r})") from None
        self.device = pick_device("auto")
        self.model = model.to(self.device)
        settings = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # How it was last called is no part of what a tokenizer is.
        settings |= {"truncation": None, "padding": None}
        self.key = (json.dumps(settings, sort_keys=True), self.max_length)

    @property
    def label(self) -> str:
        """`4 lstm_attention`"""
        return f"{self.experiment} {self.name}"

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Raises nothing: any text has tokens, if only [CLS] and [SEP]."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)
        special = self.tokenizer.num_special_tokens_to_add()
        lengths, unknown = [], []
        for encoding in encoded.encodings:
            # What was cut off comes in further pieces, each with special tokens of its own.
            pieces = [encoding, *encoding.overflowing]
            lengths.append(special + sum(len(piece) - special for piece in pieces))
            unknown.append(sum(piece.ids.count(self.tokenizer.unk_token_id) for piece in pieces))
        return Tokens(encoded["input_ids"], np.array(lengths), np.array(unknown), self.max_length)

    def probabilities(self, tokens: Tokens) -> np.ndarray:
        """The probability of positive of each text, (n,)."""
        return predict_tokens(self.model, tokens.ids, self.device)


class Parts:
    """Parts of a measurement in a file, a JSON line each, so that a killed one goes on where it was.

    Args:
        output: the log that they are for; the file stands beside it.
        identity: all that the parts depend on; with another identity it is another file.
    """

    def __init__(self, output: Path, identity: Sequence[str]):
        digest = hashlib.sha256("\0".join(identity).encode("utf-8", "surrogatepass")).hexdigest()
        self.path = output.with_name(f"{output.stem}-{digest[:12]}.part.jsonl")
        self.found: dict[str, dict] = {}
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            self.found |= json.loads(line)
        if len(whole) < len(lines):
            # The last line of a killed process.
            write_text(self.path, "".join(whole))

    def remember(self, name: str, compute: Callable[[], dict]) -> dict:
        """The part of that name: the one in the file, or else computed and written."""
        if name not in self.found:
            line = json.dumps({name: compute()}, allow_nan=False)
            with self.path.open("a") as file:
                file.write(line + "\n")
            self.found |= json.loads(line)
        return self.found[name]


# ---------------------------------------------------------------- what a perturbation does to a model


def compare(before: np.ndarray, after: np.ndarray, labels: np.ndarray) -> dict:
    """What a perturbation does to one model.

    Args:
        before: (n,) probabilities of positive on the texts as they are.
        after: (n,) those on the perturbed texts.
        labels: (n,) 0/1.

    Returns:
        Accuracy after, its drop with a 95% interval, McNemar's p, the share of reviews with another label than before,
        and the mean change of the true class's probability.
    """
    right_before, right_after = (before >= 0.5) == labels, (after >= 0.5) == labels
    lost, won = int((right_before & ~right_after).sum()), int((~right_before & right_after).sum())
    return {
        "accuracy": float(right_after.mean()),
        "drop": (lost - won) / len(labels),
        "drop_interval": paired_interval(lost, won, len(labels)),
        "lost": lost,
        "won": won,
        "mcnemar_p": mcnemar_p(lost, won),
        "flip_rate": float(((before >= 0.5) != (after >= 0.5)).mean()),
        "probability_change": float(np.where(labels == 1, after - before, before - after).mean()),
    }


def turned(before: np.ndarray, after: np.ndarray, labels: np.ndarray, changed: np.ndarray, expects: int | None) -> dict:
    """Whether a change of meaning moved the scores: of the changed reviews whose label it speaks against.

    Returns:
        How many there are, the share whose true class lost probability, and the share whose label flipped from right
        to wrong, which here is as it should be; None where there are none.
    """
    asked = changed & (labels != expects) if expects is not None else changed
    if not asked.any():
        return {"asked": 0, "moved": None, "turned": None}
    change = np.where(labels == 1, after - before, before - after)[asked]
    right_before, right_after = ((p >= 0.5) == labels for p in (before, after))
    return {
        "asked": int(asked.sum()),
        "moved": float((change < 0).mean()),
        "turned": float((right_before & ~right_after)[asked].mean()),
    }


# ---------------------------------------------------------------- the measurement


def mechanism(texts: Sequence[str], perturbed: Sequence[str], before: Tokens, after: Tokens) -> dict:
    """How a perturbation reaches a model: shares and means over the reviews.

    Words changed are those of the text that are not among the words after (so words that only move are not counted).
    """
    pairs = list(zip(texts, perturbed, strict=True))
    gone = sum((Counter(WORD.findall(a)) - Counter(WORD.findall(b))).total() for a, b in pairs)
    past = (after.lengths > after.limit) & (before.lengths <= before.limit)
    return {
        "reviews_changed": float(np.mean([a != b for a, b in pairs])),
        "words_changed": gone / max(1, sum(len(WORD.findall(text)) for text in texts)),
        "tokens_added": float(after.lengths.sum() / before.lengths.sum() - 1),
        "unknown_before": float(before.unknown.sum() / before.lengths.sum()),
        "unknown_after": float(after.unknown.sum() / after.lengths.sum()),
        "pushed_past_the_limit": float(past.mean()),
        "token_limit": before.limit,
    }


def measure(
    models: Sequence[TrainedModel],
    texts: Sequence[str],
    labels: np.ndarray,
    conditions: Sequence[Condition],
    seed: int = 0,
    examples: int = 2,
    report: Callable[[str], None] = lambda line: None,
    remember: Callable[[str, Callable[[], dict]], dict] = lambda name, compute: compute(),
) -> dict:
    """Every model on every condition.

    Args:
        models: to compare.
        texts: cleaned reviews.
        labels: (n,) 0/1.
        conditions: perturbations and amounts.
        seed: of the perturbations.
        examples: how many flipped reviews to keep of each model and condition, those of the largest change first.
        report: gets a line a condition.
        remember: gives the part of that name, computed or from before (`Parts`).

    Returns:
        What the JSON log holds: `models`, `rows` (one a model and condition), `mechanisms` (one a condition and
        tokenizer) and `examples`.
    """
    labels = np.asarray(labels)
    clean = encode_once(models, texts)
    found = remember("clean", lambda: {m.label: m.probabilities(clean[m.key]).tolist() for m in models})
    before = {label: np.array(probabilities) for label, probabilities in found.items()}
    parts = []
    for condition in conditions:
        parts.append(
            remember(
                f"{condition.label} {condition.amount:g}",
                lambda condition=condition: measure_one(
                    models, texts, labels, clean, before, condition, seed, examples
                ),
            )
        )
        report(
            f"{condition.label} {condition.amount:g}: " + " ".join(f"{100 * r['drop']:+.1f}" for r in parts[-1]["rows"])
        )
    rows, mechanisms, kept = ([item for part in parts for item in part[key]] for key in PART_KEYS)
    for row, adjusted in zip(rows, false_discovery_control([row["mcnemar_p"] for row in rows]), strict=True):
        row["adjusted_p"] = float(adjusted)
    described = [
        {
            "model": model.label,
            "experiment": model.experiment,
            "accuracy": float(((before[model.label] >= 0.5) == labels).mean()),
            "max_length": model.max_length,
        }
        for model in models
    ]
    return {
        "reviews": len(texts),
        "seed": seed,
        "device": device_name(models[0].device),
        "correction": "Benjamini-Hochberg over all rows",
        "models": described,
        "rows": rows,
        "mechanisms": mechanisms,
        "examples": kept,
    }


def measure_one(
    models: Sequence[TrainedModel],
    texts: Sequence[str],
    labels: np.ndarray,
    clean: dict,
    before: dict[str, np.ndarray],
    condition: Condition,
    seed: int,
    examples: int,
) -> dict:
    """The part of `measure` that is one condition's; `clean` are the texts' tokens by tokenizer."""
    perturbed = perturb(texts, condition.names, condition.amount, seed)
    damaged = encode_once(models, perturbed)
    where = {"condition": condition.label, "kind": condition.kind, "amount": condition.amount}
    mechanisms = [{**where, **mechanism(texts, perturbed, clean[key], tokens)} for key, tokens in damaged.items()]
    changed = np.array([a != b for a, b in zip(texts, perturbed, strict=True)])
    rows, kept = [], []
    for model in models:
        after = read_changed(model, clean[model.key], damaged[model.key], before[model.label])
        row = {"model": model.label, "experiment": model.experiment, **where}
        row |= compare(before[model.label], after, labels)
        if condition.kind == "directional":
            row |= turned(before[model.label], after, labels, changed, PERTURBATIONS[condition.names[0]].expects)
        rows.append(row)
        kept += flipped(row, texts, perturbed, labels, before[model.label], after, examples)
    return {"rows": rows, "mechanisms": mechanisms, "examples": kept}


def controlled(
    models: Sequence[TrainedModel], texts: Sequence[str], labels: np.ndarray, amounts: Sequence[float], seed: int = 0
) -> list[dict]:
    """Each perturbation of `CONTROLS` against its control, which changes the same words, on the same reviews.

    Returns:
        A row a model, perturbation and amount, as of `compare`: `drop` is what the perturbation costs beyond its
        control.
    """
    rows = []
    for name, control in CONTROLS.items():
        for amount in amounts:
            damaged = [encode_once(models, perturb(texts, which, amount, seed)) for which in (control, name)]
            for model in models:
                before, after = (model.probabilities(tokens[model.key]) for tokens in damaged)
                row = {"model": model.label, "experiment": model.experiment, "condition": name, "control": control}
                rows.append({**row, "amount": amount, **compare(before, after, np.asarray(labels))})
    return rows


def encode_once(models: Sequence[TrainedModel], texts: Sequence[str]) -> dict:
    """The texts' tokens by `TrainedModel.key`: models that share a tokenizer share them."""
    return {key: model.encode(texts) for key, model in {model.key: model for model in models}.items()}


def read_changed(model: TrainedModel, clean: Tokens, damaged: Tokens, before: np.ndarray) -> np.ndarray:
    """Probabilities on the perturbed texts; a review whose tokens are the same has the same one, to the last bit."""
    changed = [i for i, (a, b) in enumerate(zip(clean.ids, damaged.ids, strict=True)) if a != b]
    after = before.copy()
    if changed:
        after[changed] = predict_tokens(model.model, [damaged.ids[i] for i in changed], model.device)
    return after


def flipped(
    row: dict,
    texts: Sequence[str],
    perturbed: Sequence[str],
    labels: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    count: int,
) -> list[dict]:
    """The reviews, right before and wrong after, whose probability changed most, with their texts."""
    lost = np.flatnonzero(((before >= 0.5) == labels) & ((after >= 0.5) != labels))
    chosen = lost[np.argsort(-np.abs(after - before)[lost], kind="stable")][:count]
    return [
        {
            **{key: row[key] for key in ("model", "condition", "amount")},
            "review": int(i),
            "label": int(labels[i]),
            "probability_before": float(before[i]),
            "probability_after": float(after[i]),
            **dict(zip(("before", "after"), mark_changes(texts[i], perturbed[i]), strict=True)),
        }
        for i in chosen
    ]


def mark_changes(before: str, after: str, lead: int = 12, limit: int = 300) -> tuple[str, str]:
    """Both texts with the words in double brackets that the other has not at that place.

    Args:
        before: a text.
        after: the same, perturbed.
        lead: words kept in front of the first change.
        limit: characters kept from there on.
    """
    old, new = before.split(), after.split()
    changes = [
        change for change in SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if change[0] != "equal"
    ]
    gone = {i for _, start, end, _, _ in changes for i in range(start, end)}
    come = {i for _, _, _, start, end in changes for i in range(start, end)}
    # Up to the first change the words are the same, and so as many.
    start = max(0, changes[0][1] - lead) if changes else 0
    return excerpt(old, gone, start, limit), excerpt(new, come, start, limit)


def excerpt(words: Sequence[str], marked: set[int], start: int, limit: int) -> str:
    """The words from `start` on, those of the numbers `marked` in double brackets, cut at a word."""
    text = " ".join(f"[[{words[i]}]]" if i in marked else words[i] for i in range(start, len(words)))
    if len(text) > limit:
        text = text[:limit].rsplit(" ", 1)[0] + " ..."
    return "... " + text if start else text


# ---------------------------------------------------------------- worst case


def attack(model: TrainedModel, texts: Sequence[str], labels: np.ndarray, budget: int, seed: int = 0) -> dict:
    """Accuracy when the words that matter most to the model each get the typo that hurts it most.

    A word matters by how much the true class loses when the word is made [UNK]. One word after the other, most
    important first, gets that of twelve edits (two of each letter swap) after which the true class has the lowest
    probability (greedy, as in Gao et al. 2018 and Jin et al. 2020). Beside it the same number of random edits.

    Args:
        model: to attack.
        texts: cleaned reviews.
        labels: (n,) 0/1.
        budget: words to change, at most.
        seed: of the edits.

    Returns:
        `greedy` and `random`: accuracies after 0, 1, ... `budget` words.
    """
    labels = np.asarray(labels)
    spans = [[match.span() for match in WORD.finditer(text)] for text in texts]

    def true_class(candidates: list[str], owners: list[int]) -> np.ndarray:
        found = model.probabilities(model.encode(candidates))
        return np.where(labels[owners] == 1, found, 1 - found)

    # What the model never reads can't be worth an edit: only words within its tokens are tried.
    tried = [(i, j) for i, words in enumerate(spans) for j in range(min(len(words), model.max_length))]
    without = true_class([replace_spans(texts[i], spans[i], {j: "[UNK]"}) for i, j in tried], [i for i, _ in tried])
    order: list[list[int]] = [[] for _ in texts]
    for index in np.argsort(without, kind="stable"):
        order[tried[index][0]].append(tried[index][1])
    greedy = follow(texts, spans, order, budget, LETTER_SWAPS, true_class, seed)
    shuffled = []
    for text, words in zip(texts, spans, strict=True):
        shuffled.append(np.argsort(random_numbers(seed, "attack", text)(len(words))[:, 0]).tolist() if words else [])
    chance = follow(texts, spans, shuffled, budget, (), true_class, seed)
    return {"model": model.label, "reviews": len(texts), "budget": budget, "greedy": greedy, "random": chance}


def follow(
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    order: Sequence[Sequence[int]],
    budget: int,
    edits: Sequence[str],
    true_class: Callable[[list[str], list[int]], np.ndarray],
    seed: int,
) -> list[float]:
    """Accuracies while the words of each review are edited in order: by the worst of `edits`, or by any one."""
    changed: list[dict[int, str]] = [{} for _ in texts]
    accuracies = [float((true_class(list(texts), list(range(len(texts)))) > 0.5).mean())]
    for rank in range(budget):
        candidates, owners, edited = [], [], []
        for i, text in enumerate(texts):
            if rank >= len(order[i]):
                continue
            number = order[i][rank]
            word = text[slice(*spans[i][number])]
            for new in word_edits(word, edits, seed + rank):
                candidates.append(replace_spans(text, spans[i], dict(sorted({**changed[i], number: new}.items()))))
                owners.append(i)
                edited.append((number, new))
        if candidates:
            scores = true_class(candidates, owners)
            for index in np.argsort(-scores, kind="stable"):
                # The lowest score of a review comes last, and stays.
                number, new = edited[index]
                changed[owners[index]][number] = new
        final = [replace_spans(t, s, dict(sorted(c.items()))) for t, s, c in zip(texts, spans, changed, strict=True)]
        accuracies.append(float((true_class(final, list(range(len(texts)))) > 0.5).mean()))
    return accuracies


def word_edits(word: str, edits: Sequence[str], seed: int) -> list[str]:
    """The word after two of each of the edits; after any one of all letter swaps where none is named."""
    if not edits:
        name = LETTER_SWAPS[int(random_numbers(seed, "edit", word)(1)[0, 0]) % len(LETTER_SWAPS)]
        return [perturb(word, name, 1.0, seed)]
    return list(dict.fromkeys(perturb(word, name, 1.0, 2 * seed + turn) for name in edits for turn in (0, 1)))


# ---------------------------------------------------------------- command line


def reviews_of(run_dir: Path, data: Path | None, count: int | None) -> tuple[list[str], np.ndarray]:
    """Texts and labels: of a file, or else the run's own validation split; the first `count` of each class in turn."""
    if data is not None:
        reviews = read_file(data)
        texts, labels = list(reviews["text"]), np.array(reviews["label"])
    else:
        split = load_reviews(load_config(run_dir / "config.yaml").data).validation
        texts, labels = split.texts, split.labels
    if count is not None:
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[: how_many(0.5, count)] for label in (0, 1)]))
        texts, labels = [texts[i] for i in chosen], labels[chosen]
    return texts, labels


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 for input that can't be used."""
    parser = argparse.ArgumentParser(description="Robustness of trained models against perturbations of the text.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument("--data", type=Path, help="labelled reviews; default: the first run's validation split")
    parser.add_argument("--reviews", type=int, help="how many of them, half of each class; default: all")
    parser.add_argument("--output", type=Path, required=True, help="JSON log to write; the figures stand beside it")
    parser.add_argument("--severities", type=float, nargs="+", default=list(SEVERITIES), metavar="AMOUNT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attack", type=int, default=100, metavar="N", help="reviews of the search; 0: no search")
    parser.add_argument("--budget", type=int, default=5, help="words that the search may change")
    options = parser.parse_args(arguments)
    try:
        models = [TrainedModel(run_dir) for run_dir in options.run_dirs]
        texts, labels = reviews_of(options.run_dirs[0], options.data, options.reviews)
        conditions = all_conditions(options.severities)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        code = [Path(module).read_text() for module in (__file__, perturbations.__file__)]
        weights = [file_digest(run_dir / "best" / WEIGHTS) for run_dir in options.run_dirs]
        identity = [
            *code,
            *(model.label for model in models),
            *weights,
            *texts,
            str(labels.tolist()),
            str(options.seed),
        ]
        parts = Parts(options.output, identity)
        found = measure(models, texts, labels, conditions, options.seed, report=tell, remember=parts.remember)
        found["controls"] = parts.remember(
            f"controls {options.severities}",
            lambda: {"rows": controlled(models, texts, labels, options.severities, options.seed)},
        )["rows"]
        some, their_labels = texts[: options.attack], labels[: options.attack]
        found["attacks"] = [
            parts.remember(
                f"attack {model.label} {options.attack} {options.budget}",
                lambda model=model: attack(model, some, their_labels, options.budget, options.seed),
            )
            for model in models
            if options.attack
        ]
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found["conditions"] = [asdict(condition) for condition in conditions]
    write_text(options.output, json.dumps(found, indent=1, allow_nan=False) + "\n")
    write_figures(found, options.output.parent)
    parts.path.unlink(missing_ok=True)
    return 0


def tell(line: str) -> None:
    print(line, flush=True)


def write_figures(found: dict, folder: Path) -> None:
    """The figures of a log as PNG."""
    figures = {"heat_map": heat_map(found), "severity": severity_curves(found), "mechanisms": mechanism_bars(found)}
    if found.get("attacks"):
        figures["attack"] = attack_curves(found)
    for name, figure in figures.items():
        # A panel a condition makes a large figure.
        figure.savefig(folder / f"robustness_{name}.png", dpi=60 if name == "severity" else 110)
        plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
