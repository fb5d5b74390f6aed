"""What a trained model looks at: words that its label depends on, and words that its attention reads.

from explain import attention, occlusion, words_map
words_map({"4 lstm_attention": attention(model, text)}, "share of the attention")
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from perturbations import WORD, replace_spans
from robustness import TrainedModel
from transformer_solution import MultiHeadedAttention

Words = tuple[list[str], np.ndarray]


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
