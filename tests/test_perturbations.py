"""perturbations.py: exact amounts, nothing else changed, the same in every process; the output for each text."""

import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perturbations
from perturbations import (
    CONTRACTIONS,
    EXTENSIONS,
    HOMOGLYPHS,
    LETTER_EDITS,
    PERTURBATIONS,
    QWERTY,
    WORD,
    WORD_EDITS,
    perturb,
    random_numbers,
)

ONE_LETTER = (*LETTER_EDITS, "homoglyph", "repetition")
# Perturbations that replace spans of the text where they stand.
REPLACING = (
    *ONE_LETTER,
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
# Words and signs whose words can be recognised in the perturbed text.
ONE_WORD = st.from_regex(r"[A-Za-zéß0-9]{1,9}", fullmatch=True)
GAPS = st.sampled_from([" ", "  ", "\n", ", ", ". ", " (", ") ", "!? ", " … ", " \U0001f600 "])
PLAIN_TEXT = st.lists(st.tuples(ONE_WORD, GAPS), max_size=30).map(lambda parts: "".join(a + b for a, b in parts))
SETTINGS = settings(
    max_examples=50, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def num_changed(amount: float, num_eligible: int) -> int:
    """The definition: halves rounded up."""
    return math.floor(amount * num_eligible + 0.5)


def parts(text: str) -> tuple[list[str], list[str]]:
    """The words of a text of `PLAIN_TEXT`, and what is between them."""
    return re.findall(r"\w+", text), re.split(r"\w+", text)


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("name", PERTURBATIONS)
@SETTINGS
@given(text=ANY_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_output_depends_only_on_seed_name_and_text_for_any_text(name, text, amount, seed):
    perturbed = perturb(text, name, amount, seed)
    assert isinstance(perturbed, str)
    assert perturb(["other", text, text], name, amount, seed)[1:] == [perturbed, perturbed]
    assert perturb(text, name, 0.0, seed) == text


@pytest.mark.parametrize("name", ONE_LETTER)
@SETTINGS
@given(text=PLAIN_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_letter_edits_change_exactly_the_share_of_eligible_words(name, text, amount, seed):
    before, gaps = parts(text)
    after, gaps_after = parts(perturb(text, name, amount, seed))
    assert gaps_after == gaps
    num_eligible = sum(perturb(word, name, 1.0, seed) != word for word in before)
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == num_changed(amount, num_eligible)
    for old, new in changed:
        assert abs(len(old) - len(new)) <= 3


@pytest.mark.parametrize("name", ONE_LETTER)
@SETTINGS
@given(text=PLAIN_TEXT, seed=st.integers(0, 5))
def test_larger_amount_includes_the_changes_of_a_smaller_one(name, text, seed):
    before, _ = parts(text)
    few, more = (parts(perturb(text, name, amount, seed))[0] for amount in (0.3, 0.8))
    for word, little, much in zip(before, few, more, strict=True):
        assert little in (word, much)


@pytest.mark.parametrize("name", REPLACING)
@SETTINGS
@given(text=st.text(alphabet="0123456789 .,!?()\n\U0001f600…-_", max_size=60), seed=st.integers(0, 3))
def test_text_without_eligible_places_is_unchanged(name, text, seed):
    assert perturb(text, name, 1.0, seed) == text


@SETTINGS
@given(words=st.lists(st.sampled_from([*EXTENSIONS, "good", "Don't", "It's", "they", "CAN'T"]), max_size=12))
def test_contraction_undoes_extension(words):
    """Where a word follows; at the end of a text "I am" is never contracted."""
    text = " so ".join([*words, "so"])
    written_out = perturb(text, "extension", 1.0)
    assert "'" not in written_out
    assert perturb(written_out, "contraction", 1.0) == text


@SETTINGS
@given(words=st.lists(st.sampled_from([*CONTRACTIONS, "Do not", "They are", "Cannot", "IS NOT"]), max_size=8))
def test_extension_undoes_contraction(words):
    text = " so ".join([*words, "so"])
    assert perturb(perturb(text, "contraction", 1.0), "extension", 1.0) == text


@SETTINGS
@given(text=PLAIN_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_dropped_and_moved_words_match_the_amount(text, amount, seed):
    before, _ = parts(text)
    kept, _ = parts(perturb(text, "dropped", amount, seed))
    assert len(kept) == len(before) - num_changed(amount, len(before))
    moved, gaps = parts(perturb(text, "shuffled", amount, seed))
    assert sorted(moved) == sorted(before)
    assert gaps == parts(text)[1]
    assert sum(a != b for a, b in zip(before, moved, strict=True)) <= num_changed(amount, len(before))


def test_shuffled_moves_every_chosen_word():
    text = " ".join(f"w{i}x" for i in range(40))
    for amount in (0.1, 0.5, 1.0):
        moved = perturb(text, "shuffled", amount).split()
        assert sum(a != b for a, b in zip(text.split(), moved, strict=True)) == num_changed(amount, 40)


@pytest.mark.parametrize(("name", "kept"), [("truncated_front", slice(4, None)), ("truncated_end", slice(None, -4))])
def test_truncation_removes_the_words_of_one_end(name, kept):
    text = "One two, three four. Five six seven (eight)!"
    assert parts(perturb(text, name, 0.5))[0] == parts(text)[0][kept]
    assert perturb(text, name, 1.0) == ""
    assert perturb("", name, 1.0) == ""


def test_positions_in_a_word_are_uniformly_distributed():
    """Over 2,000 seeds chi-squared stays below its 99.9% quantile."""
    word, counts = "abcdefg", [0] * 7
    for seed in range(2000):
        perturbed = perturb(word, "homoglyph", 1.0, seed)
        counts[[old != new for old, new in zip(word, perturbed, strict=True)].index(True)] += 1
    mapped = [count for letter, count in zip(word, counts, strict=True) if letter in HOMOGLYPHS]
    expected = 2000 / len(mapped)
    assert sum((count - expected) ** 2 / expected for count in mapped) < 22.5


def test_composition_applies_each_step_with_its_amount():
    names, amounts = ["contraction", "qwerty", "dropped", "qwerty"], [1.0, 0.5, 0.2, 0.5]
    text = REVIEW
    for name, amount in zip(names, amounts, strict=True):
        text = perturb(text, name, amount, 3)
    assert perturb(REVIEW, names, amounts, 3) == text


def test_output_is_the_same_in_every_process_and_for_every_hash_seed():
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
def test_very_long_text_is_perturbed(name):
    text = "It was not good, James said in 1999. " * 12_500
    assert perturb(text, name, 0.5) != text or name in ("contraction", "extension", "negation_added")


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


def test_each_contraction_has_one_extension():
    assert len(EXTENSIONS) == len(CONTRACTIONS)


def test_each_perturbation_has_its_name_and_a_summary():
    for name, perturbation in PERTURBATIONS.items():
        assert perturbation.name == name
        assert len(perturbation.summary) > 15
    assert len(WORD_EDITS) == 8
    assert set(LETTER_EDITS) < set(WORD_EDITS)
    assert all(PERTURBATIONS[name].kind == "word_edit" for name in WORD_EDITS)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", "typo"), "unknown perturbation 'typo'; expected one of contraction, "),
        (("a", "qwerty", 1.5), "amount is 1.5; expected a share from 0 to 1"),
        (("a", "qwerty", True), "amount is True"),
        (("a", "qwerty", float("nan")), "amount is nan"),
        (("a", ["qwerty", "swap"], [0.1]), "1 amounts for 2 perturbations; expected one amount, or one for each"),
        (("a", "qwerty", 0.5, -1), "seed is -1; expected an integer of at least 0"),
        (("a", "qwerty", 0.5, 1.5), "seed is 1.5"),
    ],
)
def test_invalid_arguments_raise_value_error(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        perturb(*arguments)


def test_no_texts_and_no_perturbations_are_accepted():
    assert perturb([], "qwerty") == []
    assert perturb("as it is", []) == "as it is"


# ---------------------------------------------------------------- outputs of each

EXPECTED = json.loads(Path(__file__).with_name("expected_perturbations.json").read_text())


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_outputs_equal_the_reviewed_table(name):
    """At amount 0.5 and seed 1: checked by a person, and the same on every machine and version."""
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
        ("negation_removed", "can't, Cannot, CAN'T, can’t, can not", "can, Can, CAN, can, can"),
        ("negation_removed", "won't, Won’t, WON'T; will not, WILL NOT", "will, Will, WILL; will, WILL"),
        ("negation_removed", "Shan't, shall not, couldn’t, mustn't, may not", "Shall, shall, could, must, may"),
        ("negation_removed", "It's not bad, I'm NOT, I am not, they’re not", "It's bad, I'm, I am, they’re"),
        ("negation_removed", "It is not only bad; I never cared", "It is not only bad; I never cared"),
        ("negation_removed", "a cannoteer, note, want, ain't", "a cannoteer, note, want, ain't"),
        (
            "antonym",
            "Good food, LOVED it, well-being is not good-looking",
            "Bad food, HATED it, well-being is not good-looking",
        ),
        ("numbers", "In 1999 (or 1812), 90 minutes and 3  Hours for 12 dollars", None),
        ("punctuation", "Well... (really?) don't, well-known!", "Well really don't well-known"),
        ("joined", "one two, three\nfour", "onetwo, threefour"),
        ("names", "James and London, but not james or Jamestown", None),
    ],
)
def test_rules_of_each_perturbation_at_amount_1(name, text, expected):
    perturbed = perturb(text, name, 1.0, 2)
    if expected is not None:
        assert perturbed == expected
        return
    patterns = {
        "contraction": r"Don't go\. It's late, they're here; we can't stay",
        "extension": r"DO NOT! Won’t he\? Isn't it\? They are fine, cannot be\.",
        "numbers": r"In (?!1999)\d{4} \(or (?!1812)\d{4}\), (?!90)\d\d minutes and (?!3)\d  Hours for (?!12)\d\d "
        "dollars",
        "names": r"(?!James)[A-Z]\w+ and (?!London)[A-Z]\w+, but not james or Jamestown",
    }
    assert re.fullmatch(patterns[name], perturbed), perturbed


@pytest.mark.parametrize(
    "text",
    [
        "3 of 10 stars, 8/10, 4 out of 5, 1.5 hours, the 80s, $20, 50%",
        "a 10, a 7. +9 -3 9 stars! 9★ 9 ★ 9* 10/10 10 / 10 9-10 4 (of 5)",
        "3 out of 5; 2 thumbs up; Rating: 8, I give it a 4 for effort, 6 points, 100, #1",
        "9 out of 10 people, 9 of 10 people, 2000 stars, 8.5 8,5 1999/2000 top 10 films",
    ],
)
def test_numbers_leaves_ratings_and_what_may_be_one(text):
    assert perturb(text, "numbers", 1.0, 2) == text


# ---------------------------------------------------------------- combining marks

# Composed, so that each has another form, decomposed; the last have marks without a composed form.
MARKED = ["café", "Ñandú", "É", "naïve-été", "l’été", "über", "goo\u0323\u0308d", "हिन्दी", "क़िला"]
MARKED_TEXT = st.lists(st.tuples(st.sampled_from([*MARKED, "good", "is", "12"]), GAPS), max_size=12).map(
    lambda parts: unicodedata.normalize("NFC", "".join(a + b for a, b in parts))
)


def decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("word", MARKED)
def test_word_with_combining_marks_is_one_word(word):
    for form in (unicodedata.normalize("NFC", word), decomposed(word)):
        assert WORD.findall(f"a {form}, {form}.") == ["a", form, form]


@pytest.mark.parametrize("name", PERTURBATIONS)
@SETTINGS
@given(text=MARKED_TEXT, amount=st.floats(0, 1), seed=st.integers(0, 5))
def test_letter_and_its_marks_are_perturbed_as_one_letter(name, text, amount, seed):
    """With the same random numbers both forms of a text get the same edits."""
    draws = random_numbers(seed, name, text)
    apply = PERTURBATIONS[name].apply
    assert decomposed(apply(decomposed(text), amount, draws)) == decomposed(apply(text, amount, draws))


def test_word_lists_do_not_match_inside_a_word_with_marks():
    text = decomposed("goodé ìs good-natured badé éis Jamesé ésJames é12 hours, cań't")
    for name in ("antonym", "negation_added", "negation_removed", "names", "numbers", "contraction", "extension"):
        assert perturb(text, name, 1.0) == text


def test_sign_and_its_marks_are_removed_together():
    assert perturb("I ❤️ it!", "punctuation", 1.0) == "I  it"


def test_module_imports_only_numpy_and_the_standard_library():
    imports = re.findall(r"(?m)^\s*(?:from|import) (\w+)", Path(perturbations.__file__).read_text())
    assert set(imports) - sys.stdlib_module_names == {"numpy"}
