"""The summary of a run carries its identity: key, experiment, architecture and seed."""

from importlib.metadata import version

import pytest

from data import load_reviews
from training.summary import build_summary

MEMORY = {"kind": "process_resident", "steady_bytes": 3, "peak_bytes": 5}


@pytest.mark.parametrize(
    ("experiment", "overrides", "identity"),
    [
        ("4_lstm_attention", [], ("4", 4, "lstm_attention", 0)),
        ("4_lstm_attention", ["seed=7"], ("4", 4, "lstm_attention", 7)),
        ("4_lstm_attention", ["key=4x", "name=wider"], ("4x", 4, "wider", 0)),
        ("variants/8t_minilm_all_layers", [], ("8t", 8, "minilm_all_layers", 0)),
    ],
)
def test_summary_holds_the_identity_of_a_run(make_config, experiment, overrides, identity):
    config = make_config(experiment, *overrides)
    reviews = load_reviews(config.data)
    summary = build_summary(config, reviews, {"test_accuracy": 0.5, "memory": MEMORY}, ("torch", "numpy"))
    assert tuple(summary[key] for key in ("key", "experiment", "name", "seed")) == identity
    assert (summary["architecture"], summary["profile"]) == (config.architecture, config.profile)
    assert summary["test_accuracy"] == 0.5
    assert (summary["steady_memory_bytes"], summary["peak_memory_bytes"]) == (3, 5)
    assert summary["versions"].keys() == {"python", "torch", "numpy"}
    assert summary["versions"]["numpy"] == version("numpy")
    counts = {"train": 48, "validation": 20, "test": 22}
    assert summary["data"] == {"source": "files", **counts, "fingerprint": reviews.fingerprint}
    assert summary["completed"] is True


def test_architecture_of_a_variant_differs_from_its_experiment(make_config):
    architectures = [
        make_config(name, "model.pretrained=MiniLM").architecture
        for name in ("8_minilm", "variants/8t_minilm_all_layers")
    ]
    assert architectures == ["MiniLM, last layer fine-tuned", "MiniLM, all encoder layers fine-tuned"]
