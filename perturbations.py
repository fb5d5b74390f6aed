"""Perturbations of a review's text: word edits, invariances, changes of meaning, truncation; needs NumPy only.

    perturb("I do not like it", "qwerty")                          # half of the words get one typo each
    perturb(texts, ["homoglyph", "deletion"], amount=[0.2, 0.1])   # one after the other

`amount` is a share of what a perturbation can change, its *eligible* places: of n eligible places exactly
floor(amount n + 1/2) are changed, each once, and every other character stays. The choice depends only on the seed, the
perturbation and the text. With the same seed, the places changed at a smaller amount are among those of a larger one.

A word is a run of letters and digits, with apostrophes and hyphens inside. A letter is one character and the
combining marks after it, so that "é" is one letter in either of its forms, and no edit tears a mark from its letter.
The eight word edits (`WORD_EDITS`) are those of TextAttack (Morris et al. 2020), under the field's names, with these
differences: the amount is exact and not rounded up from percentages of a word list; a step changes every word at most
once; the position is drawn among all those that the edit can change, so that no edit gives the same word back; spacing
and punctuation are never rebuilt.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor

import numpy as np

# A source of random numbers: `draws(n)` gives n pairs of integers below 2^64, (n, 2).
Draws = Callable[[int], np.ndarray]
# (text, amount, draws) -> text
Change = Callable[[str, float, Draws], str]
# Start and end of a part of a text.
Span = tuple[int, int]


def _combining_marks() -> str:
    """The combining marks and the joiners inside words of Unicode, as ranges of a character class."""
    codes = [code for code in range(0x300, 0x20000) if unicodedata.category(chr(code)).startswith("M")]
    # Zero width non-joiner and joiner; variation selectors.
    codes = sorted([*codes, 0x200C, 0x200D, *range(0xE0100, 0xE01F0)])
    starts = [code for code, before in zip(codes, [-1, *codes], strict=False) if code != before + 1]
    ends = [code for code, after in zip(codes, [*codes[1:], -1], strict=True) if code != after - 1]
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in zip(starts, ends, strict=True))


_MARKS = _combining_marks()
_RUN = rf"[^\W_]+(?:[{_MARKS}]+[^\W_]*)*"
_WORD = rf"{_RUN}(?:['’-]{_RUN})*"
WORD = re.compile(_WORD)
_LETTER = re.compile(rf".[{_MARKS}]*", re.DOTALL)
# The edges of a word, as \b, which takes a mark for the end of one.
_START, _END = rf"(?<!\w)(?<![{_MARKS}])", rf"(?!\w)(?![{_MARKS}])"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORD_CACHE_SIZE = 2**16


def perturb(
    texts: str | Sequence[str], names: str | Sequence[str], amount: float | Sequence[float] = 0.5, seed: int = 0
) -> str | list[str]:
    """Perturb a text or several; each text independently of the others.

    Args:
        texts: a text, or a sequence of texts.
        names: a perturbation of `PERTURBATIONS`, or several, applied one after the other.
        amount: share of the eligible places to change, 0 to 1; or one share for each name.
        seed: at least 0; another seed changes other places.

    Returns:
        The perturbed text, or a list of them.

    Raises:
        ValueError: an unknown name, an amount outside 0 to 1, a number of amounts that differs from that of the names,
            or a negative seed.
    """
    steps = _check_steps(names, amount)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed is {seed!r}; expected an integer of at least 0")
    if isinstance(texts, str):
        return _apply_steps(texts, steps, seed)
    return [_apply_steps(text, steps, seed) for text in texts]


@dataclass(frozen=True)
class Perturbation:
    """One way to change a text.

    Args:
        name: its key in `PERTURBATIONS`.
        kind: "word_edit", "invariance", "directional", "truncation" or "control".
        summary: what it does, which places are eligible, and where it differs from the well-known tool.
        apply: (text, amount, draws) -> text; `draws(n)` gives n pairs of random integers below 2^64.
        expects: for a directional one, the label (0 or 1) that it argues for; None if it reverses what the text says.
        stream: the perturbation whose random numbers it uses, so that both change the same places; "" for its own.
    """

    name: str
    kind: str
    summary: str
    apply: Change
    expects: int | None = None
    stream: str = ""


def random_numbers(seed: int, name: str, text: str) -> Draws:
    """A source of random numbers that depends on its arguments alone, the same in every process.

    Only the bit generator's raw numbers are used, because NumPy guarantees that their stream does not change.
    """

    def draws(count: int) -> np.ndarray:
        key = f"{seed}\0{name}\0{text}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(key, digest_size=16).digest()
        generator = np.random.PCG64(int.from_bytes(digest, "big"))
        return generator.random_raw(2 * count).reshape(count, 2)

    return draws


def replace_spans(text: str, spans: Sequence[Span], replacements: dict[int, str]) -> str:
    """`text` with some of its spans replaced.

    Args:
        text: any text.
        spans: in order, without overlap.
        replacements: index of a span -> what replaces it, by ascending index.
    """
    parts, end_of_last = [], 0
    for index, replacement in replacements.items():
        start, end = spans[index]
        parts += [text[end_of_last:start], replacement]
        end_of_last = end
    return "".join([*parts, text[end_of_last:]])


def _check_steps(names: str | Sequence[str], amount: float | Sequence[float]) -> list[tuple[Perturbation, float]]:
    """The perturbations and their amounts; raises as `perturb`."""
    names = [names] if isinstance(names, str) else list(names)
    amounts = [amount] * len(names) if isinstance(amount, int | float) else list(amount)
    if len(amounts) != len(names):
        raise ValueError(f"{len(amounts)} amounts for {len(names)} perturbations; expected one amount, or one for each")
    for name in names:
        if name not in PERTURBATIONS:
            raise ValueError(f"unknown perturbation {name!r}; expected one of {', '.join(PERTURBATIONS)}")
    for share in amounts:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ValueError(f"amount is {share!r}; expected a share from 0 to 1")
    return [(PERTURBATIONS[name], share) for name, share in zip(names, amounts, strict=True)]


def _apply_steps(text: str, steps: list[tuple[Perturbation, float]], seed: int) -> str:
    for perturbation, amount in steps:
        draws = random_numbers(seed, perturbation.stream or perturbation.name, text)
        text = perturbation.apply(text, amount, draws)
    return text


def _num_changed(amount: float, num_eligible: int) -> int:
    """How many places to change: amount times the eligible ones, halves rounded up."""
    return floor(amount * num_eligible + 0.5)


def _choose(amount: float, num_eligible: int, draws: Draws) -> Iterator[tuple[int, int]]:
    """Indices of the chosen places in ascending order, each with a random integer below 2^64 of its own."""
    num_changed = _num_changed(amount, num_eligible)
    if not num_changed:
        return
    numbers = draws(num_eligible)
    chosen = np.sort(np.argsort(numbers[:, 0], kind="stable")[:num_changed])
    yield from zip(chosen.tolist(), numbers[chosen, 1].tolist(), strict=True)


# ---------------------------------------------------------------- edits of one letter of a word


def _letter_edit(
    positions_in: Callable[[list[str]], tuple[int, ...]], edit: Callable[[list[str], int, int], list[str]]
) -> Change:
    """A change of one letter in each chosen word, which is a list of letters (with their marks) and signs.

    Args:
        positions_in: the positions of a word at which the edit is possible; a word without any is not eligible.
        edit: (word, position, random integer) -> the word after the edit.
    """

    @lru_cache(maxsize=WORD_CACHE_SIZE)
    def positions_of(word: str) -> tuple[int, ...]:
        return positions_in(_letters(word))

    def apply(text: str, amount: float, draws: Draws) -> str:
        spans = [match.span() for match in WORD.finditer(text) if positions_of(match.group())]
        replacements = {}
        for index, random in _choose(amount, len(spans), draws):
            word = text[slice(*spans[index])]
            positions = positions_of(word)
            rest, choice = divmod(random, len(positions))
            replacements[index] = "".join(edit(_letters(word), positions[choice], rest))
        return replace_spans(text, spans, replacements)

    return apply


def _letters(word: str) -> list[str]:
    """The letters, digits and signs of a word, each with its marks."""
    return list(word) if word.isalnum() else _LETTER.findall(word)


def _is_letter(sign: str) -> bool:
    return sign[0].isalpha()


def _letter_positions(word: list[str]) -> tuple[int, ...]:
    return tuple(i for i, sign in enumerate(word) if _is_letter(sign))


def _deletable_positions(word: list[str]) -> tuple[int, ...]:
    """Letters of words that have another letter."""
    positions = _letter_positions(word)
    return positions if len(positions) > 1 else ()


def _swappable_positions(word: list[str]) -> tuple[int, ...]:
    """Letters whose right neighbour is another letter."""
    return tuple(
        i for i in range(len(word) - 1) if word[i] != word[i + 1] and _is_letter(word[i]) and _is_letter(word[i + 1])
    )


def _insertable_positions(word: list[str]) -> tuple[int, ...]:
    """Before, between and after the letters."""
    return tuple(range(len(word) + 1)) if any(map(_is_letter, word)) else ()


def _positions_in_table(table: dict[str, str], ignore_case: bool) -> Callable[[list[str]], tuple[int, ...]]:
    """Positions whose letter is a key of a table."""
    return lambda word: tuple(i for i, sign in enumerate(word) if (sign.lower() if ignore_case else sign) in table)


def _swap(word: list[str], position: int, random: int) -> list[str]:
    return [*word[:position], word[position + 1], word[position], *word[position + 2 :]]


def _qwerty(word: list[str], position: int, random: int) -> list[str]:
    neighbours = QWERTY[word[position].lower()]
    return _replace_letter(word, position, neighbours[random % len(neighbours)])


def _deletion(word: list[str], position: int, random: int) -> list[str]:
    return word[:position] + word[position + 1 :]


def _insertion(word: list[str], position: int, random: int) -> list[str]:
    """A lower-case letter; a capital beside a capital of a word in capitals."""
    neighbour = word[position] if position < len(word) else word[-1]
    letter = LETTERS[random % 26]
    return [
        *word[:position],
        _match_case(letter, neighbour) if "".join(word).isupper() else letter,
        *word[position:],
    ]


def _substitution(word: list[str], position: int, random: int) -> list[str]:
    others = LETTERS.replace(word[position].lower(), "")
    return _replace_letter(word, position, others[random % len(others)])


def _homoglyph(word: list[str], position: int, random: int) -> list[str]:
    return [*word[:position], HOMOGLYPHS[word[position]], *word[position + 1 :]]


def _repetition(word: list[str], position: int, random: int) -> list[str]:
    return word[:position] + [word[position]] * (2 + random % 3) + word[position + 1 :]


def _replace_letter(word: list[str], position: int, letter: str) -> list[str]:
    """The word with another letter, in the case of the one that it replaces."""
    return [*word[:position], _match_case(letter, word[position]), *word[position + 1 :]]


def _match_case(letter: str, other: str) -> str:
    """`letter` in the case of `other`."""
    return letter.upper() if other.isupper() else letter


def _keyboard_neighbours() -> dict[str, str]:
    """The letters around each letter of a QWERTY keyboard, whose lower rows are shifted right by 0.25 and 0.75 keys."""
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


QWERTY = _keyboard_neighbours()
# Letters of other scripts that look the same in most fonts (Unicode Technical Standard 39, confusables).
HOMOGLYPHS = dict(
    zip(
        "acdeghijlnopqsuvwxyzABCEHIJKMNOPSTXYZ",
        "асԁеɡһіјӏոорԛѕυνԝхуᴢАВСЕНІЈКМΝОРЅТХУΖ",
        strict=True,
    )
)


# ---------------------------------------------------------------- replacements of spans of the text


def _span_change(spans_in: Callable[[str], list[Span]], change: Callable[[str, int], str]) -> Change:
    """A replacement of each chosen span.

    Args:
        spans_in: the eligible spans of a text, in order, without overlap.
        change: (old, random integer) -> new content of a span, which differs from the old one.
    """

    def apply(text: str, amount: float, draws: Draws) -> str:
        spans = spans_in(text)
        chosen = _choose(amount, len(spans), draws)
        return replace_spans(text, spans, {i: change(text[slice(*spans[i])], random) for i, random in chosen})

    return apply


def _matches(pattern: str, flags: int = re.IGNORECASE) -> Callable[[str], list[Span]]:
    """The spans of a pattern."""
    compiled = re.compile(pattern, flags)
    return lambda text: [match.span() for match in compiled.finditer(text)]


def _words_changed_by(change: Callable[[str], str]) -> Callable[[str], list[Span]]:
    """The spans of the words that a function changes."""
    return lambda text: [match.span() for match in WORD.finditer(text) if change(match.group()) != match.group()]


_WORD_OR_SIGN = re.compile(rf"{_WORD}|([^\w\s][{_MARKS}]*)")


def _punctuation(text: str) -> list[Span]:
    """The spans of the signs outside words, each with its marks."""
    return [match.span() for match in _WORD_OR_SIGN.finditer(text) if match.group(1)]


def _from_table(table: dict[str, str]) -> Callable[[str, int], str]:
    """A change by a table of lower-case texts, in which white space is one blank and an apostrophe straight."""
    return lambda old, random: _match_word_case(table[" ".join(old.lower().replace("’", "'").split())], old)


def _match_word_case(new: str, old: str) -> str:
    """`new` in the case of `old`: in capitals (if `old` has at least two), with a capital first letter, or as it is."""
    if sum(map(str.isupper, old)) > 1 and old.upper() == old:
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


def _alternatives(texts: Sequence[str]) -> str:
    """A pattern for any of the texts, longer ones first; any white space (but nothing else) between their words."""
    longest_first = sorted(texts, key=len, reverse=True)
    return (
        "(?:" + "|".join(r"\s+".join(map(re.escape, text.split())).replace("'", "['’]") for text in longest_first) + ")"
    )


def _written_out(old: str, random: int) -> str:
    """A contraction written out; the pronoun I keeps its capital, which does not make "I'm" a text in capitals."""
    new = _from_table(EXTENSIONS)(old, random)
    return new if sum(map(str.isupper, old)) > 1 or not old[0].isupper() else new[0] + new[1:].lower()


def _affirmed(old: str, random: int) -> str:
    """A verb without its negation."""
    verb = re.sub(r"\s+not$", "", old, flags=re.IGNORECASE)
    if verb != old:
        return verb
    irregular = _AFFIRMED.get(old.lower().replace("’", "'"))
    return _match_word_case(irregular, old) if irregular else old[:-3]


def _other_of(groups: Sequence[Sequence[str]]) -> Callable[[str, int], str]:
    """Another member of a word's group."""

    def change(old: str, random: int) -> str:
        others = next([other for other in group if other != old] for group in groups if old in group)
        return others[random % len(others)]

    return change


def _other_number(old: str, random: int) -> str:
    """Another number of as many digits, without a leading zero."""
    low, high = (10 ** (len(old) - 1), 10 ** len(old)) if len(old) > 1 else (0, 10)
    num_others = high - low - (low <= int(old) < high)
    new = low + random % num_others
    return str(new + (low <= int(old) <= new))


_NEGATIVE_CONTRACTIONS = {
    f"{verb} not": f"{short}n't"
    for verb, short in [
        *((v, v) for v in "is are was were do does did have has had would could should might must need".split()),
        ("will", "wo"),
        ("shall", "sha"),
    ]
} | {"cannot": "can't"}
_POSITIVE_CONTRACTIONS = (
    {"i am": "i'm", "let us": "let's"}
    | {f"{who} are": f"{who}'re" for who in ("you", "we", "they")}
    | {f"{who} have": f"{who}'ve" for who in ("i", "you", "we", "they")}
    | {f"{who} will": f"{who}'ll" for who in ("i", "you", "he", "she", "it", "we", "they", "that", "there")}
    | {f"{who} would": f"{who}'d" for who in ("i", "you", "he", "she", "we", "they")}
    | {f"{who} is": f"{who}'s" for who in ("he", "she", "it", "that", "there", "what", "who", "where", "here", "how")}
)
CONTRACTIONS = _NEGATIVE_CONTRACTIONS | _POSITIVE_CONTRACTIONS
EXTENSIONS = {short: long for long, short in CONTRACTIONS.items()}
# "I am" may become "I'm" only where the sentence continues: not in "Yes, I am."
_CONTRACTIBLE = (
    rf"{_START}(?:{_alternatives(list(_NEGATIVE_CONTRACTIONS))}{_END}"
    rf"|{_alternatives(list(_POSITIVE_CONTRACTIONS))}(?=\s+\w))"
)
# "Isn't it?" can't be written out in place: "Is not it?" is not English.
_INVERTED = r"(?<=n['’]t)\s+(?:i|you|he|she|it|we|they|there|this|that)" + _END
_EXTENDABLE = rf"(?<!['’-]){_START}{_alternatives(list(EXTENSIONS))}{_END}(?!['’-])(?!{_INVERTED})"

FIRST_NAMES = (
    "James John Robert Michael William David Richard Joseph Thomas Charles Mary Patricia Jennifer Linda Elizabeth "
    "Barbara Susan Jessica Sarah Karen Peter Paul George Frank Jack Tom Steve Kevin Brian Mark Anna Emma Julia Laura "
    "Helen Alice Jane Kate Lucy Nancy Tony Bruce Chris Daniel Harry Henry Martin Simon Walter Arnold"
).split()
PLACE_NAMES = (
    "London Paris Berlin Rome Madrid Tokyo Vienna Chicago Boston Dallas Seattle Houston Toronto Sydney Moscow Dublin "
    "America England France Germany Italy Spain Japan China India Canada Mexico Brazil Russia Ireland"
).split()
# A number may be a rating ("a 10", "9 stars!", "+9", "7."), which carries sentiment, so that changing it would not be
# neutral. Only years, and numbers of what no rating counts, are taken for neutral.
COUNTED = (
    "second seconds minute minutes min mins hour hours hr hrs day days night nights week weeks weekend weekends month "
    "months year years decade decades century centuries pm o'clock dollar dollars buck bucks euro euros pound pounds "
    "cent cents people person persons men women guys girls boys kids children adults friends mile miles km kilometers "
    "kilometres block blocks foot feet inch inches yard yards meter meters metre metres pages"
).split()
_NEUTRAL_NUMBER = (
    rf"(?<![.,/$%+#*:-])(?<!out\sof\s)(?<!\d\sof\s){_START}"
    rf"(?:\d{{1,4}}(?=\s+{_alternatives(COUNTED)}{_END})"
    rf"|(?:1[5-9]|20)\d\d{_END}(?![%+-]|[.,]\d|\s*(?:[/★*]|(?:out\s+)?of\s+\d|(?:stars?|points?){_END})))"
)

_ANTONYM_PAIRS = (
    "good bad, great terrible, best worst, better worse, love hate, loved hated, loves hates, liked disliked, "
    "likes dislikes, wonderful awful, excellent horrible, brilliant stupid, beautiful ugly, amazing appalling, "
    "interesting boring, exciting dull, funny unfunny, enjoyable tedious, enjoyed endured, perfect flawed, "
    "perfectly poorly, superb dreadful, fantastic abysmal, impressive unimpressive, strong weak, fresh stale, "
    "believable implausible, original unoriginal, clever silly, talented talentless, memorable forgettable, "
    "delicious disgusting, friendly rude, clean dirty, fast slow, happy unhappy, pleasant unpleasant, fun tiresome, "
    "recommend condemn, recommended condemned, masterpiece disaster, success failure, succeeds fails"
)
ANTONYMS = {
    word: opposite for pair in _ANTONYM_PAIRS.split(", ") for word, opposite in (pair.split(), reversed(pair.split()))
}
_NEGATABLE = rf"{_START}(?:is|are|was|were){_END}(?=\s+\w)(?!\s+not{_END})"
_NEGATED_VERBS = (
    "am is are was were do does did have has had can could will would shall should may might must need dare ought"
).split()
# Contractions with not that are more than the verb and n't.
_AFFIRMED = {"cannot": "can", "can't": "can", "won't": "will", "shan't": "shall"}
# "It's not" too; but "not only" negates nothing.
_NEGATED = (
    rf"(?:{_START}(?:{'|'.join(_NEGATED_VERBS)})(?:\s+not|n['’]t)"
    rf"|{_START}{_alternatives(list(_AFFIRMED))}"
    rf"|(?<=\w)['’](?:m|s|re|ve|ll|d)\s+not){_END}(?!\s+(?:only|just|merely){_END})"
)


# ---------------------------------------------------------------- changes of the whole text


_WORD_AND_GAP = re.compile(rf"(?:(?<=\S)\s+)?{_WORD}")


def _drop_words(text: str, amount: float, draws: Draws) -> str:
    """Chosen words are removed, each with the white space before it."""
    spans = [match.span() for match in _WORD_AND_GAP.finditer(text)]
    rest = replace_spans(text, spans, {index: "" for index, _ in _choose(amount, len(spans), draws)})
    return rest if text[:1].isspace() else rest.lstrip()


def _shuffle_words(text: str, amount: float, draws: Draws) -> str:
    """Chosen words move to each other's positions and none keeps its own, unless only one is chosen."""
    spans = [match.span() for match in WORD.finditer(text)]
    chosen = list(_choose(amount, len(spans), draws))
    # In a random order each position gets the word of the next one: a cycle through all of them.
    order = [index for index, _ in sorted(chosen, key=lambda pair: pair[1])]
    source = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return replace_spans(text, spans, {index: text[slice(*spans[source[index]])] for index, _ in chosen})


def _truncate(front: bool) -> Change:
    """The first or the last words are removed, with everything before or after them."""

    def apply(text: str, amount: float, draws: Draws) -> str:
        spans = [match.span() for match in WORD.finditer(text)]
        num_removed = _num_changed(amount, len(spans))
        if not num_removed:
            return text
        if num_removed == len(spans):
            return ""
        return text[spans[num_removed][0] :] if front else text[: spans[-num_removed - 1][1]]

    return apply


def _add_sentences(sentences: Sequence[str], front: bool) -> Change:
    """Chosen sentences, in their order, before or after the text."""

    def apply(text: str, amount: float, draws: Draws) -> str:
        chosen = [sentences[index] for index, _ in _choose(amount, len(sentences), draws)]
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


# ---------------------------------------------------------------- the perturbations

_SENTIMENT_WORDS = _matches(rf"{_START}{_alternatives(list(ANTONYMS))}{_END}(?!['’-]\w)")

# The edits of letters that have controls: where a word has a letter that they change.
_LETTER_TABLES = {
    "homoglyph": _positions_in_table(HOMOGLYPHS, ignore_case=False),
    "qwerty": _positions_in_table(QWERTY, ignore_case=True),
}


def _word_control(edit: str, becomes: str) -> Perturbation:
    """The control of an edit of letters that replaces the words that it changes by [UNK], or leaves them out."""
    replacement, what = {
        "unknown": (["[UNK]"], "become the tokenizer's [UNK]"),
        "removed": ([], "are left out"),
    }[becomes]
    return Perturbation(
        f"{edit}_{becomes}",
        "control",
        f"The words that {edit} changes with the same seed and amount {what}.",
        _letter_edit(_LETTER_TABLES[edit], lambda word, position, random: replacement),
        stream=edit,
    )


_ALL = (
    Perturbation(
        "contraction",
        "word_edit",
        "Two words become one: do not -> don't. Eligible: the pairs of `CONTRACTIONS`, with only white space between "
        "their words; it is -> it's where a word follows. Keeps the case of a sentence's first word. TextAttack "
        "searches its list of words, between which there may have been punctuation.",
        _span_change(_matches(_CONTRACTIBLE), _from_table(CONTRACTIONS)),
    ),
    Perturbation(
        "extension",
        "word_edit",
        "A contraction is written out: don't -> do not, can't -> cannot. The inverse of contraction; 's and 'd, which "
        "can stand for two words each, become is and would; n't before a pronoun (isn't it?) is not eligible.",
        _span_change(_matches(_EXTENDABLE), _written_out),
    ),
    Perturbation(
        "homoglyph",
        "word_edit",
        "A letter becomes one of another script that looks alike: a -> Cyrillic а. Eligible: words with a letter of "
        "`HOMOGLYPHS`, capitals included; the position is drawn among those letters.",
        _letter_edit(_LETTER_TABLES["homoglyph"], _homoglyph),
    ),
    Perturbation(
        "swap",
        "word_edit",
        "Two neighbouring letters change places: good -> godo. Eligible: words with two neighbours that differ; the "
        "position is drawn among those pairs, so that the word always changes.",
        _letter_edit(_swappable_positions, _swap),
    ),
    Perturbation(
        "qwerty",
        "word_edit",
        "A letter becomes a neighbour on a QWERTY keyboard, in its case. Neighbours are mutual: q is beside w, and w "
        "beside q. Eligible: words with a letter from a to z.",
        _letter_edit(_LETTER_TABLES["qwerty"], _qwerty),
    ),
    Perturbation(
        "deletion",
        "word_edit",
        "A letter is removed. Eligible: words of at least two letters, so that no word is removed whole.",
        _letter_edit(_deletable_positions, _deletion),
    ),
    Perturbation(
        "insertion",
        "word_edit",
        "A random letter is inserted before, between or after the others (TextAttack: never after the last). Eligible: "
        "words with a letter.",
        _letter_edit(_insertable_positions, _insertion),
    ),
    Perturbation(
        "substitution",
        "word_edit",
        "A letter becomes another one from a to z, in its case. Eligible: words with a letter.",
        _letter_edit(_letter_positions, _substitution),
    ),
    Perturbation(
        "uppercase",
        "invariance",
        "Words in upper case. Eligible: words that this changes.",
        _span_change(_words_changed_by(str.upper), lambda word, random: word.upper()),
    ),
    Perturbation(
        "lowercase",
        "invariance",
        "Words in lower case. Eligible: words that this changes.",
        _span_change(_words_changed_by(str.lower), lambda word, random: word.lower()),
    ),
    Perturbation(
        "punctuation",
        "invariance",
        "Punctuation is removed. Eligible: every sign outside a word that is not a letter, digit or white space.",
        _span_change(_punctuation, lambda sign, random: ""),
    ),
    Perturbation(
        "spaces",
        "invariance",
        "White space grows by two to four blanks. Eligible: every run of white space.",
        _span_change(_matches(r"\s+"), lambda gap, random: gap + " " * (2 + random % 3)),
    ),
    Perturbation(
        "joined",
        "invariance",
        "Two words are written as one. Eligible: every run of white space between two words.",
        _span_change(_matches(rf"(?<=[\w{_MARKS}])\s+(?=\w)"), lambda gap, random: ""),
    ),
    Perturbation(
        "repetition",
        "invariance",
        "A letter appears two to four times: goood. Eligible: words with a letter.",
        _letter_edit(_letter_positions, _repetition),
    ),
    Perturbation("dropped", "invariance", "Words are removed, with the white space before them.", _drop_words),
    Perturbation(
        "shuffled",
        "invariance",
        "Words move to each other's positions. Eligible: every word; if at least two are chosen, none keeps its own.",
        _shuffle_words,
    ),
    Perturbation(
        "distractor_front",
        "invariance",
        "Neutral sentences before the text. Eligible: the four of `NEUTRAL`.",
        _add_sentences(NEUTRAL, front=True),
    ),
    Perturbation(
        "distractor_end",
        "invariance",
        "Neutral sentences after the text. Eligible: the four of `NEUTRAL`.",
        _add_sentences(NEUTRAL, front=False),
    ),
    Perturbation(
        "names",
        "invariance",
        "First names and places become others. Eligible: those of `FIRST_NAMES` and `PLACE_NAMES`, with their capital.",
        _span_change(
            _matches(rf"{_START}(?:{'|'.join([*FIRST_NAMES, *PLACE_NAMES])}){_END}", 0),
            _other_of((FIRST_NAMES, PLACE_NAMES)),
        ),
    ),
    Perturbation(
        "numbers",
        "invariance",
        "Numbers become others of as many digits. Eligible: years from 1500 to 2099, and whole numbers of up to four "
        "digits before a word of `COUNTED` (90 minutes, 12 dollars). Any other number may be a rating and stays.",
        _span_change(_matches(_NEUTRAL_NUMBER), _other_number),
    ),
    Perturbation(
        "negation_added",
        "directional",
        "was good -> was not good. Eligible: is, are, was and were before a word other than `not`.",
        _span_change(_matches(_NEGATABLE), lambda verb, random: verb + (" NOT" if verb.isupper() else " not")),
    ),
    Perturbation(
        "negation_removed",
        "directional",
        "was not good -> was good, didn't -> did, can't -> can, it's not -> it's. Eligible: a verb with not or n't, "
        "and cannot. Other negations stay: never, no, nothing, nor, neither, hardly, without, ain't.",
        _span_change(_matches(_NEGATED), _affirmed),
    ),
    Perturbation(
        "antonym",
        "directional",
        "A sentiment word becomes its opposite, in its case. Eligible: the words of `ANTONYMS`.",
        _span_change(_SENTIMENT_WORDS, _from_table(ANTONYMS)),
    ),
    Perturbation(
        "praise",
        "directional",
        "Sentences of praise after the text. Eligible: the four of `PRAISE`.",
        _add_sentences(PRAISE, front=False),
        expects=1,
    ),
    Perturbation(
        "blame",
        "directional",
        "Sentences of blame after the text. Eligible: the four of `BLAME`.",
        _add_sentences(BLAME, front=False),
        expects=0,
    ),
    Perturbation("truncated_front", "truncation", "The first words are removed.", _truncate(front=True)),
    Perturbation("truncated_end", "truncation", "The last words are removed.", _truncate(front=False)),
    *(_word_control(edit, becomes) for edit in _LETTER_TABLES for becomes in ("unknown", "removed")),
    Perturbation(
        "antonym_removed",
        "control",
        "The words that antonym changes with the same seed and amount are left out.",
        _span_change(_SENTIMENT_WORDS, lambda word, random: ""),
        stream="antonym",
    ),
)
PERTURBATIONS = {perturbation.name: perturbation for perturbation in _ALL}
WORD_EDITS = tuple(perturbation.name for perturbation in _ALL if perturbation.kind == "word_edit")
# The typos among them.
LETTER_EDITS = ("swap", "qwerty", "deletion", "insertion", "substitution")
