"""lstm.py against PyTorch's own layers: whole outputs and every gradient, float64, prime sizes."""

import math

import pytest
import torch
from helpers import assert_close, gradients, random_tensor
from torch import nn

from lstm import LSTM, DecoderAttn, Encoder, EncoderDecoder
from transformer_solution import MultiHeadedAttention

B, T, I, H, V, E = 5, 11, 7, 3, 13, 2  # noqa: E741


def twin(layer: LSTM) -> nn.LSTM:
    """`nn.LSTM` with the weights of the scratch layer."""
    reference = nn.LSTM(layer.input_size, layer.hidden_size, batch_first=True).double()
    with torch.no_grad():
        for source in "ih":
            weight, bias = f"weight_{source}h_l0", f"bias_{source}h_l0"
            gates = [getattr(layer, f"w_{source}{gate}") for gate in "ifgo"]
            getattr(reference, weight).copy_(torch.cat(gates))
            getattr(reference, bias).copy_(torch.cat([getattr(layer, f"b_{source}{gate}") for gate in "ifgo"]))
    return reference


def stacked_gradients(layer: LSTM) -> dict[str, torch.Tensor]:
    """The scratch layer's gradients under the names of `nn.LSTM`."""
    names = {"weight_ih_l0": "w_i", "weight_hh_l0": "w_h", "bias_ih_l0": "b_i", "bias_hh_l0": "b_h"}
    return {name: torch.cat([getattr(layer, part + gate).grad for gate in "ifgo"]) for name, part in names.items()}


@pytest.mark.parametrize("length", [1, T])
def test_lstm_has_the_outputs_and_gradients_of_nn_lstm(length):
    torch.manual_seed(0)
    layer = LSTM(I, H).double()
    reference = twin(layer)
    found = []
    for module in (layer, reference):
        torch.manual_seed(1)
        inputs = [random_tensor(B, length, I), random_tensor(1, B, H), random_tensor(1, B, H)]
        outputs, (h, c) = module(inputs[0], (inputs[1], inputs[2]))
        assert outputs.shape == (B, length, H)
        assert h.shape == c.shape == (1, B, H)
        # Each result gets weights of its own, so that none can stand in for another.
        loss = sum((result * random_tensor(*result.shape).detach()).sum() for result in (outputs, h, c))
        loss.backward()
        found.append([outputs, h, c, *(tensor.grad for tensor in inputs)])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs)
    ours, theirs = stacked_gradients(layer), gradients(reference)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert_close(ours[name], theirs[name])


def test_lstm_uses_no_ready_made_recurrence(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a ready-made LSTM was called")

    for owner, name in (
        (nn.LSTM, "forward"),
        (nn.LSTMCell, "forward"),
        (torch._VF, "lstm"),
        (torch._VF, "lstm_cell"),
        (torch, "lstm"),
        (torch, "lstm_cell"),
    ):
        monkeypatch.setattr(owner, name, forbidden)
    layer = LSTM(I, H)
    outputs, _ = layer(torch.randn(B, T, I), (torch.zeros(1, B, H), torch.zeros(1, B, H)))
    outputs.sum().backward()
    with pytest.raises(AssertionError, match="ready-made"):
        nn.LSTM(I, H)(torch.randn(B, T, I))


def test_lstm_parameters_have_the_names_shapes_and_bounds_of_the_assignment():
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


def test_a_long_sequence_keeps_the_order_of_time():
    """A later input can't reach an earlier output."""
    torch.manual_seed(0)
    layer = LSTM(I, H).double()
    inputs = random_tensor(B, T, I)
    outputs, _ = layer(inputs, (torch.zeros(1, B, H).double(), torch.zeros(1, B, H).double()))
    outputs[:, 4].sum().backward()
    assert (inputs.grad[:, 5:] == 0).all()
    assert (inputs.grad[:, :5] != 0).any(dim=-1).all()


def test_encoder_is_a_hand_wired_bidirectional_lstm():
    torch.manual_seed(0)
    encoder = Encoder(V, E, H).double()
    tokens = torch.randint(1, V, (B, T))
    tokens[1, 4:] = 0
    states = (random_tensor(2, B, H), random_tensor(2, B, H))
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
        assert_close(outputs[..., direction * H : (direction + 1) * H], expected)
        for ours, theirs in zip((h, c), last, strict=True):
            assert_close(ours[direction], theirs[0])


def test_encoder_starts_from_zeros_and_embeds_padding_as_zeros():
    encoder = Encoder(V, E, H)
    for state in encoder.initial_states(B):
        assert state.shape == (2, B, H)
        assert (state == 0).all()
    assert encoder.initial_states(B, device="meta")[0].device.type == "meta"
    assert encoder.embedding.padding_idx == 0
    assert (encoder.embedding.weight[0] == 0).all()


def test_encoder_drops_features_of_the_embedding_in_training_only():
    torch.manual_seed(0)
    encoder = Encoder(V, 101, H, dropout=0.25)
    seen = []
    encoder.rnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    tokens = torch.randint(1, V, (B, T))
    encoder(tokens, encoder.initial_states(B))
    encoder.eval()
    encoder(tokens, encoder.initial_states(B))
    embedded = encoder.embedding(tokens)
    dropped = seen[0] == 0
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert_close(seen[0], torch.where(dropped, 0.0, embedded / 0.75), 1e-6)
    assert torch.equal(seen[1], embedded)


@pytest.mark.parametrize("attention", [False, True])
def test_decoder_is_a_hand_wired_lstm_over_perhaps_attended_inputs(attention):
    torch.manual_seed(0)
    attn = MultiHeadedAttention(2 * H, 1).double() if attention else None
    decoder = DecoderAttn(2 * H, H, attn).double()
    assert decoder.mlp_attn is attn
    inputs, h, c = random_tensor(B, T, 2 * H), random_tensor(1, B, H), random_tensor(1, B, H)
    mask = torch.arange(T) < torch.tensor([T, 1, 4, 2, 7])[:, None]
    outputs, states = decoder(inputs, (h, c), mask)
    mixed = inputs if attn is None else attn(inputs, mask)
    expected, expected_states = decoder.rnn(mixed, (h, c))
    assert_close(outputs, expected)
    for ours, theirs in zip(states, expected_states, strict=True):
        assert_close(ours, theirs)
    if attention:
        assert not torch.allclose(outputs, decoder(inputs, (h, c))[0]), "the mask must matter"


def test_encoder_decoder_reads_the_first_step_and_starts_from_the_forward_direction():
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, attn=MultiHeadedAttention(2 * H, 1)).double()
    tokens = torch.randint(1, V, (B, T))
    mask = torch.arange(T) < torch.tensor([T, 1, 4, 2, 7])[:, None]
    summary, (h, c) = model(tokens * mask, mask)
    encoded, (eh, ec) = model.encoder(tokens * mask, model.encoder.initial_states(B))
    expected, states = model.decoder(encoded, (eh[0:1], ec[0:1]), mask)
    assert summary.shape == (B, H)
    assert_close(summary, expected[:, 0])
    assert_close(h, states[0])
    assert_close(c, states[1])


def test_encoder_only_gives_the_encoders_first_step_and_states():
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, encoder_only=True).double()
    assert model.decoder is None
    tokens = torch.randint(1, V, (B, T))
    summary, (h, c) = model(tokens)
    expected, states = model.encoder(tokens, model.encoder.initial_states(B))
    assert_close(summary, expected[:, 0])
    assert_close(h, states[0])
    assert_close(c, states[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.uint8])
def test_a_mask_may_be_of_any_type(dtype):
    torch.manual_seed(0)
    model = EncoderDecoder(V, E, H, attn=MultiHeadedAttention(2 * H, 1))
    tokens = torch.randint(1, V, (B, T))
    mask = torch.arange(T) < torch.tensor([T, 1, 4, 2, 7])[:, None]
    assert torch.equal(model(tokens, mask.to(dtype))[0], model(tokens, mask)[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: LSTM(I, H)(torch.zeros(B, T, I + 1), (torch.zeros(1, B, H),) * 2),
            r"\(B, T >= 1, 7\), got \(5, 11, 8\)",
        ),
        (lambda: LSTM(I, H)(torch.zeros(B, 0, I), (torch.zeros(1, B, H),) * 2), r"got \(5, 0, 7\)"),
        (
            lambda: LSTM(I, H)(torch.zeros(B, T, I), (torch.zeros(1, B, H), torch.zeros(1, B, 1))),
            r"c must be \(1, 5, 3\)",
        ),
        (lambda: Encoder(V, E, H)(torch.zeros(B, T).long(), (torch.zeros(1, B, H),) * 2), r"h must be \(2, 5, 3\)"),
        (
            lambda: Encoder(V, E, H)(torch.zeros(B).long(), (torch.zeros(2, B, H),) * 2),
            r"shape \(B, T >= 1\), got \(5,\)",
        ),
        (
            lambda: DecoderAttn(6, H)(torch.zeros(B, T, 5), (torch.zeros(1, B, H),) * 2),
            r"\(B, T, 6\), got \(5, 11, 5\)",
        ),
        (lambda: EncoderDecoder(V, E, H)(torch.ones(B, T).long(), torch.ones(B, 1)), r"\(5, 11\), got \(5, 1\)"),
        (lambda: EncoderDecoder(encoder_only=True, attn=nn.Identity()), "encoder_only=True"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
