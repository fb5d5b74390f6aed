"""What is computed against what is defined: same weights, same batch, logits and every parameter's gradient.

The textbook here pads every review to the full length and computes every position of every layer.
"""

import pytest
import torch
import torch.nn.functional as F
from conftest import EXPERIMENTS
from helpers import assert_close, gradients, ragged_mask, random_tensor
from torch import Tensor, nn
from torch.func import functional_call
from transformers import BertConfig, BertModel

import transformer_solution
from config import load_config
from lstm import LSTM
from models import BertBackbone, LSTMBackbone, ReviewClassifier, build_scratch
from transformer_solution import LayerNorm, MultiHeadedAttention

V, FULL = 29, 19
SCRATCH = EXPERIMENTS[:-1]  # 8 has textbook tests of its own, below
# Ragged, with a row of full length and one of one token; all short; one review alone, long and short.
BATCHES = {"ragged": [FULL, 1, 7, 12, 3], "short": [5, 1, 7], "one": [FULL], "one short": [2], "one token": [1]}
TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def make_classifier(experiment: str, dtype: torch.dtype) -> ReviewClassifier:
    """The experiment's classifier at prime sizes, without dropout, norms and biases away from 0 and 1."""
    sizes = ["model.embedding_size=14", "model.hidden_size=11", "model.dropout=0"]
    heads = ["model.num_heads=7"]
    config = load_config(f"configs/{experiment}.yaml", sizes + heads)
    torch.manual_seed(0)
    model = build_scratch(config.model, V, FULL)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    return model.to(dtype)


def textbook(model: ReviewClassifier, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits by the whole backbone over reviews padded to the full length."""
    padded = FULL - ids.shape[1]
    ids, mask = F.pad(ids, (0, padded)), F.pad(mask, (0, padded))
    inner = model.backbone.model
    if isinstance(model.backbone, LSTMBackbone):
        return model.classifier(inner(ids, mask)[0])
    x, grown = inner.embed(ids, mask)
    for block in inner.transformer:
        x = block(x, grown)
    return model.classifier(inner.mlp_head(x)[:, 0])


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = ragged_mask(lengths, max(lengths))
    ids = torch.randint(1, V, mask.shape) * mask
    return ids, mask.long(), torch.randint(0, 2, (len(lengths),))


def logits_and_gradients(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {name: gradient.clone() for name, gradient in gradients(model).items()}


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("experiment", SCRATCH)
def test_classifier_has_the_logits_and_gradients_of_the_textbook(experiment, lengths, dtype, tolerance):
    model = make_classifier(experiment, dtype)
    ids, mask, labels = make_batch(lengths)
    expected, expected_gradients = logits_and_gradients(model, textbook(model, ids, mask), labels)
    backbone = model.backbone(ids, mask)
    logits, found = logits_and_gradients(model, model.classifier(backbone), labels)
    assert_close(logits, expected, tolerance)
    assert found.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert_close(found[name], gradient, tolerance)


@pytest.mark.parametrize("experiment", SCRATCH)
def test_a_reviews_logits_do_not_depend_on_the_reviews_beside_it(experiment):
    model = make_classifier(experiment, torch.float64)
    ids, mask, _ = make_batch(BATCHES["ragged"])
    logits = model(ids, mask).logits
    for row, length in enumerate(BATCHES["ragged"]):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length]).logits[0]
        assert_close(alone, logits[row], 1e-10)


@pytest.mark.parametrize("experiment", SCRATCH)
def test_dropout_leaves_the_expected_embedding(experiment):
    """The fast path drops features where the textbook does: with the rate at 0.5, outputs vary, in training only."""
    model = make_classifier(experiment, torch.float64)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    ids, mask, _ = make_batch(BATCHES["ragged"])
    assert not torch.allclose(model(ids, mask).logits, model(ids, mask).logits)
    model.eval()
    assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)


def test_longer_inputs_than_the_padded_length_are_refused():
    model = make_classifier("1_lstm", torch.float64).backbone.model
    with pytest.raises(ValueError, match="19 tokens, more than padded_length=18"):
        model.first_step(torch.ones(1, 19).long(), padded_length=18)


def test_attention_can_not_see_padding_that_is_not_there():
    model = make_classifier("4_lstm_attention", torch.float64).backbone.model
    with pytest.raises(ValueError, match="give a mask, or no padded_length"):
        model.first_step(torch.ones(2, 5).long(), padded_length=FULL)
    ids = torch.randint(1, V, (3, 5))
    assert_close(model.first_step(ids), model(ids)[0], 1e-10)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("steps", [1, 13])
def test_lstm_sequence_is_the_cell_step_by_step(steps, dtype, tolerance):
    torch.manual_seed(0)
    layer = LSTM(7, 5).to(dtype)
    inputs = random_tensor(3, steps, 7, dtype=dtype)
    states = (random_tensor(1, 3, 5, dtype=dtype), random_tensor(1, 3, 5, dtype=dtype))
    found = []
    for run in (layer, layer.forward_by_steps):
        outputs, (h, c) = run(inputs, states)
        layer.zero_grad()
        tensors = (inputs, *states)
        for tensor in tensors:
            tensor.grad = None
        torch.manual_seed(1)
        sum((result * torch.randn(result.shape, dtype=dtype)).sum() for result in (outputs, h, c)).backward()
        found.append([outputs, h, c, *(tensor.grad for tensor in tensors), *(p.grad for p in layer.parameters())])
    for ours, definition in zip(*found, strict=True):
        assert_close(ours, definition, tolerance)


def test_lstm_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    layer = LSTM(3, 2).double()
    inputs, h, c = random_tensor(2, 4, 3), random_tensor(1, 2, 2), random_tensor(1, 2, 2)
    assert torch.autograd.gradcheck(lambda x, h, c: (layer(x, (h, c))[0], *layer(x, (h, c))[1]), (inputs, h, c))


def test_lstm_outputs_may_be_changed_in_place():
    """What the caller does to the outputs must not reach what the backward pass reads."""
    torch.manual_seed(0)
    layer = LSTM(3, 2).double()
    inputs, states = random_tensor(2, 4, 3), (torch.zeros(1, 2, 2).double(), torch.zeros(1, 2, 2).double())
    outputs, _ = layer(inputs, states)
    outputs.mul_(2).sum().backward()
    doubled, inputs.grad = inputs.grad, None
    (2 * layer.forward_by_steps(inputs, states)[0]).sum().backward()
    assert_close(doubled, inputs.grad)


@pytest.mark.parametrize("lengths", [[13, 1, 4], [0, 13, 2], None])
@pytest.mark.parametrize("queries", [1, 2, 13])
def test_first_queries_are_the_first_rows_of_all(lengths, queries):
    torch.manual_seed(0)
    layer = MultiHeadedAttention(5, 3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    mask = None if lengths is None else ragged_mask(lengths, 13)
    x = random_tensor(3, 13, 15)
    found = []
    for outputs in (layer(x, mask)[:, :queries], layer(x, mask, queries=queries)):
        layer.zero_grad()
        x.grad = None
        torch.manual_seed(1)
        (outputs * torch.randn(outputs.shape, dtype=outputs.dtype)).sum().backward()
        found.append([outputs, x.grad, *gradients(layer).values()])
    for all_rows, first_rows in zip(*found, strict=True):
        assert_close(first_rows, all_rows, 1e-10)


@pytest.mark.parametrize("lengths", [[13, 1, 4], [0, 13, 2], None])
def test_sdpa_is_eager(lengths):
    torch.manual_seed(0)
    eager = MultiHeadedAttention(5, 3).double()
    sdpa = MultiHeadedAttention(5, 3, attn_implementation="sdpa").double()
    sdpa.load_state_dict(eager.state_dict())
    mask = None if lengths is None else ragged_mask(lengths, 13)
    x = random_tensor(3, 13, 15)
    found = []
    for layer in (eager, sdpa):
        x.grad = None
        outputs = layer(x, mask)
        outputs.square().sum().backward()
        found.append([outputs, x.grad, *gradients(layer).values()])
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


def test_an_unknown_attention_implementation_is_refused():
    with pytest.raises(ValueError, match=r"\('eager', 'sdpa'\), got 'flash'"):
        MultiHeadedAttention(5, 3, attn_implementation="flash")


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_layer_norm_by_hand_is_its_definition(monkeypatch, block, dtype, tolerance):
    """In blocks of one vector, of some that don't divide all, and in one."""
    monkeypatch.setattr(transformer_solution, "BLOCK", block)
    torch.manual_seed(0)
    layer = LayerNorm(13, eps=1e-3).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = random_tensor(5, 11, 13, dtype=dtype)
    weights = torch.randn(5, 11, 13, dtype=dtype)
    found = []
    for run in (layer, layer.forward_by_definition):
        layer.zero_grad()
        x.grad = None
        outputs = run(x)
        (outputs * weights).sum().backward()
        found.append([outputs, x.grad, *gradients(layer).values()])
    for ours, definition in zip(*found, strict=True):
        assert_close(ours, definition, tolerance)


def test_layer_norm_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    layer = LayerNorm(5).double()
    assert torch.autograd.gradcheck(
        lambda x, w, b: functional_call(layer, {"weight": w, "bias": b}, (x,)),
        (random_tensor(3, 5), random_tensor(5), random_tensor(5)),
    )


def test_layer_norm_of_no_vectors_gives_none():
    assert LayerNorm(5)(torch.zeros(0, 3, 5)).shape == (0, 3, 5)


# ---------------------------------------------------------------- experiment 8


@pytest.mark.parametrize("known", [False, True], ids=["computed", "kept"])
@pytest.mark.parametrize("unfreeze_layers", [0, 1, 2, 4])
def test_bert_is_read_at_its_first_position_with_the_logits_and_gradients_of_the_whole(unfreeze_layers, known):
    """Against transformers' own forward pass, every layer at every position."""
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": V}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    encoder = BertModel(BertConfig(num_hidden_layers=4, **sizes, **rates), add_pooling_layer=False).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    model = ReviewClassifier(BertBackbone(encoder, unfreeze_epoch=1, unfreeze_layers=unfreeze_layers)).double().train()
    ids, mask, labels = make_batch(BATCHES["ragged"])
    whole = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    found = []
    for summary in (whole, None):
        if summary is None:
            states = {"hidden_states": model.backbone.frozen_states(ids, mask)} if known else {}
            logits = model(ids, mask, **states).logits
        else:
            logits = model.classifier(summary)
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits.double(), labels).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"logits": logits})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        assert_close(found[1][name].double(), expected.double(), 1e-6)


def test_frozen_layers_do_not_drop_and_thawed_ones_do():
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": V}
    encoder = BertModel(BertConfig(num_hidden_layers=3, hidden_dropout_prob=0.5, **sizes), add_pooling_layer=False)
    model = BertBackbone(encoder, unfreeze_epoch=2, unfreeze_layers=1)
    ids, mask, _ = make_batch(BATCHES["ragged"])
    assert torch.equal(model.frozen_states(ids, mask), model.frozen_states(ids, mask)), "from the start"
    model.train()
    assert torch.equal(model(ids, mask), model(ids, mask))
    model.start_epoch(2)
    model.train()
    assert not torch.allclose(model(ids, mask), model(ids, mask))
    assert torch.equal(model.frozen_states(ids, mask), model.frozen_states(ids, mask))
    assert [layer.training for layer in encoder.encoder.layer] == [False, False, True]
