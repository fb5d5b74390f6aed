"""Fast paths against their reference implementations: same weights, same batch, outputs and every gradient.

The reference pads every review to the full length and computes every position of every layer.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig, BertModel

import transformer_solution
from backbones.dropout import Dropout
from backbones.encoders import BertBackbone, LSTMBackbone
from config import CONFIGS, load_config
from helpers import (
    EXPERIMENTS,
    assert_all_close,
    assert_close,
    backpropagate_random_sum,
    gradients,
    ragged_mask,
    random_tensor,
    randomize,
)
from lstm import LSTM
from models import ReviewClassifier, ReviewConfig, build_model
from transformer_solution import LayerNorm, MultiHeadedAttention

V, FULL = 29, 19
SCRATCH = EXPERIMENTS[:-1]  # 8 has tests of its own, below
# Ragged, with one row of full length and one of a single token; all short; one review alone, long and short.
BATCHES = {"ragged": [FULL, 1, 7, 12, 3], "short": [5, 1, 7], "one": [FULL], "one short": [2], "one token": [1]}
TOLERANCES = [(torch.float64, 1e-10), (torch.float32, 1e-5)]


def make_classifier(experiment: str, dtype: torch.dtype) -> ReviewClassifier:
    """The experiment's classifier at small sizes, without dropout, with norms and biases away from 0 and 1."""
    sizes = ["model.embedding_size=14", "model.hidden_size=11", "model.dropout=0"]
    heads = ["model.num_heads=7"]
    config = load_config(CONFIGS / f"{experiment}.yaml", sizes + heads)
    torch.manual_seed(0)
    model = build_model(config.model, V, FULL)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    return model.to(dtype)


def reference_logits(model: ReviewClassifier, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits by the whole backbone over reviews padded to the full length."""
    num_padding = FULL - ids.shape[1]
    ids, mask = F.pad(ids, (0, num_padding)), F.pad(mask, (0, num_padding))
    inner = model.backbone.model
    if isinstance(model.backbone, LSTMBackbone):
        return model.classifier(inner(ids, mask)[0])
    x, mask = inner.embed(ids, mask)
    for block in inner.transformer:
        x = block(x, mask)
    return model.classifier(inner.mlp_head(x)[:, 0])


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    mask = ragged_mask(lengths, max(lengths))
    ids = torch.randint(1, V, mask.shape) * mask
    return ids, mask.long(), torch.randint(0, 2, (len(lengths),))


def logits_and_gradients(model: nn.Module, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(logits, labels).backward()
    return {"logits": logits.detach()} | gradients(model)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES.keys())
@pytest.mark.parametrize("experiment", SCRATCH)
def test_classifier_logits_and_gradients_equal_the_reference(experiment, lengths, dtype, tolerance):
    model = make_classifier(experiment, dtype)
    ids, mask, labels = make_batch(lengths)
    expected = logits_and_gradients(model, reference_logits(model, ids, mask), labels)
    actual = logits_and_gradients(model, model.classifier(model.backbone(ids, mask)), labels)
    assert_all_close(actual, expected, tolerance)


@pytest.mark.parametrize("experiment", SCRATCH)
def test_logits_do_not_depend_on_the_other_reviews_of_the_batch(experiment):
    model = make_classifier(experiment, torch.float64)
    ids, mask, _ = make_batch(BATCHES["ragged"])
    logits = model(ids, mask).logits
    for row, length in enumerate(BATCHES["ragged"]):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length]).logits[0]
        assert_close(alone, logits[row], 1e-10, f"logits of row {row}")


@pytest.mark.parametrize("experiment", SCRATCH)
def test_dropout_changes_the_logits_in_training_only(experiment):
    model = make_classifier(experiment, torch.float64)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    ids, mask, _ = make_batch(BATCHES["ragged"])
    assert not torch.allclose(model(ids, mask).logits, model(ids, mask).logits)
    model.eval()
    assert torch.equal(model(ids, mask).logits, model(ids, mask).logits)


def test_inputs_longer_than_padded_length_raise_value_error():
    model = make_classifier("1_lstm", torch.float64).backbone.model
    with pytest.raises(ValueError, match="19 tokens, more than padded_length=18"):
        model.first_step(torch.ones(1, 19).long(), padded_length=18)


def test_attention_without_a_mask_refuses_padded_length():
    model = make_classifier("4_lstm_attention", torch.float64).backbone.model
    with pytest.raises(ValueError, match="give a mask, or no padded_length"):
        model.first_step(torch.ones(2, 5).long(), padded_length=FULL)
    ids = torch.randint(1, V, (3, 5))
    assert_close(model.first_step(ids), model(ids)[0], 1e-10)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("steps", [1, 13])
def test_lstm_outputs_and_gradients_equal_forward_reference(steps, dtype, tolerance):
    torch.manual_seed(0)
    layer = LSTM(7, 5).to(dtype)
    tensors = {
        "inputs": random_tensor(3, steps, 7, dtype=dtype),
        "h0": random_tensor(1, 3, 5, dtype=dtype),
        "c0": random_tensor(1, 3, 5, dtype=dtype),
    }
    results = []
    for run in (layer, layer.forward_reference):
        clear_gradients(layer, *tensors.values())
        outputs, (h, c) = run(tensors["inputs"], (tensors["h0"], tensors["c0"]))
        result = {"outputs": outputs, "h": h, "c": c}
        backpropagate_random_sum(result)
        results.append(result | {f"{name}.grad": tensor.grad for name, tensor in tensors.items()} | gradients(layer))
    assert_all_close(*results, tolerance)


def clear_gradients(layer: nn.Module, *tensors: Tensor) -> None:
    layer.zero_grad()
    for tensor in tensors:
        tensor.grad = None


def test_lstm_gradient_equals_finite_differences():
    torch.manual_seed(0)
    layer = LSTM(3, 2).double()
    inputs, h, c = random_tensor(2, 4, 3), random_tensor(1, 2, 2), random_tensor(1, 2, 2)
    assert torch.autograd.gradcheck(lambda x, h, c: (layer(x, (h, c))[0], *layer(x, (h, c))[1]), (inputs, h, c))


def test_in_place_change_of_the_lstm_outputs_keeps_the_gradient():
    """The outputs must not share memory with the activations saved for the backward pass."""
    torch.manual_seed(0)
    layer = LSTM(3, 2).double()
    inputs, states = random_tensor(2, 4, 3), (torch.zeros(1, 2, 2).double(), torch.zeros(1, 2, 2).double())
    outputs, _ = layer(inputs, states)
    outputs.mul_(2).sum().backward()
    doubled, inputs.grad = inputs.grad, None
    (2 * layer.forward_reference(inputs, states)[0]).sum().backward()
    assert_close(doubled, inputs.grad)


@pytest.mark.parametrize("lengths", [[13, 1, 4], [0, 13, 2], None])
@pytest.mark.parametrize("queries", [1, 2, 13])
def test_first_queries_equal_the_first_rows_of_the_whole_attention(lengths, queries):
    torch.manual_seed(0)
    layer = randomize(MultiHeadedAttention(5, 3).double(), std=0.4)
    mask = None if lengths is None else ragged_mask(lengths, 13)
    x = random_tensor(3, 13, 15)
    results = []
    for outputs in (layer(x, mask, queries=queries), layer(x, mask)[:, :queries]):
        clear_gradients(layer, x)
        backpropagate_random_sum({"outputs": outputs})
        results.append({"outputs": outputs, "x.grad": x.grad} | gradients(layer))
    assert_all_close(*results, 1e-10)


@pytest.mark.parametrize("lengths", [[13, 1, 4], [0, 13, 2], None])
def test_sdpa_outputs_and_gradients_equal_eager(lengths):
    torch.manual_seed(0)
    eager = MultiHeadedAttention(5, 3).double()
    sdpa = MultiHeadedAttention(5, 3, attn_implementation="sdpa").double()
    sdpa.load_state_dict(eager.state_dict())
    mask = None if lengths is None else ragged_mask(lengths, 13)
    x = random_tensor(3, 13, 15)
    results = []
    for layer in (sdpa, eager):
        clear_gradients(layer, x)
        outputs = layer(x, mask)
        outputs.square().sum().backward()
        results.append({"outputs": outputs, "x.grad": x.grad} | gradients(layer))
    assert_all_close(*results)


def test_unknown_attention_implementation_raises_value_error():
    with pytest.raises(ValueError, match=r"\('eager', 'sdpa'\), got 'flash'"):
        MultiHeadedAttention(5, 3, attn_implementation="flash")


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_layer_norm_outputs_and_gradients_equal_forward_reference(monkeypatch, block, dtype, tolerance):
    """In blocks of one row, in blocks that don't divide the number of rows, and in one block."""
    monkeypatch.setattr(transformer_solution, "_BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    layer = randomize(LayerNorm(13, eps=1e-3).to(dtype), std=1.0)
    x = random_tensor(5, 11, 13, dtype=dtype)
    results = []
    for run in (layer, layer.forward_reference):
        clear_gradients(layer, x)
        outputs = run(x)
        backpropagate_random_sum({"outputs": outputs})
        results.append({"outputs": outputs, "x.grad": x.grad} | gradients(layer))
    assert_all_close(*results, tolerance)


def test_layer_norm_gradient_equals_finite_differences():
    torch.manual_seed(0)
    layer = LayerNorm(5).double()
    assert torch.autograd.gradcheck(
        lambda x, w, b: functional_call(layer, {"weight": w, "bias": b}, (x,)),
        (random_tensor(3, 5), random_tensor(5), random_tensor(5)),
    )


def test_layer_norm_of_an_empty_batch_is_empty():
    assert LayerNorm(5)(torch.zeros(0, 3, 5)).shape == (0, 3, 5)


# ---------------------------------------------------------------- second derivatives and torch.func


def layer_calls() -> dict[str, tuple[nn.Module, Callable, Callable, Tensor]]:
    """Layer, fast path, reference implementation and input, in float64, by the layer's name."""
    torch.manual_seed(0)
    norm, lstm = randomize(LayerNorm(5, eps=1e-3).double()), LSTM(3, 2).double()
    states = (torch.randn(1, 2, 2).double(), torch.randn(1, 2, 2).double())
    return {
        "LayerNorm": (norm, norm, norm.forward_reference, random_tensor(3, 5)),
        "LSTM": (
            lstm,
            lambda x: lstm(x, states)[0],
            lambda x: lstm.forward_reference(x, states)[0],
            random_tensor(2, 4, 3),
        ),
    }


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", ["LayerNorm", "LSTM"])
def test_gradient_penalty_equals_the_reference(name, power):
    """With power 1 the gradient of the outputs is constant: it doesn't require a gradient, the input's does."""
    layer, forward, reference, x = layer_calls()[name]
    results = []
    for run in (forward, reference):
        clear_gradients(layer, x)
        (gradient,) = torch.autograd.grad(run(x).pow(power).sum(), x, create_graph=True)
        (run(x).sum() + gradient.square().sum()).backward()
        results.append({"gradient": gradient, "x.grad": x.grad} | gradients(layer))
    assert_all_close(*results)


def call_with_parameters(layer: nn.Module, *arguments) -> tuple[Callable, tuple[Tensor, ...]]:
    """The layer as a function of its parameters, for finite differences, and those parameters."""
    names = [name for name, _ in layer.named_parameters()]

    def call(*values):
        return functional_call(layer, dict(zip(names, values, strict=True)), arguments)

    return call, tuple(parameter.detach().clone().requires_grad_() for parameter in layer.parameters())


def test_layer_norm_second_derivatives_equal_finite_differences():
    layer, _, _, x = layer_calls()["LayerNorm"]
    call, parameters = call_with_parameters(layer, x)
    assert torch.autograd.gradgradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(call, parameters)


def test_lstm_second_derivatives_equal_finite_differences():
    layer, _, _, x = layer_calls()["LSTM"]
    h, c = random_tensor(1, 2, 2), random_tensor(1, 2, 2)

    def flatten(results):
        return results[0], *results[1]

    call, parameters = call_with_parameters(layer, x, (h, c))
    assert torch.autograd.gradgradcheck(lambda x, h, c: flatten(layer(x, (h, c))), (x, h, c))
    assert torch.autograd.gradgradcheck(lambda *values: flatten(call(*values)), parameters)
    # The initial state may depend on the input: its share of the gradient must not be counted twice.
    assert torch.autograd.gradgradcheck(lambda x: flatten(layer(x, (x[None, :, 0, :2], c))), (x,))


@pytest.mark.parametrize("queries", [None, 1, 2])
@pytest.mark.parametrize("lengths", [[3, 1, 0], None])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_second_derivatives_equal_finite_differences(implementation, lengths, queries):
    torch.manual_seed(0)
    layer = randomize(MultiHeadedAttention(2, 2, attn_implementation=implementation).double())
    mask = None if lengths is None else ragged_mask(lengths, 3)
    with sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: layer(x, mask, queries), (random_tensor(3, 3, 4),))


def test_sdpa_default_kernel_refuses_second_derivatives():
    layer = MultiHeadedAttention(2, 2, attn_implementation="sdpa")
    x = random_tensor(3, 3, 4, dtype=torch.float32)
    (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"scaled_dot_product.*not implemented"):
        gradient.sum().backward()


@pytest.mark.parametrize("experiment", SCRATCH)
def test_gradient_penalty_of_a_classifier_equals_the_reference(experiment):
    model = make_classifier(experiment, torch.float64)
    ids, mask, labels = make_batch(BATCHES["ragged"])
    results = []
    with sdpa_kernel(SDPBackend.MATH):
        for logits in (model(ids, mask).logits.double(), reference_logits(model, ids, mask)):
            model.zero_grad()
            loss = F.cross_entropy(logits, labels)
            penalty = sum(g.square().sum() for g in torch.autograd.grad(loss, model.parameters(), create_graph=True))
            penalty.backward()
            results.append(gradients(model))
    assert_all_close(*results, 1e-5)


@pytest.mark.parametrize("name", ["LayerNorm", "LSTM"])
def test_func_grad_and_per_sample_gradients_equal_autograd(name):
    layer, _, _, x = layer_calls()[name]
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(parameters, x):
        states = ((x.new_zeros(1, len(x), 2),) * 2,) if name == "LSTM" else ()
        outputs = functional_call(layer, parameters, (x, *states))
        return (outputs[0] if name == "LSTM" else outputs).square().sum()

    loss(dict(layer.named_parameters()), x).backward()
    expected = gradients(layer)
    assert_all_close(torch.func.grad(loss)(parameters, x.detach()), expected)
    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x.detach()[:, None])
    assert_all_close({name: gradient.sum(dim=0) for name, gradient in per_sample.items()}, expected)


# ---------------------------------------------------------------- experiment 8


def make_bert(num_layers: int, **rates: float) -> BertModel:
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 10, "vocab_size": V}
    return BertModel(BertConfig(num_hidden_layers=num_layers, **sizes, **rates), add_pooling_layer=False)


@pytest.mark.parametrize("cached", [False, True], ids=["computed", "cached"])
@pytest.mark.parametrize("unfreeze_layers", [0, 1, 2, 4])
def test_bert_logits_and_gradients_equal_the_whole_model_at_its_first_position(unfreeze_layers, cached):
    """Against transformers' own forward pass, every layer at every position."""
    torch.manual_seed(0)
    encoder = randomize(make_bert(4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double(), std=0.4)
    model = (
        ReviewClassifier(ReviewConfig(), BertBackbone(encoder, unfreeze_epoch=1, unfreeze_layers=unfreeze_layers))
        .double()
        .train()
    )
    ids, mask, labels = make_batch(BATCHES["ragged"])
    states = {"hidden_states": model.backbone.frozen_states(ids, mask)} if cached else {}
    whole = encoder(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    results = []
    for logits in (model(ids, mask, **states).logits, model.classifier(whole)):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(logits.double(), labels).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({name: tensor.double() for name, tensor in (grads | {"logits": logits}).items()})
    assert_all_close(*results, 1e-6)


def test_dropout_acts_in_trainable_bert_layers_only():
    model = BertBackbone(make_bert(3, hidden_dropout_prob=0.5), unfreeze_epoch=2, unfreeze_layers=1)
    ids, mask, _ = make_batch(BATCHES["ragged"])
    assert torch.equal(model.frozen_states(ids, mask), model.frozen_states(ids, mask)), "from the start"
    model.train()
    assert torch.equal(model(ids, mask), model(ids, mask))
    model.start_epoch(2)
    model.train()
    assert not torch.allclose(model(ids, mask), model(ids, mask))
    assert torch.equal(model.frozen_states(ids, mask), model.frozen_states(ids, mask))
    assert [layer.training for layer in model.model.encoder.layer] == [False, False, True]


# ---------------------------------------------------------------- dropout


def test_dropout_zeroes_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    size = 1_000_003  # no multiple of the four that a number decides over
    for p in (0.1, 0.3, 0.5, 0.97):
        outputs = Dropout(p)(torch.ones(size))
        dropped = outputs == 0
        # Six standard deviations.
        assert dropped.double().mean().item() == pytest.approx(p, abs=6 * (p * (1 - p) / size) ** 0.5)
        assert torch.all((outputs[~dropped] - 1 / (1 - p)).abs() < 1e-4 / (1 - p))
        # Neighbours and elements of one number are independent: the share of pairs is the square.
        for distance in (1, 2, 3, 4):
            both = (dropped[distance:] & dropped[:-distance]).double().mean().item()
            assert both == pytest.approx(p * p, abs=6 * (p * p * (1 - p * p) / size) ** 0.5 + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradient_of_dropout_is_its_mask(dtype):
    torch.manual_seed(0)
    x = torch.randn(5, 7, 3).to(dtype).requires_grad_()
    outputs = Dropout(0.25)(x)
    assert outputs.dtype == dtype
    assert outputs.shape == x.shape
    (gradient,) = torch.autograd.grad(outputs.sum(), x)
    torch.testing.assert_close(gradient * x, outputs)
    assert gradient.unique().tolist() == pytest.approx([0, 4 / 3], rel=1e-2)


def test_dropout_follows_the_generator():
    x = torch.ones(11, 5)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append((Dropout(0.5)(x), Dropout(0.5)(x)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[0][1])


@pytest.mark.parametrize("p", [0.0, 1e-6, 1 - 1e-6, 1.0])
def test_dropout_at_the_ends_is_pytorchs(p):
    torch.manual_seed(0)
    expected = nn.Dropout(p)(torch.ones(50))
    torch.manual_seed(0)
    assert torch.equal(Dropout(p)(torch.ones(50)), expected)


def test_dropout_changes_nothing_in_evaluation_and_of_nothing():
    x = torch.randn(3, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.5)(torch.ones(0, 4)).shape == (0, 4)


def test_dropout_can_be_differentiated_twice():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    outputs = Dropout(0.5)(x)
    (gradient,) = torch.autograd.grad(outputs.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    assert_close(second, 8.0 * (outputs != 0).to(second), 1e-9)


@pytest.mark.parametrize("experiment", [*SCRATCH, "8_minilm"])
def test_built_models_have_the_fast_dropout_in_the_right_mode(experiment):
    model = build_model(load_config(CONFIGS / f"{experiment}.yaml").model, 30522, 256)
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    assert {type(module) for module in modules} == {Dropout}
    # All layers of the pretrained encoder are frozen in the first epoch.
    assert {module.training for module in modules} == {experiment != "8_minilm"}


# ---------------------------------------------------------------- attention in bfloat16, masks


def test_attention_in_bfloat16_on_a_cpu_trains_by_the_definition_and_evaluates_by_the_kernel(monkeypatch):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[0].dtype) or kernel(*a, **k))
    torch.manual_seed(0)
    layer = MultiHeadedAttention(8, 2, attn_implementation="sdpa")
    x, mask = torch.randn(3, 9, 16, requires_grad=True), ragged_mask([9, 4, 1], 9)
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        layer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            outputs = layer(x, mask)
        outputs.float().square().sum().backward()
        results[dtype] = {"outputs": outputs.detach().float()} | gradients(layer)
    assert calls == [torch.float32]
    assert_all_close(results[torch.bfloat16], results[torch.float32], 0.05)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x, mask)
    assert calls == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("experiment", [name for name in SCRATCH if "transformer" in name])
def test_batch_without_padding_is_computed_without_a_mask(experiment, monkeypatch):
    model = make_classifier(experiment, torch.float64)
    masks = []
    inner = model.backbone.model
    forward = inner.forward
    monkeypatch.setattr(inner, "forward", lambda x, mask=None: masks.append(mask) or forward(x, mask))
    for lengths in ([7, 7, 7], [7, 5, 7]):
        ids, mask, _ = make_batch(lengths)
        assert_close(model(ids, mask).logits, model.classifier(forward(ids, mask)).float(), 1e-6)
    assert masks[0] is None
    assert masks[1] is not None


def test_weights_of_a_review_without_tokens_are_zero_beside_others():
    layer = MultiHeadedAttention(4, 2)
    queries, keys = torch.randn(2, 3, 2, 5, 4)
    mask = ragged_mask([5, 0, 2], 5)
    weights = layer.get_attention_weights(queries, keys, mask)
    assert torch.equal(weights[1], torch.zeros_like(weights[1]))
    assert_close(weights[[0, 2]].sum(dim=-1), torch.ones(2, 2, 5), 1e-6)
    assert torch.all(weights[2, :, :, 2:] == 0)
    # Without that review no weight is set to 0 after the softmax.
    assert torch.equal(layer.get_attention_weights(queries[[0, 2]], keys[[0, 2]], mask[[0, 2]]), weights[[0, 2]])
