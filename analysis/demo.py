"""A page on which to watch the trained models read a review, agree, disagree and break.

    python -m analysis.demo                      # or: make demo; the runs in logs/ that have their models
    python -m analysis.demo logs/quick/*         # these
    python -m analysis.demo --port 7861

Type a review or pick one. Every model says how probable it is that the review is positive: as it is, and perturbed as
much as the slider says; and the words that a model leans on are coloured. Where there are no runs, those of
`profile=tiny` are trained first, in a minute: they show the page, not what the models can do.

The page runs on this computer only and sends nothing anywhere. Needs the extra `demo` (Gradio).
"""

import training  # noqa: F401  before torch

# isort: split
import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.robustness import NamedModel, load_models
from analysis.saliency import attention, occlusion
from config import CONFIGS, InputError, load_config
from data import clean
from perturbations import PERTURBATIONS, WORD, perturb
from training.command import run_command
from transformer_solution import MultiHeadedAttention

REVIEWS = (
    "I expected to hate this film, but the second half won me over: it is funny, warm and never boring.",
    "The actors do what they can, and it is not enough. Two hours of my life that nobody gives back to me.",
    "Not bad at all! The plot is thin, but I laughed, I cried, and I would watch it again.",
    "A great cast, a wonderful score, a brilliant idea - and what a terrible, tedious waste of all three.",
)
# Occlusion reads the review once for each of its words.
MOST_WORDS = 120
OCCLUSION, ATTENTION = "leaving it out", "attention"
MEANINGS = {
    OCCLUSION: "What each word does to the review as it is. Violet: more positive with it; red: more negative",
    ATTENTION: "Where the position that the classifier reads attends to, in the review as it is",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", nargs="*", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument(
        "--port", type=int, default=None, help="of the page on this computer; default: 7860 or the next"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    return run_command(lambda: serve(options.run_dirs, options.port))


def serve(run_dirs: Sequence[Path], port: int | None) -> None:
    """Open the page, until Ctrl-C.

    Raises:
        InputError: gradio is not installed, or a run can't be read.
    """
    # The server asks itself whether it is there, and its client would say so.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    page = build_page(load_models(run_dirs or find_runs() or train_tiny_runs()))
    page.launch(server_port=port, inbrowser=True, quiet=True, prevent_thread_lock=True, **look())
    print(f"The page is at {page.local_url}; Ctrl-C closes it.", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        page.close()


def find_runs(logs: Path = Path("logs")) -> list[Path]:
    """The complete runs with their models in the folder of `logs` that has most of them, the newest of equals."""
    folders: dict[Path, list[Path]] = {}
    for path in sorted(logs.glob("*/*/summary.json")):
        if (path.parent / "best").is_dir():
            folders.setdefault(path.parent.parent, []).append(path.parent)
    newest = {folder: max(run.stat().st_mtime for run in runs) for folder, runs in folders.items()}
    return max(folders.values(), key=lambda runs: (len(runs), newest[runs[0].parent]), default=[])


def train_tiny_runs() -> list[Path]:
    """The eight experiments in their smallest profile."""
    from train import run

    print(
        "There are no runs with their models in logs/: the eight are trained with profile=tiny, a minute. "
        "Their answers show the page, not what the models can do.",
        flush=True,
    )
    configs = [load_config(path, ["profile=tiny"]) for path in sorted(CONFIGS.glob("[1-8]_*.yaml"))]
    for config in configs:
        run(config)
    return [Path(config.run_dir) for config in configs]


class Reader:
    """What the page shows, computed with some models.

    Args:
        models: of `load_models`.
    """

    def __init__(self, models: Sequence[NamedModel]):
        self.models = {f"{model.name} {model.label}": model.trained for model in models}

    def perturbed(self, text: str, name: str, amount: float) -> str:
        """The cleaned review with a share of its places changed."""
        return perturb(self.checked(text), name, amount, seed=0)

    def probabilities(self, text: str, name: str, amount: float) -> pd.DataFrame:
        """A row a model: its label, and the probability of positive of the review and of the perturbed one."""
        texts = [self.checked(text), self.perturbed(text, name, amount)]
        rows = [(label, *model.probabilities(texts)) for label, model in self.models.items()]
        return pd.DataFrame(rows, columns=["model", "as it is", "perturbed"])

    def words(self, text: str, label: str, kind: str) -> list[tuple[str, float | None]]:
        """The review in pieces, each word with a value from -1 to 1, or None: by `occlusion`, or the attention."""
        text, model = self.checked(text), self.models[label]
        spans = [match.span() for match in WORD.finditer(text)]
        if not spans:
            return [(text, None)]
        limit = spans[MOST_WORDS][0] if len(spans) > MOST_WORDS else len(text)
        text, spans = text[:limit], spans[:MOST_WORDS]
        _, values = attention(model, text) if kind == ATTENTION else occlusion(model, text)
        scale = max(abs(values).max(), 1e-12)
        pieces, end = [], 0
        for (start, stop), value in zip(spans, values, strict=True):
            pieces += [(text[end:start], None), (text[start:stop], float(value / scale))]
            end = stop
        return [*pieces, (text[end:], None)]

    def has_attention(self, label: str) -> bool:
        return any(isinstance(module, MultiHeadedAttention) for module in self.models[label].model.modules())

    def note(self, text: str) -> str:
        """What the models don't read of the review; empty where they read all."""
        text = self.checked(text)
        ids = max(len(model.tokenizer(text)["input_ids"]) for model in self.models.values())
        limit = min(model.max_length for model in self.models.values())
        if ids <= limit:
            return ""
        return f"The models read the first {limit} of the review's {ids} tokens."

    def checked(self, text: str | None) -> str:
        """The cleaned text; `InputError` where there is none."""
        cleaned = clean(text or "").strip()
        if not cleaned:
            raise InputError("There is no review yet: type one, or pick an example.")
        return cleaned


def build_page(models: Sequence[NamedModel]):
    """The page, a `gradio.Blocks` that `launch(**look())` opens.

    Raises:
        InputError: gradio is not installed.
    """
    gr = _gradio()
    reader = Reader(models)
    with gr.Blocks(title="Eight models read a review") as page:
        gr.Markdown(
            "# Eight models read a review\nIs it positive? Perturb it, and watch which of them change their mind."
        )
        with gr.Row():
            with gr.Column(min_width=320):
                text, name, amount, perturbed = _review_column(gr)
            with gr.Column(min_width=320):
                message, table, plot = _probabilities_column(gr)
        gr.Markdown("## The words that a model leans on")
        label, kind, words = _words_section(gr, list(reader.models))

        def show(text: str, name: str, amount: float, label: str, kind: str) -> tuple:
            try:
                note = reader.note(text)
                if kind == ATTENTION and not reader.has_attention(label):
                    kind = OCCLUSION
                    note += f" {label} has no attention to show: its words are found by {OCCLUSION}."
                values = reader.probabilities(text, name, amount)
                coloured = gr.HighlightedText(reader.words(text, label, kind), label=MEANINGS[kind])
                return note, reader.perturbed(text, name, amount), _cells(values), _points(values), coloured
            except InputError as error:
                return str(error), "", None, None, []

        inputs, outputs = [text, name, amount, label, kind], [message, perturbed, table, plot, words]
        for event in (page.load, text.change, name.change, amount.change, label.change, kind.change):
            event(show, inputs, outputs, show_progress="minimal", trigger_mode="always_last")
    return page


def _review_column(gr) -> tuple:
    names = [name for name, perturbation in PERTURBATIONS.items() if perturbation.kind != "control"]
    text = gr.Textbox(REVIEWS[0], label="Review", lines=4, max_lines=12, elem_id="review")
    gr.Examples([[review] for review in REVIEWS], [text], label="or one of these")
    name = gr.Dropdown(names, value="qwerty", label="Perturbation", elem_id="perturbation")
    amount = gr.Slider(0, 1, 0.3, step=0.05, label="Share of the places that it changes", elem_id="amount")
    perturbed = gr.Textbox(label="The review, perturbed", lines=3, interactive=False, elem_id="perturbed")
    return text, name, amount, perturbed


def _probabilities_column(gr) -> tuple:
    message = gr.Markdown(elem_id="message")
    table = gr.Dataframe(
        headers=["model", "as it is", "perturbed"],
        label="Probability that the review is positive",
        interactive=False,
        wrap=True,
        column_widths=["48%", "20%", "32%"],
        max_height=800,
        elem_id="table",
    )
    axes = {"x": "model", "y": "probability of positive", "color": "review", "y_lim": [0, 1]}
    return message, table, gr.ScatterPlot(**axes, height=240, elem_id="plot")


def _words_section(gr, labels: list[str]) -> tuple:
    with gr.Row():
        label = gr.Dropdown(labels, value=labels[0], label="Model", elem_id="model")
        kind = gr.Radio(list(MEANINGS), value=OCCLUSION, label="Found by (4 to 7 have attention)", elem_id="kind")
    return label, kind, gr.HighlightedText(label="Of the review as it is", elem_id="words")


def _cells(values: pd.DataFrame) -> pd.DataFrame:
    """The probabilities as the table shows them, with a word where a model changed its mind."""
    before, after = values["as it is"], values["perturbed"]
    flips = np.where((before >= 0.5) != (after >= 0.5), ", flips", "")
    return pd.DataFrame(
        {
            "model": values["model"],
            "as it is": [f"{value:.0%}" for value in before],
            "perturbed": [f"{value:.0%}{flip}" for value, flip in zip(after, flips, strict=True)],
        }
    )


def _points(values: pd.DataFrame) -> pd.DataFrame:
    """A row a point of the plot; a model is its key."""
    points = values.assign(model=values["model"].str.split().str[0])
    return points.melt("model", var_name="review", value_name="probability of positive")


def look() -> dict:
    """Of `launch`: fonts of the reader's computer, so that nothing is fetched from another."""
    gr = _gradio()
    return {"theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])}


def _gradio():
    """The library, told before it is imported to report to nobody."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError:
        raise InputError("the demonstration needs the package gradio: pip install gradio") from None
    return gradio


if __name__ == "__main__":
    sys.exit(main())
