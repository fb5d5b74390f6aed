"""What a model looks at: positions that its logits can depend on, words that they do depend on, words that it attends.

from analysis.saliency import attention, occlusion, words_map
words_map({"4 lstm_attention": attention(model, text)}, "share of the attention")

python explain.py RUN_DIR [RUN_DIR ...] --output reach.json    # positions, before and after training
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

from analysis.logs import load_run
from analysis.robustness import TrainedModel
from config import InputError, load_config
from data import load_reviews
from models import BertBackbone, ReviewClassifier, build_model, load_model
from perturbations import WORD, replace_spans
from training.checkpoint import write_text
from transformer_solution import MultiHeadedAttention

Words = tuple[list[str], np.ndarray]


def reach(model: ReviewClassifier, input_ids: torch.Tensor) -> np.ndarray:
    """How strongly each position pulls at the label: norm of the gradient of the difference of the two logits by the
    embedded token, mean over the reviews (saliency, Simonyan et al. 2014, section 3).

    Args:
        model: any of the eight, trained or not; its dropout is off while this looks.
        input_ids: (B, T), reviews without padding.

    Returns:
        (T,)
    """
    training, device = model.training, next(model.parameters()).device
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    seen = []

    def watch(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = embedding.register_forward_hook(watch)
    ids, mask = input_ids.to(device), torch.ones_like(input_ids, device=device)
    try:
        # cuDNN's recurrent layers have no gradient in evaluation mode.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            model.eval()
            # BERT's frozen layers are computed without gradients unless they are asked for by name.
            bert = isinstance(model.backbone, BertBackbone)
            known = {"hidden_states": model.backbone.frozen_states(ids, mask)} if bert else {}
            logits = model(ids, mask, **known).logits
            (gradients,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), seen[:1])
    finally:
        handle.remove()
        model.train(training)
    return gradients.norm(dim=-1).mean(dim=0).double().cpu().numpy()


def reach_of_runs(run_dirs: Sequence[Path], count: int = 32) -> dict:
    """`reach` of each run's model, before its training and after, on the same validation reviews as long as the limit.

    Args:
        run_dirs: folders of complete runs with their models.
        count: how many reviews at most.

    Returns:
        `reviews`, and `models`: by key of the run its name, `untrained` and `trained`, each (T,) as shares of their
        largest.

    Raises:
        InputError: a model or its reviews can't be read, or no review is as long as the limit.
    """
    found, reviews = {}, 0
    for run_dir in run_dirs:
        config = load_config(run_dir / "config.yaml")
        split = load_reviews(config.data).validation
        long = np.flatnonzero(split.lengths == config.data.max_length)[:count]
        if not len(long):
            raise InputError(f"{run_dir}: no validation review has {config.data.max_length} tokens; nothing to look at")
        ids, reviews = torch.tensor([split.dataset[int(i)]["input_ids"] for i in long]), len(long)
        trained, tokenizer, _ = load_model(run_dir / "best")
        torch.manual_seed(config.seed)
        untrained = build_model(config.model, len(tokenizer), config.data.max_length)
        pulls = {"untrained": reach(untrained, ids), "trained": reach(trained, ids)}
        run = load_run(run_dir)
        found[run.key] = {"name": run.summary["name"]} | {
            state: [float(f"{value:.4g}") for value in values / values.max()] for state, values in pulls.items()
        }
    return {"reviews": reviews, "models": found}


def occlusion(model: TrainedModel, text: str) -> Words:
    """How far the probability of positive falls when a word is taken out (Zeiler & Fergus 2014, section 4.2, of words).

    Args:
        model: any of the eight.
        text: a cleaned review with at least one word.

    Returns:
        The words, and for each the probability on the whole text less that without it: above 0 where the word speaks
        for positive.
    """
    spans = [match.span() for match in WORD.finditer(text)]
    without = [replace_spans(text, spans, {number: ""}) for number in range(len(spans))]
    whole, *parts = model.probabilities(model.encode([text, *without]))
    return [text[slice(*span)] for span in spans], whole - np.array(parts)


@torch.inference_mode()
def attention(model: TrainedModel, text: str) -> Words:
    """What the attention reads for the position that the classifier reads: the share of each word, summed over its
    tokens, mean over the heads of the last layer that attends.

    Args:
        model: one with attention of its own (4 to 7).
        text: a cleaned review.

    Returns:
        The words, and the share of each; special tokens and punctuation have the rest.

    Raises:
        ValueError: the model has no `MultiHeadedAttention`.
    """
    modules = [module for module in model.model.modules() if isinstance(module, MultiHeadedAttention)]
    if not modules:
        raise ValueError(f"{model.label} has no attention of its own; occlusion works for every model")
    seen = []
    handle = modules[-1].register_forward_pre_hook(lambda module, arguments: seen.append(arguments[:2]))
    encoded = model.tokenizer(text, truncation=True, max_length=model.max_length, return_offsets_mapping=True)
    try:
        ids = torch.tensor([encoded["input_ids"]], device=model.device)
        model.model(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        handle.remove()
    hidden_states, mask = seen[0]
    module = modules[-1]
    queries, keys = module.split_heads(module.w_q(hidden_states[:, :1])), module.split_heads(module.w_k(hidden_states))
    shares = module.get_attention_weights(queries, keys, mask)[0, :, 0].mean(dim=0).double().cpu().numpy()
    # A Transformer's own CLS stands before the tokens.
    tokens = shares[len(shares) - ids.shape[1] :]
    spans = [match.span() for match in WORD.finditer(text)]
    words = np.zeros(len(spans))
    for (start, end), share in zip(encoded["offset_mapping"], tokens, strict=True):
        for number, (first, last) in enumerate(spans):
            if first <= start and end <= last and start < end:
                words[number] += share
    return [text[slice(*span)] for span in spans], words


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0 done, 2 for input that can't be used."""
    parser = argparse.ArgumentParser(description="How strongly each position of a review pulls at the label.")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="folders of complete runs")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write")
    options = parser.parse_args(arguments)
    try:
        found = reach_of_runs(options.run_dirs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_text(options.output, json.dumps(found, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
