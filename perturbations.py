"""Perturbations of a review's text: word swaps, invariances, changes of meaning, truncation; seeded, exact and fast.

    perturb("I do not like it", "qwerty")                          # half of the words, one typo each
    perturb(texts, ["homoglyph", "deletion"], amount=[0.2, 0.1])   # one after the other
    python perturbations.py RUN_DIR [RUN_DIR ...] --output robustness.json

`amount` is a share of what a perturbation can change, its *eligible* places: of n exactly floor(amount n + 1/2) are
changed, each once, and all else stays to the character. Which ones depends on the seed, the perturbation and the text
alone. With the same seed the places of a smaller amount are among those of a larger one.

A word is a run of letters and digits, with apostrophes and hyphens inside. Of TextAttack (Morris et al. 2020), whose
eight word swaps are here under the field's names, it differs in this: the amount is exact and not rounded up from
percentages of a word list; every word is changed at most once a step; the place is drawn among all that the swap can
change, and a swap that could give the word back again is not made; spacing and punctuation are never rebuilt.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np

from config import InputError

LETTERS = "abcdefghijklmnopqrstuvwxyz"
ONE_WORD = r"[^\W_]+(?:['’-][^\W_]+)*"
WORD = re.compile(ONE_WORD)


@dataclass(frozen=True)
class Limits:
    """Words and letters that the character swaps spare.

    Args:
        spare_ends: leave the first and the last letter of a word.
        spare_stop_words: leave function words.
        min_length: leave words of fewer letters.
    """

    spare_ends: bool = False
    spare_stop_words: bool = False
    min_length: int = 1


@dataclass(frozen=True)
class Perturbation:
    """One way to change a text.

    Args:
        name: as in `PERTURBATIONS`.
        kind: "swap", "invariance", "directional", "truncation" or "control".
        summary: what it does, which places are eligible, and where it departs from the well-known tool.
        apply: (text, amount, draws, limits) -> text; `draws(n)` gives n pairs of random numbers below 2^64.
        expects: of a directional one the label, 0 or 1, that its changes speak for; None where it turns what is there.
        stream: the perturbation whose random numbers it takes, so that it changes the same places; "" is its own.
    """

    name: str
    kind: str
    summary: str
    apply: Callable[[str, float, Callable[[int], np.ndarray], Limits], str]
    expects: int | None = None
    stream: str = ""


Draws = Callable[[int], np.ndarray]
Span = tuple[int, int]


def perturb(
    texts: str | Sequence[str],
    names: str | Sequence[str],
    amount: float | Sequence[float] = 0.5,
    seed: int = 0,
    *,
    spare_ends: bool = False,
    spare_stop_words: bool = False,
    min_length: int = 1,
) -> str | list[str]:
    """Perturb a text or several; each text by itself, whatever stands beside it.

    Args:
        texts: a text, or a sequence of texts.
        names: a perturbation of `PERTURBATIONS`, or several, made one after the other.
        amount: share of the eligible places to change, 0 to 1; or one share a name.
        seed: at least 0; another seed changes other places.
        spare_ends: character swaps leave the first and the last letter of a word.
        spare_stop_words: character swaps leave function words.
        min_length: character swaps leave words of fewer letters.

    Returns:
        The perturbed text, or a list of them.

    Raises:
        InputError: an unknown name, an amount outside 0 to 1, or not one amount a name.
    """
    steps = check_steps(names, amount)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed is {seed!r}; expected an integer of at least 0")
    limits = Limits(spare_ends, spare_stop_words, min_length)
    if isinstance(texts, str):
        return apply_steps(texts, steps, seed, limits)
    return [apply_steps(text, steps, seed, limits) for text in texts]


def check_steps(names: str | Sequence[str], amount: float | Sequence[float]) -> list[tuple[Perturbation, float]]:
    """The perturbations and their amounts; raises as `perturb`."""
    names = [names] if isinstance(names, str) else list(names)
    amounts = [amount] * len(names) if isinstance(amount, int | float) else list(amount)
    if len(amounts) != len(names):
        raise InputError(f"{len(amounts)} amounts for {len(names)} perturbations; give one, or one each")
    for name in names:
        if name not in PERTURBATIONS:
            raise InputError(f"there is no perturbation {name!r}; there are {', '.join(PERTURBATIONS)}")
    for share in amounts:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"amount is {share!r}; expected a share from 0 to 1")
    return [(PERTURBATIONS[name], share) for name, share in zip(names, amounts, strict=True)]


def apply_steps(text: str, steps: list[tuple[Perturbation, float]], seed: int, limits: Limits) -> str:
    for perturbation, amount in steps:
        draws = random_numbers(seed, perturbation.stream or perturbation.name, text)
        text = perturbation.apply(text, amount, draws, limits)
    return text


def random_numbers(seed: int, name: str, text: str) -> Draws:
    """A source of random numbers that is a function of its arguments, the same in every process.

    Only raw numbers of the bit generator are taken, whose stream NumPy promises not to change.
    """

    def draws(count: int) -> np.ndarray:
        key = f"{seed}\0{name}\0{text}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(key, digest_size=16).digest()
        generator = np.random.PCG64(int.from_bytes(digest, "big"))
        return generator.random_raw(2 * count).reshape(count, 2)

    return draws


def how_many(amount: float, count: int) -> int:
    """Places to change of `count`: amount times count, halves rounded up."""
    return floor(amount * count + 0.5)


def choose(amount: float, count: int, draws: Draws) -> Iterator[tuple[int, int]]:
    """The chosen of `count` places, in order, each with a random number of its own."""
    chosen = how_many(amount, count)
    if not chosen:
        return
    numbers = draws(count)
    order = np.sort(np.argsort(numbers[:, 0], kind="stable")[:chosen])
    yield from zip(order.tolist(), numbers[order, 1].tolist(), strict=True)


def replace_spans(text: str, spans: Sequence[Span], replacements: dict[int, str]) -> str:
    """`text` with the spans of those numbers replaced."""
    parts, done = [], 0
    for number, new in replacements.items():
        start, end = spans[number]
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]])


# ---------------------------------------------------------------- the words' letters

Places = Callable[[str, Limits], tuple[int, ...]]


def letter_swap(places: Places, edit: Callable[[str, int, int], str]) -> Callable[[str, float, Draws, Limits], str]:
    """A change of one letter in each chosen word.

    Args:
        places: the positions of a word at which the edit can be made; a word without any is not eligible.
        edit: the word after the edit at a position, by a random number.
    """

    @lru_cache(maxsize=8)
    def positions(limits: Limits) -> Callable[[str], tuple[int, ...]]:
        """A cache a set of limits: its key is the word alone, which is hashed once for all."""

        @lru_cache(maxsize=2**16)
        def of_word(word: str) -> tuple[int, ...]:
            if limits.min_length > 1 and sum(map(str.isalpha, word)) < limits.min_length:
                return ()
            if limits.spare_stop_words and word.lower() in STOP_WORDS:
                return ()
            return places(word, limits)

        return of_word

    def apply(text: str, amount: float, draws: Draws, limits: Limits) -> str:
        where_in = positions(limits)
        spans = [match.span() for match in WORD.finditer(text) if where_in(match.group())]
        changed = {}
        for number, drawn in choose(amount, len(spans), draws):
            word = text[slice(*spans[number])]
            where = where_in(word)
            rest, place = divmod(drawn, len(where))
            changed[number] = edit(word, where[place], rest)
        return replace_spans(text, spans, changed)

    return apply


def inside(word: str, limits: Limits) -> range:
    """The positions of a word that the limits allow to change."""
    return range(1, len(word) - 1) if limits.spare_ends else range(len(word))


def like(letter: str, model: str) -> str:
    """`letter` in the case of `model`."""
    return letter.upper() if model.isupper() else letter


def letters_of(word: str, limits: Limits) -> tuple[int, ...]:
    places = inside(word, limits)
    return tuple(places) if word.isalpha() else tuple(i for i in places if word[i].isalpha())


def deletable(word: str, limits: Limits) -> tuple[int, ...]:
    """Letters of words that keep a letter."""
    return letters_of(word, limits) if sum(map(str.isalpha, word)) > 1 else ()


def swappable(word: str, limits: Limits) -> tuple[int, ...]:
    """Letters whose right neighbour is another letter."""
    return tuple(
        i for i in inside(word, limits)[:-1] if word[i] != word[i + 1] and word[i].isalpha() and word[i + 1].isalpha()
    )


def insertable(word: str, limits: Limits) -> tuple[int, ...]:
    """Before, between and after the letters."""
    if not any(map(str.isalpha, word)):
        return ()
    return tuple(range(1, len(word)) if limits.spare_ends else range(len(word) + 1))


def keyboard_neighbours() -> dict[str, str]:
    """The letters around each letter of a QWERTY keyboard, whose lower rows stand 0.25 and 0.75 keys to the right."""
    keys = {
        letter: (column + shift, row)
        for row, (letters, shift) in enumerate((("qwertyuiop", 0.0), ("asdfghjkl", 0.25), ("zxcvbnm", 0.75)))
        for column, letter in enumerate(letters)
    }
    return {
        letter: "".join(
            other
            for other, (u, v) in sorted(keys.items())
            if other != letter and abs(x - u) <= 1 and abs(y - v) <= 1 and (x - u) ** 2 + (y - v) ** 2 < 1.6
        )
        for letter, (x, y) in keys.items()
    }


QWERTY = keyboard_neighbours()
# Letters of other scripts that most fonts draw alike (Unicode Technical Standard 39, confusables).
HOMOGLYPHS = dict(
    zip(
        "acdeghijlnopqsuvwxyzABCEHIJKMNOPSTXYZ",
        "асԁеɡһіјӏոорԛѕυνԝхуᴢАВСЕНІЈКМΝОРЅТХУΖ",
        strict=True,
    )
)


def swap_edit(word: str, place: int, drawn: int) -> str:
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def qwerty_edit(word: str, place: int, drawn: int) -> str:
    near = QWERTY[word[place].lower()]
    return word[:place] + like(near[drawn % len(near)], word[place]) + word[place + 1 :]


def deletion_edit(word: str, place: int, drawn: int) -> str:
    return word[:place] + word[place + 1 :]


def insertion_edit(word: str, place: int, drawn: int) -> str:
    beside = word[place] if place < len(word) else word[-1]
    return word[:place] + like(LETTERS[drawn % 26], beside if word.isupper() else "a") + word[place:]


def substitution_edit(word: str, place: int, drawn: int) -> str:
    others = LETTERS.replace(word[place].lower(), "")
    return word[:place] + like(others[drawn % len(others)], word[place]) + word[place + 1 :]


def homoglyph_edit(word: str, place: int, drawn: int) -> str:
    return word[:place] + HOMOGLYPHS[word[place]] + word[place + 1 :]


def repeat_edit(word: str, place: int, drawn: int) -> str:
    return word[:place] + word[place] * (2 + drawn % 3) + word[place + 1 :]


def in_table(table: dict[str, str], lower: bool) -> Places:
    """Positions whose letter is in a table."""
    return lambda word, limits: tuple(
        i for i in inside(word, limits) if (word[i].lower() if lower else word[i]) in table
    )


# ---------------------------------------------------------------- spans of the text


def span_change(
    find: Callable[[str], list[Span]], change: Callable[[str, int], str]
) -> Callable[[str, float, Draws, Limits], str]:
    """A replacement of each chosen span.

    Args:
        find: the eligible spans of a text, in order, none over another.
        change: what stands in a span after it, by a random number; never what stood there before.
    """

    def apply(text: str, amount: float, draws: Draws, limits: Limits) -> str:
        spans = find(text)
        changed = {i: change(text[slice(*spans[i])], drawn) for i, drawn in choose(amount, len(spans), draws)}
        return replace_spans(text, spans, changed)

    return apply


def matches(pattern: str, flags: int = re.IGNORECASE) -> Callable[[str], list[Span]]:
    """The spans of a pattern."""
    compiled = re.compile(pattern, flags)
    return lambda text: [match.span() for match in compiled.finditer(text)]


def words_that(changed: Callable[[str], str]) -> Callable[[str], list[Span]]:
    """Spans of the words that a function changes."""
    return lambda text: [match.span() for match in WORD.finditer(text) if changed(match.group()) != match.group()]


def case_like(new: str, old: str) -> str:
    """`new` in the case of `old`: all capitals (if it has two of them), a first capital, or as it is."""
    if sum(map(str.isupper, old)) > 1 and old.upper() == old:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def from_table(table: dict[str, str]) -> Callable[[str, int], str]:
    """A change by a table of lower-case texts, for which white space is one blank and an apostrophe straight."""
    return lambda old, drawn: case_like(table[" ".join(old.lower().replace("’", "'").split())], old)


def alternatives(texts: Sequence[str]) -> str:
    """A pattern of texts, longer ones first; any white space (but no other sign) between their words."""
    longest = sorted(texts, key=len, reverse=True)
    return "(?:" + "|".join(r"\s+".join(map(re.escape, text.split())).replace("'", "['’]") for text in longest) + ")"


NEGATIVE = {
    f"{verb} not": f"{short}n't"
    for verb, short in [
        *((v, v) for v in "is are was were do does did have has had would could should might must need".split()),
        ("will", "wo"),
        ("shall", "sha"),
    ]
} | {"cannot": "can't"}
POSITIVE = (
    {"i am": "i'm", "let us": "let's"}
    | {f"{who} are": f"{who}'re" for who in ("you", "we", "they")}
    | {f"{who} have": f"{who}'ve" for who in ("i", "you", "we", "they")}
    | {f"{who} will": f"{who}'ll" for who in ("i", "you", "he", "she", "it", "we", "they", "that", "there")}
    | {f"{who} would": f"{who}'d" for who in ("i", "you", "he", "she", "we", "they")}
    | {f"{who} is": f"{who}'s" for who in ("he", "she", "it", "that", "there", "what", "who", "where", "here", "how")}
)
CONTRACTIONS = NEGATIVE | POSITIVE
EXTENSIONS = {short: long for long, short in CONTRACTIONS.items()}
# "I am" may become "I'm" where the sentence goes on: not "Yes, I'm."
CONTRACTION = rf"\b(?:{alternatives(list(NEGATIVE))}\b|{alternatives(list(POSITIVE))}(?=\s+\w))"
# "Isn't it?" can't be written out where it stands: "Is not it?" is no English.
INVERTED = r"(?<=n['’]t)\s+(?:i|you|he|she|it|we|they|there|this|that)\b"
EXTENSION = rf"(?<![\w'’-]){alternatives(list(EXTENSIONS))}(?![\w'’-])(?!{INVERTED})"


def extend(old: str, drawn: int) -> str:
    """A contraction written out; the pronoun I keeps its capital: "I'm" is no text in capitals."""
    new = from_table(EXTENSIONS)(old, drawn)
    return new if sum(map(str.isupper, old)) > 1 or not old[0].isupper() else new[0] + new[1:].lower()


# ---------------------------------------------------------------- larger changes


def drop_words(text: str, amount: float, draws: Draws, limits: Limits) -> str:
    """Chosen words go, each with the white space before it."""
    spans = [match.span() for match in re.finditer(rf"(?:(?<=\S)\s+)?{ONE_WORD}", text)]
    found = replace_spans(text, spans, {number: "" for number, _ in choose(amount, len(spans), draws)})
    return found if text[:1].isspace() else found.lstrip()


def shuffle_words(text: str, amount: float, draws: Draws, limits: Limits) -> str:
    """Chosen words move to each other's places, none stays; a single one has nowhere to go."""
    spans = [match.span() for match in WORD.finditer(text)]
    chosen = list(choose(amount, len(spans), draws))
    # In a random order each takes the next one's word: a cycle through all of them.
    order = [number for number, _ in sorted(chosen, key=lambda pair: pair[1])]
    taken = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return replace_spans(text, spans, {number: text[slice(*spans[taken[number]])] for number, _ in chosen})


def truncate(front: bool) -> Callable[[str, float, Draws, Limits], str]:
    """The first or the last words go, with all that stands before or after them."""

    def apply(text: str, amount: float, draws: Draws, limits: Limits) -> str:
        spans = [match.span() for match in WORD.finditer(text)]
        count = how_many(amount, len(spans))
        if not count:
            return text
        if count == len(spans):
            return ""
        return text[spans[count][0] :] if front else text[: spans[-count - 1][1]]

    return apply


def add_sentences(sentences: Sequence[str], front: bool) -> Callable[[str, float, Draws, Limits], str]:
    """Chosen ones of the sentences stand before or after the text, in their order."""

    def apply(text: str, amount: float, draws: Draws, limits: Limits) -> str:
        chosen = [sentences[number] for number, _ in choose(amount, len(sentences), draws)]
        if not chosen:
            return text
        return " ".join([*chosen, text] if front else [text, *chosen]) if text else " ".join(chosen)

    return apply


NEUTRAL = (
    "I watched it on a Tuesday evening.",
    "It runs for about an hour and a half.",
    "My neighbour lent me the disc.",
    "The copy that I saw had subtitles.",
)
PRAISE = ("All in all, I loved it.", "It was wonderful.", "I recommend it to everyone.", "Simply excellent.")
BLAME = ("All in all, I hated it.", "It was terrible.", "I recommend it to nobody.", "Simply awful.")
FIRST_NAMES = (
    "James John Robert Michael William David Richard Joseph Thomas Charles Mary Patricia Jennifer Linda Elizabeth "
    "Barbara Susan Jessica Sarah Karen Peter Paul George Frank Jack Tom Steve Kevin Brian Mark Anna Emma Julia Laura "
    "Helen Alice Jane Kate Lucy Nancy Tony Bruce Chris Daniel Harry Henry Martin Simon Walter Arnold"
).split()
PLACES = (
    "London Paris Berlin Rome Madrid Tokyo Vienna Chicago Boston Dallas Seattle Houston Toronto Sydney Moscow Dublin "
    "America England France Germany Italy Spain Japan China India Canada Mexico Brazil Russia Ireland"
).split()
# A number that is part of a rating carries the sentiment, and so is no neutral thing to change.
NUMBER = (
    r"(?<![\w.,/$%-])\d{1,4}(?![\w%/-]|[.,]\d|\s*(?:/|(?:out\s+)?of\s+\d|stars?\b|points?\b))"
    r"(?<!out of \d)(?<!out of \d\d)(?<!out of \d\d\d)"
)


def other_of(groups: Sequence[Sequence[str]]) -> Callable[[str, int], str]:
    """Another member of a word's group."""

    def change(old: str, drawn: int) -> str:
        others = next([other for other in group if other != old] for group in groups if old in group)
        return others[drawn % len(others)]

    return change


def other_number(old: str, drawn: int) -> str:
    """A number of as many digits, without a leading zero."""
    low, high = (10 ** (len(old) - 1), 10 ** len(old)) if len(old) > 1 else (0, 10)
    others = high - low - (low <= int(old) < high)
    found = low + drawn % others
    return str(found + (low <= int(old) <= found))


ANTONYM_PAIRS = (
    "good bad, great terrible, best worst, better worse, love hate, loved hated, loves hates, liked disliked, "
    "likes dislikes, wonderful awful, excellent horrible, brilliant stupid, beautiful ugly, amazing appalling, "
    "interesting boring, exciting dull, funny unfunny, enjoyable tedious, enjoyed endured, perfect flawed, "
    "perfectly poorly, superb dreadful, fantastic abysmal, impressive unimpressive, strong weak, fresh stale, "
    "believable implausible, original unoriginal, clever silly, talented talentless, memorable forgettable, "
    "delicious disgusting, friendly rude, clean dirty, fast slow, happy unhappy, pleasant unpleasant, fun tiresome, "
    "recommend condemn, recommended condemned, masterpiece disaster, success failure, succeeds fails"
)
ANTONYMS = {}
for pair in ANTONYM_PAIRS.split(", "):
    one, other = pair.split()
    ANTONYMS |= {one: other, other: one}
NEGATABLE = r"\b(?:is|are|was|were)\b(?=\s+\w)(?!\s+not\b)"
NEGATED = r"\b(?:is|are|was|were|do|does|did|have|has|had|would|could|should)(?:\s+not\b|n['’]t\b)"
STOP_WORDS = frozenset(
    "a about after all also am an and any are as at be because been before being but by can could did do does down "
    "for from had has have he her here hers him his how i if in into is it its just me more most my no nor not of off "
    "on once only or other our out over own same she should so some such than that the their them then there these "
    "they this those through to too under until up very was we were what when where which while who whom why will "
    "with would you your".split()
)

_NAME_GROUPS = (FIRST_NAMES, PLACES)
_ALL = (
    Perturbation(
        "contraction",
        "swap",
        "Two words become one: do not -> don't. Eligible: the pairs of `CONTRACTIONS`, with white space only between "
        "their words; it is -> it's where a word follows. Keeps the case of a sentence's first word. TextAttack looks "
        "at its list of words, between which punctuation may have stood.",
        span_change(matches(CONTRACTION), from_table(CONTRACTIONS)),
    ),
    Perturbation(
        "extension",
        "swap",
        "A contraction is written out: don't -> do not, can't -> cannot. The inverse of contraction; 's and 'd, which "
        "can stand for two words each, become is and would; n't before a pronoun (isn't it?) is left.",
        span_change(matches(EXTENSION), extend),
    ),
    Perturbation(
        "homoglyph",
        "swap",
        "A letter becomes one of another script that looks alike: a -> Cyrillic а. Eligible: words with a letter of "
        "`HOMOGLYPHS`, capitals too; the place is drawn among those letters.",
        letter_swap(in_table(HOMOGLYPHS, lower=False), homoglyph_edit),
    ),
    Perturbation(
        "swap",
        "swap",
        "Two neighbouring letters change places: good -> godo. Eligible: words with two neighbours that differ; the "
        "place is drawn among those pairs, so that the word always changes.",
        letter_swap(swappable, swap_edit),
    ),
    Perturbation(
        "qwerty",
        "swap",
        "A letter becomes one beside it on a QWERTY keyboard, in its case. Neighbours are mutual: q is beside w, and w "
        "beside q. Eligible: words with a letter from a to z.",
        letter_swap(in_table(QWERTY, lower=True), qwerty_edit),
    ),
    Perturbation(
        "deletion",
        "swap",
        "A letter goes. Eligible: words of at least two letters, so that no word goes whole.",
        letter_swap(deletable, deletion_edit),
    ),
    Perturbation(
        "insertion",
        "swap",
        "A random letter comes in, before, between or after the others (TextAttack: never after the last). Eligible: "
        "words with a letter.",
        letter_swap(insertable, insertion_edit),
    ),
    Perturbation(
        "substitution",
        "swap",
        "A letter becomes another one from a to z, in its case. Eligible: words with a letter.",
        letter_swap(letters_of, substitution_edit),
    ),
    Perturbation(
        "uppercase",
        "invariance",
        "Words in capitals. Eligible: words that this changes.",
        span_change(words_that(str.upper), lambda word, drawn: word.upper()),
    ),
    Perturbation(
        "lowercase",
        "invariance",
        "Words in small letters. Eligible: words that this changes.",
        span_change(words_that(str.lower), lambda word, drawn: word.lower()),
    ),
    Perturbation(
        "punctuation",
        "invariance",
        "Signs go. Eligible: every sign that is no letter, digit or white space and stands outside a word.",
        span_change(
            lambda text: [m.span() for m in re.finditer(rf"{ONE_WORD}|([^\w\s])", text) if m.group(1)],
            lambda sign, drawn: "",
        ),
    ),
    Perturbation(
        "spaces",
        "invariance",
        "White space becomes two to four blanks more. Eligible: every run of white space.",
        span_change(matches(r"\s+"), lambda gap, drawn: gap + " " * (2 + drawn % 3)),
    ),
    Perturbation(
        "joined",
        "invariance",
        "Two words are written as one. Eligible: every run of white space between two words.",
        span_change(matches(r"(?<=\w)\s+(?=\w)"), lambda gap, drawn: ""),
    ),
    Perturbation(
        "repetition",
        "invariance",
        "A letter comes two to four times: goood. Eligible: words with a letter.",
        letter_swap(letters_of, repeat_edit),
    ),
    Perturbation("dropped", "invariance", "Words go, with the white space before them.", drop_words),
    Perturbation(
        "shuffled",
        "invariance",
        "Words move to each other's places. Counted are places: at two or more each chosen place gets another's word.",
        shuffle_words,
    ),
    Perturbation(
        "distractor_front",
        "invariance",
        "Neutral sentences in front. Eligible: the four of `NEUTRAL`.",
        add_sentences(NEUTRAL, front=True),
    ),
    Perturbation(
        "distractor_end",
        "invariance",
        "Neutral sentences at the end. Eligible: the four of `NEUTRAL`.",
        add_sentences(NEUTRAL, front=False),
    ),
    Perturbation(
        "names",
        "invariance",
        "First names and places become others. Eligible: those of `FIRST_NAMES` and `PLACES`, with their capital.",
        span_change(matches(rf"\b(?:{'|'.join([*FIRST_NAMES, *PLACES])})\b", 0), other_of(_NAME_GROUPS)),
    ),
    Perturbation(
        "numbers",
        "invariance",
        "Numbers become others of as many digits. Eligible: whole numbers of up to four digits that are no part of a "
        "rating such as 7/10 or 3 out of 5.",
        span_change(matches(NUMBER), other_number),
    ),
    Perturbation(
        "negation_added",
        "directional",
        "was good -> was not good. Eligible: is, are, was and were before a word that is not `not`.",
        span_change(matches(NEGATABLE), lambda verb, drawn: verb + (" NOT" if verb.isupper() else " not")),
    ),
    Perturbation(
        "negation_removed",
        "directional",
        "was not good -> was good, didn't -> did. Eligible: a verb with not or n't.",
        span_change(matches(NEGATED), lambda verb, drawn: re.sub(r"(?i)(\s+not|n['’]t)$", "", verb)),
    ),
    Perturbation(
        "antonym",
        "directional",
        "A sentiment word becomes its opposite, in its case. Eligible: the words of `ANTONYMS`.",
        span_change(matches(rf"\b{alternatives(list(ANTONYMS))}\b(?!['’-]\w)"), from_table(ANTONYMS)),
    ),
    Perturbation(
        "praise",
        "directional",
        "Sentences of praise at the end. Eligible: the four of `PRAISE`.",
        add_sentences(PRAISE, front=False),
        expects=1,
    ),
    Perturbation(
        "blame",
        "directional",
        "Sentences of blame at the end. Eligible: the four of `BLAME`.",
        add_sentences(BLAME, front=False),
        expects=0,
    ),
    Perturbation("truncated_front", "truncation", "The first words go.", truncate(front=True)),
    Perturbation("truncated_end", "truncation", "The last words go.", truncate(front=False)),
    Perturbation(
        "unknown",
        "control",
        "The words that homoglyph would change become the tokenizer's [UNK]: what a homoglyph costs if it only makes "
        "the word unknown.",
        letter_swap(in_table(HOMOGLYPHS, lower=False), lambda word, place, drawn: "[UNK]"),
        stream="homoglyph",
    ),
)
PERTURBATIONS = {perturbation.name: perturbation for perturbation in _ALL}
EIGHT = tuple(perturbation.name for perturbation in _ALL if perturbation.kind == "swap")


if __name__ == "__main__":
    from analysis.robustness import main

    sys.exit(main())
