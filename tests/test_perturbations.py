"""perturbations.py: exact amounts, nothing else touched, the same everywhere; what becomes of each text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config import InputError
from perturbations import (
    CONTRACTIONS,
    EIGHT,
    EXTENSIONS,
    HOMOGLYPHS,
    PERTURBATIONS,
    QWERTY,
    STOP_WORDS,
    how_many,
    perturb,
)

LETTER = ("homoglyph", "swap", "qwerty", "deletion", "insertion", "substitution", "repetition")
# Perturbations that replace spans of the text where they stand.
REPLACING = (
    *LETTER,
    "uppercase",
    "lowercase",
    "negation_added",
    "negation_removed",
    "antonym",
    "contraction",
    "extension",
)
REVIEW = "I don't think it was good: the food (cold!) cost 12 dollars, and James wasn't friendly at all."
PIECES = ["good", "I am", "don't", "not", "12", "7/10", "The", "AWFUL", "été", "…", "\U0001f600", "x", "London", "was"]
ANY_TEXT = st.text(max_size=120) | st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join)
# Words and signs such that every word can be told in the text after a change, too.
ONE = st.from_regex(r"[A-Za-zéß0-9]{1,9}", fullmatch=True)
GAPS = st.sampled_from([" ", "  ", "\n", ", ", ". ", " (", ") ", "!? ", " … ", " \U0001f600 "])
PLAIN_TEXT = st.lists(st.tuples(ONE, GAPS), max_size=30).map(lambda parts: "".join(a + b for a, b in parts))
SETTINGS = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def parts(text: str) -> tuple[list[str], list[str]]:
    """The words of a text of `PLAIN_TEXT`, and what stands between them."""
    return re.findall(r"\w+", text), re.split(r"\w+", text)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("name", PERTURBATIONS)
@SETTINGS
@given(text=ANY_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_any_text_passes_and_the_result_is_a_function_of_seed_name_and_text(name, text, amount, seed):
    found = perturb(text, name, amount, seed)
    assert isinstance(found, str)
    assert perturb(["other", text, text], name, amount, seed)[1:] == [found, found]
    assert perturb(text, name, 0.0, seed) == text


@pytest.mark.parametrize("name", LETTER)
@SETTINGS
@given(text=PLAIN_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5), ends=st.booleans(), least=st.integers(1, 4))
def test_exactly_the_share_of_eligible_words_changes_and_nothing_between_them(name, text, amount, seed, ends, least):
    limits = {"spare_ends": ends, "min_length": least}
    before, gaps = parts(text)
    after, gaps_after = parts(perturb(text, name, amount, seed, **limits))
    assert gaps_after == gaps
    eligible = sum(perturb(word, name, 1.0, seed, **limits) != word for word in before)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == how_many(amount, eligible)
    for old, new in changed:
        assert abs(len(old) - len(new)) <= 3
        assert sum(map(str.isalpha, old)) >= least
        if ends:
            assert (old[0], old[-1]) == (new[0], new[-1])


@pytest.mark.parametrize("name", LETTER)
@SETTINGS
@given(text=PLAIN_TEXT, seed=st.integers(0, 5))
def test_a_larger_amount_changes_the_words_of_a_smaller_one_and_more(name, text, seed):
    before, _ = parts(text)
    few, more = (parts(perturb(text, name, amount, seed))[0] for amount in (0.3, 0.8))
    for word, little, much in zip(before, few, more, strict=True):
        assert little in (word, much)


@pytest.mark.parametrize("name", REPLACING)
@SETTINGS
@given(text=st.text(alphabet="0123456789 .,!?()\n\U0001f600…-_", max_size=60), seed=st.integers(0, 3))
def test_a_text_with_nothing_eligible_stays_as_it_is(name, text, seed):
    assert perturb(text, name, 1.0, seed) == text


@SETTINGS
@given(picked=st.lists(st.sampled_from([*EXTENSIONS, "good", "Don't", "It's", "they", "CAN'T"]), max_size=12))
def test_contraction_undoes_extension(picked):
    """Where a word follows: of "I'm" at the end nothing else can be told."""
    text = " so ".join([*picked, "so"])
    written_out = perturb(text, "extension", 1.0)
    assert "'" not in written_out
    assert perturb(written_out, "contraction", 1.0) == text


@SETTINGS
@given(picked=st.lists(st.sampled_from([*CONTRACTIONS, "Do not", "They are", "Cannot", "IS NOT"]), max_size=8))
def test_extension_undoes_contraction(picked):
    text = " so ".join([*picked, "so"])
    assert perturb(perturb(text, "contraction", 1.0), "extension", 1.0) == text


@SETTINGS
@given(text=PLAIN_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_words_that_drop_or_move_are_counted(text, amount, seed):
    before, _ = parts(text)
    kept, _ = parts(perturb(text, "dropped", amount, seed))
    assert len(kept) == len(before) - how_many(amount, len(before))
    moved, gaps = parts(perturb(text, "shuffled", amount, seed))
    assert sorted(moved) == sorted(before)
    assert gaps == parts(text)[1]
    assert sum(a != b for a, b in zip(before, moved, strict=True)) <= how_many(amount, len(before))


def test_every_chosen_word_moves_when_all_differ():
    text = " ".join(f"w{i}x" for i in range(40))
    for amount in (0.1, 0.5, 1.0):
        moved = perturb(text, "shuffled", amount).split()
        assert sum(a != b for a, b in zip(text.split(), moved, strict=True)) == how_many(amount, 40)


@pytest.mark.parametrize(("name", "kept"), [("truncated_front", slice(4, None)), ("truncated_end", slice(None, -4))])
def test_truncation_takes_the_words_of_one_end(name, kept):
    text = "One two, three four. Five six seven (eight)!"
    assert parts(perturb(text, name, 0.5))[0] == parts(text)[0][kept]
    assert perturb(text, name, 1.0) == ""
    assert perturb("", name, 1.0) == ""


def test_places_are_drawn_evenly():
    """Of a word's letters each is as likely: over 2,000 seeds chi-squared stays below its one in a thousand."""
    word, counts = "abcdefg", [0] * 7
    for seed in range(2000):
        found = perturb(word, "homoglyph", 1.0, seed)
        counts[[old != new for old, new in zip(word, found, strict=True)].index(True)] += 1
    mapped = [count for letter, count in zip(word, counts, strict=True) if letter in HOMOGLYPHS]
    expected = 2000 / len(mapped)
    assert sum((count - expected) ** 2 / expected for count in mapped) < 22.5


def test_composition_is_one_step_after_the_other_with_an_amount_each():
    names, amounts = ["contraction", "qwerty", "dropped", "qwerty"], [1.0, 0.5, 0.2, 0.5]
    text = REVIEW
    for name, amount in zip(names, amounts, strict=True):
        text = perturb(text, name, amount, 3)
    assert perturb(REVIEW, names, amounts, 3) == text


def test_the_same_in_every_process_whatever_the_hash_seed():
    code = (
        "from perturbations import perturb, PERTURBATIONS as P; "
        f"print([ascii(perturb({REVIEW!r}, name, 0.5, 7)) for name in P])"
    )
    outputs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        outputs.add(run.stdout)
    assert outputs == {str([ascii(perturb(REVIEW, name, 0.5, 7)) for name in PERTURBATIONS]) + "\n"}


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_very_long_text_passes(name):
    text = "It was not good, James said in 1999. " * 12_500
    found = perturb(text, name, 0.5)
    assert found != text or name in ("contraction", "extension", "negation_added")


# ---------------------------------------------------------------- tables


def test_keyboard_neighbours_are_mutual_and_near():
    for letter, near in QWERTY.items():
        assert near
        assert letter not in near
        assert all(letter in QWERTY[other] for other in near)
    assert set(QWERTY["g"]) >= set("fhtyvb")
    assert set("pm").isdisjoint(QWERTY["q"])


def test_homoglyphs_are_other_letters():
    assert all(new != old and new.isalpha() and not new.isascii() for old, new in HOMOGLYPHS.items() if old != "g")
    assert any(letter.isupper() for letter in HOMOGLYPHS)


def test_each_short_form_has_one_long_form():
    assert len(EXTENSIONS) == len(CONTRACTIONS)


def test_each_perturbation_says_what_it_is():
    for name, perturbation in PERTURBATIONS.items():
        assert perturbation.name == name
        assert len(perturbation.summary) > 15
    assert len(EIGHT) == 8


# ---------------------------------------------------------------- settings, errors


def test_stop_words_and_short_words_can_be_spared():
    text = "The ending of this film was wonderful and so was it"
    for name in LETTER:
        after = perturb(text, name, 1.0, spare_stop_words=True)
        for old, new in zip(text.split(), after.split(), strict=True):
            assert (old == new) == (old.lower() in STOP_WORDS), (name, old, new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "typo"), "there is no perturbation 'typo'; there are contraction, "),
        (("a", "qwerty", 1.5), "amount is 1.5; expected a share from 0 to 1"),
        (("a", "qwerty", True), "amount is True"),
        (("a", "qwerty", float("nan")), "amount is nan"),
        (("a", ["qwerty", "swap"], [0.1]), "1 amounts for 2 perturbations"),
        (("a", "qwerty", 0.5, -1), "seed is -1; expected an integer of at least 0"),
        (("a", "qwerty", 0.5, 1.5), "seed is 1.5"),
    ],
)
def test_what_can_not_be_done_is_refused(arguments, message):
    with pytest.raises(InputError, match=re.escape(message)):
        perturb(*arguments)


def test_no_text_and_no_perturbation_are_fine():
    assert perturb([], "qwerty") == []
    assert perturb("as it is", []) == "as it is"


# ---------------------------------------------------------------- what each makes of a text

EXPECTED = json.loads(Path(__file__).with_name("expected_perturbations.json").read_text())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_each_text_becomes_what_the_table_says(name):
    """At amount 0.5 and seed 1: read by a person, and the same on every machine and version."""
    assert len(EXPECTED[name]) >= 5
    for text, expected in EXPECTED[name]:
        assert perturb(text, name, 0.5, 1) == expected


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("contraction", "Do not go. It is late, they are here; we cannot stay", None),
        ("contraction", "do,not it; is let\tus go", "do,not it; is let's go"),
        ("contraction", "Yes, I am. So it is!", "Yes, I am. So it is!"),
        ("extension", "DON'T! Won’t he? Isn't it? They're fine, can't be.", None),
        ("negation_added", "It was good and they are not bad", "It was not good and they are not bad"),
        ("negation_removed", "It wasn't good. IT DID NOT WORK", "It was good. IT DID WORK"),
        (
            "antonym",
            "Good food, LOVED it, well-being is not good-looking",
            "Bad food, HATED it, well-being is not good-looking",
        ),
        ("numbers", "3 of 10 stars, 8/10, 4 out of 5, 1.5 hours, the 80s, $20, 50%, no 7.", None),
        ("punctuation", "Well... (really?) don't, well-known!", "Well really don't well-known"),
        ("joined", "one two, three\nfour", "onetwo, threefour"),
        ("names", "James and London, but not james or Jamestown", None),
    ],
)
def test_rules_of_a_perturbation_at_the_full_amount(name, text, expected):
    found = perturb(text, name, 1.0, 2)
    if expected is not None:
        assert found == expected
        return
    wanted = {
        "contraction": r"Don't go\. It's late, they're here; we can't stay",
        "extension": r"DO NOT! Won’t he\? Isn't it\? They are fine, cannot be\.",
        "numbers": r"3 of 10 stars, 8/10, 4 out of 5, 1\.5 hours, the 80s, \$20, 50%, no [0-689]\.",
        "names": r"(?!James)[A-Z]\w+ and (?!London)[A-Z]\w+, but not james or Jamestown",
    }
    assert re.fullmatch(wanted[name], found), found
