"""lstm.py against PyTorch's own layers: whole outputs and every gradient, float64, prime sizes."""

import math

import pytest
import torch
from torch import nn

from helpers import assert_all_close, assert_close, backpropagate_random_sum, gradients, ragged_mask, random_tensor
from lstm import LSTM, DecoderAttn, Encoder, EncoderDecoder
from transformer_solution import MultiHeadedAttention

B, T, I, H, V, E = 5, 11, 7, 3, 13, 2  # noqa: E741
LENGTHS = [T, 1, 4, 2, 7]


def zero_states(batch_size: int = B, directions: int = 1, dtype: torch.dtype = torch.float32):
    return tuple(torch.zeros(directions, batch_size, H, dtype=dtype) for _ in "hc")


def random_states(directions: int = 1):
    return random_tensor(directions, B, H), random_tensor(directions, B, H)


# ---------------------------------------------------------------- LSTM


def copy_to_nn_lstm(layer: LSTM) -> nn.LSTM:
    """`nn.LSTM` with the weights of the scratch layer."""
    reference = nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True).double()
    with torch.no_grad():
        for source in "ih":
            for kind, letter in (("weight", "w"), ("bias", "b")):
                gates = [getattr(layer, f"{letter}_{source}{gate}") for gate in "ifgo"]
                getattr(reference, f"{kind}_{source}h_l0").copy_(torch.cat(gates))
    return reference


def stacked_gradients(layer: LSTM) -> dict[str, torch.Tensor]:
    """The scratch layer's gradients under the names of `nn.LSTM`."""
    names = {"weight_ih_l0": "w_i", "weight_hh_l0": "w_h", "bias_ih_l0": "b_i", "bias_hh_l0": "b_h"}
    return {name: torch.cat([getattr(layer, part + gate).grad for gate in "ifgo"]) for name, part in names.items()}


def run_lstm(module: nn.Module, length: int) -> dict[str, torch.Tensor]:
    """Outputs and input gradients of one forward and backward pass over random inputs."""
    torch.manual_seed(1)
    inputs, h0, c0 = random_tensor(B, length, I), random_tensor(1, B, H), random_tensor(1, B, H)
    outputs, (h, c) = module(inputs, (h0, c0))
    assert outputs.shape == (B, length, H)
    assert h.shape == c.shape == (1, B, H)
    results = {"outputs": outputs, "h": h, "c": c}
    backpropagate_random_sum(results)
    return results | {"inputs.grad": inputs.grad, "h0.grad": h0.grad, "c0.grad": c0.grad}


@pytest.mark.parametrize("length", [1, T])
def test_lstm_outputs_and_gradients_equal_nn_lstm(length):
    torch.manual_seed(0)
    layer = LSTM(I, H).double()
    reference = copy_to_nn_lstm(layer)
    assert_all_close(run_lstm(layer, length), run_lstm(reference, length))
    assert_all_close(stacked_gradients(layer), gradients(reference), where="gradient of ")


def test_lstm_calls_no_builtin_lstm(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a built-in LSTM was called")

    for owner, name in (
        (nn.LSTM, "forward"),
        (nn.LSTMCell, "forward"),
        (torch._VF, "lstm"),
        (torch._VF, "lstm_cell"),
        (torch, "lstm"),
        (torch, "lstm_cell"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    outputs, _ = LSTM(I, H)(torch.randn(B, T, I), zero_states())
    outputs.sum().backward()
    with pytest.raises(AssertionError, match="built-in LSTM"):
        nn.LSTM(I, H)(torch.randn(B, T, I))


def test_lstm_parameter_names_shapes_and_bounds():
    layer = LSTM(I, 29)
    shapes = {}
    for gate in "ifgo":
        shapes |= {f"w_i{gate}": (29, I), f"w_h{gate}": (29, 29), f"b_i{gate}": (29,), f"b_h{gate}": (29,)}
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == shapes
    bound = 1 / math.sqrt(29)
    values = torch.cat([p.detach().flatten() for p in layer.parameters()])
    assert values.abs().max() <= bound
    assert values.min() < -0.95 * bound
    assert values.max() > 0.95 * bound


@pytest.mark.parametrize("arguments", [(), (None,)], ids=["omitted", "none"])
def test_lstm_initial_states_default_to_zeros(arguments):
    torch.manual_seed(0)
    layer, inputs = LSTM(I, H), torch.randn(B, T, I)
    expected, (expected_h, expected_c) = layer(inputs, zero_states())
    for run in (layer, layer.forward_reference):
        outputs, (h, c) = run(inputs, *arguments)
        assert_all_close(
            {"outputs": outputs, "h": h, "c": c}, {"outputs": expected, "h": expected_h, "c": expected_c}, 1e-6
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lstm_accepts_half_precision_under_autocast(dtype):
    torch.manual_seed(0)
    layer, inputs = LSTM(I, H), torch.randn(B, T, I).to(dtype)
    with torch.autocast("cpu"):
        outputs, _ = layer(inputs, tuple(state.to(dtype) for state in zero_states()))
        with pytest.raises(ValueError, match="got torch.float64"):
            layer(inputs.double())
    assert outputs.dtype == torch.float32
    assert_close(outputs, layer(inputs.float())[0])


def test_lstm_gradient_is_the_same_inside_autocast():
    torch.manual_seed(0)
    layer, inputs = LSTM(I, H), torch.randn(B, T, I)
    layer(inputs)[0].square().sum().backward()
    expected = gradients(layer)
    layer.zero_grad()
    with torch.autocast("cpu"):
        layer(inputs)[0].square().sum().backward()
    assert_all_close(gradients(layer), expected)


def test_lstm_output_does_not_depend_on_later_inputs():
    torch.manual_seed(0)
    layer = LSTM(I, H).double()
    inputs = random_tensor(B, T, I)
    outputs, _ = layer(inputs, zero_states(dtype=torch.float64))
    outputs[:, 4].sum().backward()
    assert (inputs.grad[:, 5:] == 0).all()
    assert (inputs.grad[:, :5] != 0).any(dim=-1).all()


# ---------------------------------------------------------------- Encoder


def test_encoder_equals_one_nn_lstm_per_direction():
    torch.manual_seed(0)
    encoder = Encoder(V, E, H).double()
    tokens = torch.randint(1, V, (B, T))
    tokens[1, 4:] = 0
    states = random_states(directions=2)
    outputs, (h, c) = encoder(tokens, states)
    assert outputs.shape == (B, T, 2 * H)
    assert h.shape == c.shape == (2, B, H)
    weights = dict(encoder.rnn.named_parameters())
    embedded = encoder.embedding.weight[tokens]
    for direction, suffix in enumerate(("", "_reverse")):
        single = nn.LSTM(E, H, batch_first=True).double()
        single.load_state_dict({name: weights[name + suffix] for name, _ in single.named_parameters()})
        steps = embedded if direction == 0 else embedded.flip(1)
        expected, last = single(steps, tuple(state[direction : direction + 1].contiguous() for state in states))
        expected = expected if direction == 0 else expected.flip(1)
        assert_close(outputs[..., direction * H : (direction + 1) * H], expected, name=f"outputs{suffix}")
        for name, ours, theirs in zip("hc", (h, c), last, strict=True):
            assert_close(ours[direction], theirs[0], name=name + suffix)


def test_encoder_initial_states_and_padding_embedding_are_zero():
    encoder = Encoder(V, E, H)
    for state in encoder.initial_states(B):
        assert state.shape == (2, B, H)
        assert (state == 0).all()
    tokens = torch.randint(1, V, (B, T))
    assert torch.equal(encoder(tokens)[0], encoder(tokens, encoder.initial_states(B))[0])
    assert encoder.initial_states(B, device="meta")[0].device.type == "meta"
    assert encoder.embedding.padding_idx == 0
    assert (encoder.embedding.weight[0] == 0).all()


def test_encoder_dropout_acts_on_the_embedding_in_training_only():
    torch.manual_seed(0)
    encoder = Encoder(V, 101, H, dropout=0.25)
    rnn_inputs = []
    encoder.rnn.register_forward_pre_hook(lambda module, args: rnn_inputs.append(args[0]))
    tokens = torch.randint(1, V, (B, T))
    encoder(tokens, encoder.initial_states(B))
    encoder.eval()
    encoder(tokens, encoder.initial_states(B))
    in_training, in_evaluation = rnn_inputs
    embedded = encoder.embedding(tokens)
    dropped = in_training == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert_close(in_training, torch.where(dropped, 0.0, embedded / 0.75), 1e-6)
    assert torch.equal(in_evaluation, embedded)


# ---------------------------------------------------------------- DecoderAttn and EncoderDecoder


@pytest.mark.parametrize("attention", [False, True])
def test_decoder_equals_nn_lstm_over_attended_inputs(attention):
    torch.manual_seed(0)
    attn = MultiHeadedAttention(2 * H, 1).double() if attention else None
    decoder = DecoderAttn(2 * H, H, attn).double()
    assert decoder.mlp_attn is attn
    inputs, states, mask = random_tensor(B, T, 2 * H), random_states(), ragged_mask(LENGTHS, T)
    outputs, (h, c) = decoder(inputs, states, mask)
    expected, (expected_h, expected_c) = decoder.rnn(inputs if attn is None else attn(inputs, mask), states)
    assert_all_close({"outputs": outputs, "h": h, "c": c}, {"outputs": expected, "h": expected_h, "c": expected_c})
    if attention:
        assert not torch.allclose(outputs, decoder(inputs, states)[0]), "the mask must change the outputs"


def test_encoder_decoder_pools_the_first_step_and_starts_from_the_forward_states():
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, attn=MultiHeadedAttention(2 * H, 1)).double()
    mask = ragged_mask(LENGTHS, T)
    tokens = torch.randint(1, V, (B, T)) * mask
    pooled, (h, c) = model(tokens, mask)
    encoded, (encoder_h, encoder_c) = model.encoder(tokens, model.encoder.initial_states(B))
    expected, (expected_h, expected_c) = model.decoder(encoded, (encoder_h[0:1], encoder_c[0:1]), mask)
    assert pooled.shape == (B, H)
    assert_all_close({"pooled": pooled, "h": h, "c": c}, {"pooled": expected[:, 0], "h": expected_h, "c": expected_c})


def test_encoder_only_returns_the_first_step_and_states_of_the_encoder():
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, encoder_only=True).double()
    assert model.decoder is None
    tokens = torch.randint(1, V, (B, T))
    pooled, (h, c) = model(tokens)
    expected, (expected_h, expected_c) = model.encoder(tokens, model.encoder.initial_states(B))
    assert_all_close({"pooled": pooled, "h": h, "c": c}, {"pooled": expected[:, 0], "h": expected_h, "c": expected_c})


def test_encoder_only_ignores_the_attention():
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, encoder_only=True, attn=MultiHeadedAttention(2 * H, 1))
    assert model.decoder is None
    assert not any("attn" in name for name, _ in model.named_parameters())
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    assert torch.equal(model(tokens, mask)[0], model(tokens)[0])


def test_constructor_arguments_are_attributes():
    model = EncoderDecoder(V, E, H, encoder_only=True)
    assert model.encoder_only is True
    assert EncoderDecoder(V, E, H).encoder_only is False
    assert (model.encoder.vocabulary_size, model.encoder.embedding_size, model.encoder.hidden_size) == (V, E, H)


class MeanOfTokens(nn.Module):
    """An attention with equal weights, which has no parameter for the number of queries."""

    def forward(self, queries, mask):
        weights = mask / mask.sum(dim=1, keepdim=True)
        return queries + (weights[..., None] * queries).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("num_padding", [0, 3])
def test_first_step_accepts_any_attention_called_with_inputs_and_mask(num_padding):
    """A first parameter called `queries` is the inputs, not their number."""
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, attn=MeanOfTokens()).double().train()
    mask = ragged_mask(LENGTHS, T)
    tokens = torch.randint(1, V, (B, T)) * mask
    results = []
    pad = (0, num_padding)
    for pooled in (
        model.first_step(tokens, mask, T + num_padding),
        model(nn.functional.pad(tokens, pad), nn.functional.pad(mask, pad))[0],
    ):
        model.zero_grad()
        backpropagate_random_sum({"pooled": pooled})
        results.append({"pooled": pooled} | gradients(model))
    assert_all_close(*results)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_mask_dtype_does_not_change_the_output(dtype):
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, attn=MultiHeadedAttention(2 * H, 1))
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    assert torch.equal(model(tokens, mask.to(dtype))[0], model(tokens, mask)[0])


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LSTM(I, H)(torch.zeros(B, T, I + 1), zero_states()), r"\(B, T >= 1, 7\), got \(5, 11, 8\)"),
        (lambda: LSTM(I, H)(torch.zeros(B, 0, I), zero_states()), r"got \(5, 0, 7\)"),
        (
            lambda: LSTM(I, H)(torch.zeros(B, T, I), (torch.zeros(1, B, H), torch.zeros(1, B, 1))),
            r"c must be \(1, 5, 3\)",
        ),
        (lambda: Encoder(V, E, H)(torch.zeros(B, T).long(), zero_states()), r"h must be \(2, 5, 3\)"),
        (lambda: Encoder(V, E, H)(torch.zeros(B).long(), zero_states(directions=2)), r"\(B, T >= 1\), got \(5,\)"),
        (lambda: DecoderAttn(6, H)(torch.zeros(B, T, 5), zero_states()), r"\(B, T, 6\), got \(5, 11, 5\)"),
        (lambda: EncoderDecoder(V, E, H)(torch.ones(B, T).long(), torch.ones(B, 1)), r"\(5, 11\), got \(5, 1\)"),
        (lambda: LSTM(I, H)(torch.zeros(B, T, I).double()), "inputs must have the dtype .*float32, got torch.float64"),
        (lambda: LSTM(I, H)(torch.zeros(B, T, I).half()), "inputs must have the dtype .*float32, got torch.float16"),
        (lambda: LSTM(I, H).double()(torch.zeros(B, T, I)), "inputs must have the dtype .*float64, got torch.float32"),
        (
            lambda: LSTM(I, H)(torch.zeros(B, T, I), zero_states(dtype=torch.float64)),
            "h must have the dtype .*float32, got torch.float64",
        ),
        (lambda: Encoder(V, E, H)(torch.ones(B, T)), "int64 or int32, got torch.float32"),
        (lambda: EncoderDecoder(V, E, H)(torch.ones(B, T).bool()), "int64 or int32, got torch.bool"),
        (lambda: EncoderDecoder(V, E, H).first_step(torch.ones(B, T)), "int64 or int32, got torch.float32"),
    ],
)
def test_invalid_arguments_raise_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
