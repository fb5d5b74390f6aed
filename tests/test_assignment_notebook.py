"""The eight models as the assignment's notebook builds and trains them: one optimiser step moves every parameter.

A notebook of this kind calls the backbone itself, puts a linear classifier on the result, and reads `loss, logits`.
It gives an attention to encoder-only models too, and a mask that may have a column for CLS in front.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from helpers import assert_same_tensors, ragged_mask
from lstm import EncoderDecoder
from transformer import MultiHeadedAttention, Transformer

V, T, WIDTH, LENGTHS = 31, 13, 12, [13, 1, 7, 5]
LSTM_SIZES = {"vocabulary_size": V, "embedding_size": 10, "hidden_size": WIDTH}
TRANSFORMER_SIZES = {"vocabulary_size": V, "embed_dim": WIDTH, "hidden_dim": 14, "num_heads": 4, "dropout": 0.3}


def make_attention() -> MultiHeadedAttention:
    return MultiHeadedAttention(head_size=2 * WIDTH, num_heads=1, sequence_length=T)


def make_bert() -> BertModel:
    sizes = {"vocab_size": V, "hidden_size": WIDTH, "num_attention_heads": 3, "intermediate_size": 14}
    return BertModel(BertConfig(num_hidden_layers=2, **sizes), add_pooling_layer=False)


# Builds the backbone, by the number of the experiment.
EXPERIMENTS = {
    1: lambda: EncoderDecoder(**LSTM_SIZES, dropout=0.0, encoder_only=True, attn=make_attention()),
    2: lambda: EncoderDecoder(**LSTM_SIZES, dropout=0.3, encoder_only=True, attn=make_attention()),
    3: lambda: EncoderDecoder(**LSTM_SIZES, dropout=0.3, encoder_only=False, attn=None),
    4: lambda: EncoderDecoder(**LSTM_SIZES, dropout=0.3, encoder_only=False, attn=make_attention()),
    5: lambda: Transformer(**TRANSFORMER_SIZES, num_layers=2, block="prenorm"),
    6: lambda: Transformer(**TRANSFORMER_SIZES, num_layers=4, block="prenorm"),
    7: lambda: Transformer(**TRANSFORMER_SIZES, num_layers=2, block="postnorm"),
    8: make_bert,
}


class NotebookClassifier(nn.Module):
    """A linear layer over the backbone's result; returns `loss, logits`, or `logits` without labels."""

    def __init__(self, backbone: nn.Module, output_size: int):
        super().__init__()
        self.backbone = backbone
        self.classifier = nn.Linear(output_size, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None):
        result = self.backbone(input_ids, attention_mask)
        if isinstance(self.backbone, EncoderDecoder):
            result, _ = result
        elif isinstance(self.backbone, BertModel):
            result = result[0][:, 0]
        logits = self.classifier(result)
        return logits if labels is None else (F.cross_entropy(logits, labels), logits)


def make_classifier(experiment: int) -> NotebookClassifier:
    torch.manual_seed(0)
    output_size = 2 * WIDTH if experiment in (1, 2) else WIDTH
    return NotebookClassifier(EXPERIMENTS[experiment](), output_size)


def make_batch(mask_dtype: torch.dtype = torch.int64, cls_column: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = ragged_mask(LENGTHS, T)
    input_ids = torch.randint(1, V, mask.shape) * mask
    if cls_column:
        mask = F.pad(mask, (1, 0), value=True)
    return input_ids, mask.to(mask_dtype), torch.tensor([0, 1, 1, 0])


def train_one_step(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> set[str]:
    """Names of the parameters that one step of AdamW changes, without weight decay, which would change them all."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
    loss, logits = model.train()(*batch)
    assert logits.shape == (len(LENGTHS), 2)
    loss.backward()
    optimizer.step()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def parameter_names(model: nn.Module) -> set[str]:
    """All but the biases of the keys: each adds one number to all scores of a query, which the softmax removes."""
    return {name for name, _ in model.named_parameters() if not name.endswith(("w_k.bias", "key.bias"))}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_optimizer_step_changes_every_trainable_parameter(experiment):
    model = make_classifier(experiment)
    unchanged = parameter_names(model) - train_one_step(model, make_batch())
    # Without a decoder the forward direction runs for one step, whose hidden state before is zero.
    assert unchanged == ({"backbone.encoder.rnn.weight_hh_l0"} if experiment in (1, 2) else set())


def test_frozen_bert_trains_the_classifier_and_then_the_last_layer():
    model = make_classifier(8)
    model.backbone.requires_grad_(False)
    assert train_one_step(model, make_batch()) == {"classifier.weight", "classifier.bias"}
    model.backbone.encoder.layer[-1].requires_grad_(True)
    changed = train_one_step(model, make_batch())
    trained = ("classifier.", "backbone.encoder.layer.1.")
    assert changed & parameter_names(model) == {name for name in parameter_names(model) if name.startswith(trained)}


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize("experiment", [4, 5, 7])
def test_logits_do_not_depend_on_the_mask_dtype(experiment, mask_dtype):
    model = make_classifier(experiment).eval()
    expected = model(*make_batch()[:2])
    assert torch.equal(model(*make_batch(mask_dtype)[:2]), expected)
    if experiment > 4:
        assert torch.equal(model(*make_batch(mask_dtype, cls_column=True)[:2]), expected)


@pytest.mark.parametrize("experiment", [5, 6, 7])
def test_one_optimizer_step_with_a_cls_column_in_the_mask(experiment):
    model = make_classifier(experiment)
    changed = train_one_step(model, make_batch(torch.float32, cls_column=True))
    assert parameter_names(model) - changed == set()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_padding_embedding_stays_zero_in_training(experiment):
    model = make_classifier(experiment)
    (embedding,) = (module for module in model.modules() if getattr(module, "padding_idx", None) == 0)
    train_one_step(model, make_batch())
    assert (embedding.weight[0] == 0).all()


def test_weights_of_a_notebooks_classifier_load_into_the_backbone():
    """As docs/assignment.md says."""
    expected = Transformer(**TRANSFORMER_SIZES, num_layers=2).state_dict()
    weights = {f"back_bone.{name.replace('mlp_head.', 'mlp_head.0.')}": tensor for name, tensor in expected.items()}
    weights |= {"classifier.weight": torch.zeros(2, WIDTH), "classifier.bias": torch.zeros(2)}
    prefix = "back_bone."
    backbone = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    model = Transformer(**TRANSFORMER_SIZES, num_layers=2)
    model.load_state_dict(backbone)
    assert_same_tensors(model.state_dict(), expected)
