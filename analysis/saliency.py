"""What a prediction depends on: saliency by position, occlusion of words, attention to words.

python -m analysis.saliency RUN_DIR [RUN_DIR ...] --output saliency.json    # by position, before and after training

from analysis.saliency import attention, occlusion, words_map
words_map({"4 LSTM encoder-decoder + attention": attention(model, text)}, "attention weight")
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from analysis.logs import Run, files_of_runs, identify, load_run
from config import Config, InputError, load_config
from data import load_reviews, write_text
from models import BertBackbone, ReviewClassifier, build_model
from perturbations import WORD, replace_spans
from predict import TrainedModel
from training.command import check_output, run_command
from transformer_solution import MultiHeadedAttention

Words = tuple[list[str], np.ndarray]
# How far a review that fills half the positions may be from it, as a share of all positions.
LENGTH_TOLERANCE = 1 / 32


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status of `run_command`."""
    parser = argparse.ArgumentParser(
        description="Gradient norm with respect to the token embeddings by position, before and after training."
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    return run_command(lambda: _measure_and_write(options.run_dirs, options.output))


def saliency_by_position(
    model: ReviewClassifier, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> np.ndarray:
    """The gradient norm with respect to the token embeddings at each position (Simonyan et al. 2014, section 3).

    The gradient is that of the difference of the two logits; its norm is averaged over the reviews that have a token at
    the position.

    Args:
        model: any of the eight, trained or not; evaluated without dropout.
        input_ids: (B, T), no longer than the longest review.
        attention_mask: (B, T), 1 where there is a token; default: everywhere.

    Returns:
        (T,)
    """
    was_training, device = model.training, next(model.parameters()).device
    mask = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).to(device)
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    embedded = []

    def record(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    handle = embedding.register_forward_hook(record)
    try:
        # cuDNN's recurrent layers have no gradient in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            logits = _logits_with_gradients(model.eval(), input_ids.to(device), mask)
            (gradients,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), embedded[:1])
    finally:
        handle.remove()
        model.train(was_training)
    norms = gradients.norm(dim=-1).double() * mask
    return (norms.sum(dim=0) / mask.sum(dim=0)).cpu().numpy()


def saliency_of_runs(run_dirs: Sequence[Path], num_reviews: int = 32) -> dict:
    """`saliency_by_position` of each run's model, before and after training, on the same validation reviews.

    Args:
        run_dirs: folders of complete runs with their models, trained on the same reviews.
        num_reviews: how many reviews at most, of those that fill all positions and of those that fill about half.

    Returns:
        `reviews` (how many fill all positions), and `models`: by name (`analysis.logs.identify`) the label, the
        experiment, and `untrained` and `trained`, each (T,) as shares of its maximum. Of reviews half as long, which
        are padded, where there are any: `short_reviews` (how many), `short_lengths` (their shortest and longest, in
        tokens), and of each model `short_untrained` and `short_trained`, up to the longest.

    Raises:
        InputError: a model or its reviews can't be read, no review fills all positions, the runs have other validation
            reviews, or two runs can't be told apart.
    """
    runs = identify([load_run(run_dir) for run_dir in run_dirs])
    configs = {name: load_config(run.folder / "config.yaml") for name, run in runs.items()}
    batches = {name: _batches(runs[name], config, num_reviews) for name, config in configs.items()}
    first = next(iter(runs))
    for name, run in runs.items():
        if not all(map(torch.equal, batches[name].values(), batches[first].values())):
            raise InputError(
                f"{run.folder} and {runs[first].folder} have different validation reviews; give runs on the same data"
            )
    bar = tqdm(runs.items(), desc="saliency", leave=False, disable=None)
    models = {name: _saliency_of_run(run, configs[name], batches[name]) for name, run in bar}
    log = {"reviews": len(batches[first][""]), "models": models}
    if "short_" in batches[first]:
        lengths = batches[first]["short_"].count_nonzero(dim=1)
        log |= {"short_reviews": len(lengths), "short_lengths": [int(lengths.min()), int(lengths.max())]}
    return log


def occlusion(model: TrainedModel, text: str) -> Words:
    """How much the probability of positive falls without each word (Zeiler & Fergus 2014, section 4.2, for words).

    Args:
        model: any of the eight.
        text: a cleaned review with at least one word.

    Returns:
        The words, and for each the probability of positive with it minus that without it: above 0 where the word makes
        the prediction more positive.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    occluded = [replace_spans(text, spans, {number: ""}) for number in range(len(spans))]
    whole, *without = model.probabilities([text, *occluded])
    return [text[slice(*span)] for span in spans], whole - np.array(without)


@torch.inference_mode()
def attention(model: TrainedModel, text: str) -> Words:
    """The attention weights, in the last attention layer, of the position that the classifier reads.

    Args:
        model: one with this project's attention (4 to 7).
        text: a cleaned review.

    Returns:
        The words, and the weight of each: summed over its tokens, mean over the heads. Special tokens and punctuation
        hold the rest of the weight.

    Raises:
        ValueError: the model has no `MultiHeadedAttention`.
    """
    modules = [module for module in model.model.modules() if isinstance(module, MultiHeadedAttention)]
    if not modules:
        raise ValueError(
            f"{type(model.model.backbone).__name__} without MultiHeadedAttention has no weights to show; experiments 4 "
            "to 7 have them, and occlusion works for every model"
        )
    encoded = model.tokenizer(text, truncation=True, max_length=model.max_length, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]], device=model.device)
    weights = _first_row_weights(model.model, modules[-1], ids)
    # A Transformer's own CLS stands before the tokens.
    token_weights = weights[len(weights) - ids.shape[1] :]
    spans = [match.span() for match in WORD.finditer(text)]
    word_weights = np.zeros(len(spans))
    for (start, end), weight in zip(encoded["offset_mapping"], token_weights, strict=True):
        for number, (first, last) in enumerate(spans):
            if first <= start < end <= last:
                word_weights[number] += weight
    return [text[slice(*span)] for span in spans], word_weights


def words_map(rows: dict[str, Words], title: str) -> Figure:
    """A row a model, a column a word, coloured by value; all rows are of the same text.

    Args:
        rows: by label, as from `occlusion` or `attention`.
        title: what the values are.
    """
    words: Sequence[str] = next(iter(rows.values()))[0]
    values = np.array([row[1] for row in rows.values()])
    extreme = max(float(np.abs(values).max()), 1e-12)
    signed = values.min() < 0
    size = (2.6 + 0.42 * len(words), 1.6 + 0.36 * len(rows))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    image = axis.imshow(
        values, cmap="RdBu" if signed else "Blues", vmin=-extreme if signed else 0, vmax=extreme, aspect="auto"
    )
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_xticks(range(len(words)), words, rotation=60, ha="right")
    axis.set_title(title)
    figure.colorbar(image, ax=axis)
    return figure


def _measure_and_write(run_dirs: Sequence[Path], output: Path) -> None:
    check_output(output, *files_of_runs(run_dirs))
    write_text(output, json.dumps(saliency_of_runs(run_dirs), allow_nan=False) + "\n")


def _batches(run: Run, config: Config, num_reviews: int) -> dict[str, torch.Tensor]:
    """(B, T) the first validation reviews that fill all positions, under `""`; and those that fill about half, padded
    to the longest, under `"short_"`, where there are any."""
    split, limit = load_reviews(config.data).validation, config.data.max_length
    chosen = {
        "": split.lengths == limit,
        "short_": np.abs(split.lengths / limit - 0.5) <= LENGTH_TOLERANCE,
    }
    indices = {name: np.flatnonzero(is_chosen)[:num_reviews] for name, is_chosen in chosen.items()}
    if not len(indices[""]):
        raise InputError(
            f"{run.folder}: no validation review has data.max_length={config.data.max_length} tokens; saliency by "
            "position needs reviews that fill all positions"
        )
    ids = {name: [torch.tensor(split.dataset[int(i)]["input_ids"]) for i in rows] for name, rows in indices.items()}
    return {name: pad_sequence(rows, batch_first=True) for name, rows in ids.items() if rows}


def _saliency_of_run(run: Run, config: Config, batches: dict[str, torch.Tensor]) -> dict:
    trained = TrainedModel(run.folder)
    torch.manual_seed(config.seed)
    models = {
        "untrained": build_model(config.model, len(trained.tokenizer), config.data.max_length),
        "trained": trained.model,
    }
    # A padded position has the token id 0, which no token of a review has.
    saliency = {
        prefix + state: saliency_by_position(model, ids, (ids != 0).long())
        for prefix, ids in batches.items()
        for state, model in models.items()
    }
    shares = {state: values / values.max() for state, values in saliency.items()}
    return {
        "label": run.summary["architecture"],
        "experiment": run.summary["experiment"],
        **{state: [float(f"{share:.4g}") for share in values] for state, values in shares.items()},
    }


def _logits_with_gradients(model: ReviewClassifier, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, 2); BERT's frozen layers, which compute without gradients in `forward`, are computed with them here."""
    arguments = {}
    if isinstance(model.backbone, BertBackbone):
        arguments["hidden_states"] = model.backbone.frozen_states(ids, mask)
    return model(ids, mask, **arguments).logits


def _first_row_weights(model: ReviewClassifier, module: MultiHeadedAttention, ids: torch.Tensor) -> np.ndarray:
    """(T,) the weights of the first query of `module`, mean over its heads; of one review, ids (1, T)."""
    inputs = []
    handle = module.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[:2]))
    try:
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        handle.remove()
    hidden_states, mask = inputs[0]
    queries, keys = module.split_heads(module.w_q(hidden_states[:, :1])), module.split_heads(module.w_k(hidden_states))
    return module.get_attention_weights(queries, keys, mask)[0, :, 0].mean(dim=0).double().cpu().numpy()


if __name__ == "__main__":
    sys.exit(main())
