"""Damaged settings, reviews and checkpoints give no traceback from inside a library, and no hang.

Each mutation of settings, reviews or a checkpoint's state is either accepted or refused with an `InputError` that names
the file or the setting.
"""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from config import CONFIGS, Config, InputError, all_settings, load_config
from data import load_reviews, read_file
from helpers import make_texts, small_config
from models import build_model
from training.checkpoint import checkpoints_of, write_manifest
from training.run_folder import newest_checkpoint
from training.trainer import Trainer

CONFIG_FILES = [path.read_text() for path in sorted(CONFIGS.rglob("*.yaml"))]
KEYS = list(all_settings(Config))
# Pieces that are special to YAML, OmegaConf, parsers of numbers or CSV.
YAML_PIECES = [
    "- ", ": ", "{", "}", "[", "]", "&a ", "*a", "!!python/object/apply:os.system ['true']", "!!binary ", "!!int ",
    "${seed}", "${", "${oc.env:HOME}", "${data.", "???", "null", "~", "1e400", "-1", "0x1F", ".nan", ".inf", "1_000",
    "2026-11-24", "yes", "'", '"', "|", ">", "#", "%", "@", "\t", "\n", "\r", "  ", "\x00", "\ufeff", "é", "\U0001f600",
    "<<: ", "? ", "---\n", "...\n", "a: &a [1, 1]\nb: &b [*a, *a, *a]\n", "[" * 1000, "9" * 5000, "train: ", "data:\n",
]  # fmt: skip
CSV_PIECES = [
    '"', '""', ",", "\n", "\r", "\r\n", '"1"', '"2"', '"3"', "1", "0", "text", "label", "text,label\n", "\\n", "<br />",
    "\x00", "\ufeff", "é", "\u2028", "\U0001f600", "&amp;", "a" * 200_000, ",," * 50, "NULL", "nan", "1.0", "-1", " ",
]  # fmt: skip
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
SETTINGS = {"database": None, "derandomize": True, "deadline": None, "suppress_health_check": QUIET}


@st.composite
def mutated(draw, originals: list[str], pieces: list[str]) -> bytes:
    """One of `originals` with up to five places cut out, doubled, or replaced by a piece; perhaps with a stray byte."""
    text = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from([*pieces, "", text[start:end] * 2]))
        text = text[:start] + middle + text[end:]
    content = text.encode()
    if draw(st.integers(0, 9)) == 0:
        place = draw(st.integers(0, len(content)))
        content = content[:place] + draw(st.binary(min_size=1, max_size=3)) + content[place:]
    return content


@contextlib.contextmanager
def no_hang(seconds: float = 10.0) -> Iterator[None]:
    """TimeoutError where a block takes more processor time: the machine may be busy with other work."""

    def interrupt(*_):
        raise TimeoutError(f"not finished after {seconds} s")

    before = signal.signal(signal.SIGPROF, interrupt)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def outcome(call, *arguments):
    """What a call returns, and the message with which it refuses; one of them is None."""
    with no_hang():
        try:
            return call(*arguments), None
        except InputError as error:
            return None, str(error)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=300, **SETTINGS)
@given(content=mutated(CONFIG_FILES, YAML_PIECES))
def test_mutated_settings_file_is_accepted_or_refused_by_name(path, content):
    file = path / "experiment.yaml"
    file.write_bytes(content)
    config, refusal = outcome(load_config, file)
    if refusal is None:
        assert isinstance(config, Config)
    else:
        assert str(file) in refusal or refusal.startswith("profile")
        assert "\n" not in refusal


VALUES = st.one_of(
    st.sampled_from([*YAML_PIECES, "", "true", "lstm", "cpu"]), st.text(max_size=20), st.integers().map(str),
    st.floats().map(str),
)  # fmt: skip


@settings(max_examples=250, **SETTINGS)
@given(pairs=st.lists(st.tuples(st.one_of(st.sampled_from(KEYS), st.text(max_size=12)), VALUES), max_size=3))
@example(pairs=[("model.backbone", "- ")])
@example(pairs=[("model", "3")])
def test_random_overrides_are_accepted_or_refused_by_name(pairs):
    overrides = [f"{key}={value}" for key, value in pairs]
    config, refusal = outcome(load_config, CONFIGS / "5_transformer_prenorm.yaml", overrides)
    if refusal is None:
        assert isinstance(config, Config)
    else:
        assert any(word in refusal for word in ("override", "profile", *KEYS))


TEXTS, LABELS = make_texts(12, seed=4)
YELP = "".join(f'"{label + 1}","{text}"\n' for text, label in zip(TEXTS, LABELS, strict=True))
HEADED = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in zip(TEXTS, LABELS, strict=True))


@settings(max_examples=600, **SETTINGS)
@given(content=mutated([YELP, HEADED], CSV_PIECES))
def test_mutated_file_of_reviews_is_accepted_or_refused_by_name(path, content):
    file = path / "reviews.csv"
    file.write_bytes(content)
    reviews, refusal = outcome(read_file, file)
    if refusal is None:
        assert set(reviews["label"]) == {0, 1}
        assert all(reviews["text"])
    else:
        assert str(file) in refusal


STATE_PIECES = ["null", "-1", "1e400", "[]", "{}", '"../../x"', "NaN", "true", "9" * 400, '"', ",", "}", "0.5", "\x00"]


@settings(max_examples=300, **SETTINGS)
@given(data=st.data())
def test_mutated_checkpoint_state_is_accepted_or_refused_by_name(stopped_run, data):
    """The manifest is made to fit, so that the check of the files passes."""
    trainer, folder, original = stopped_run
    content = data.draw(mutated([original], STATE_PIECES))
    (folder / "state.json").write_bytes(content)
    (folder / "manifest.json").unlink()
    write_manifest(folder)

    def resume() -> None:
        checkpoint = newest_checkpoint(trainer.config, trainer.run_dir, trainer.reviews, trainer.device)
        trainer.load(checkpoint)

    refusal = outcome(resume)[1]
    assert refusal is None or str(trainer.run_dir) in refusal


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory, review_files):
    """A trainer, its checkpoint's folder, and the text of its state."""
    run_dir = tmp_path_factory.mktemp("stopped")
    config = small_config("1_lstm", review_files, run_dir, "train.eval_steps=2")
    reviews, device = load_reviews(config.data), torch.device("cpu")
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length)
    trainer = Trainer(config, model, reviews, device, run_dir)
    for indices, batch in trainer.shares(trainer.batches(1)[:3]):
        trainer.train_step(indices, batch)
        if trainer.record.step == 2:
            trainer.validate()
    trainer.save()
    folder = checkpoints_of(run_dir)[0]
    return trainer, folder, (folder / "state.json").read_text()
