"""Poolings, steps at all tokens, packed reviews, and the settings that ask for them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from backbones.encoders import BertBackbone, EmbeddingBackbone, LSTMBackbone, TransformerBackbone
from backbones.pooling import KINDS, Pooling
from config import CONFIGS, POOLINGS, InputError, load_config
from helpers import assert_all_close, assert_close, gradients, ragged_mask, randomize
from lstm import EncoderDecoder
from models import build_model
from transformer_solution import MultiHeadedAttention, Transformer

V, E, H, FULL = 29, 14, 11, 19
LENGTHS = [FULL, 1, 7, 12, 3]
EXPECTED = {
    "first": lambda x: x[0],
    "last": lambda x: torch.cat([x[-1, :2], x[0, 2:]]),
    "mean": lambda x: x.mean(dim=0),
    "max": lambda x: x.max(dim=0).values,
}


def make_encoder_decoder(decoder: bool, attention: bool) -> EncoderDecoder:
    torch.manual_seed(0)
    attn = MultiHeadedAttention(2 * H, 1) if attention else None
    return randomize(EncoderDecoder(V, E, H, encoder_only=not decoder, attn=attn).double())


def make_batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = ragged_mask(LENGTHS, max(LENGTHS))
    return torch.randint(1, V, mask.shape) * mask, mask


@pytest.mark.parametrize("kind", EXPECTED)
def test_pooling_reads_the_tokens_of_each_review(kind):
    outputs, (_, mask) = torch.randn(len(LENGTHS), FULL, 5, dtype=torch.float64), make_batch()
    pooled = Pooling(kind, 5, num_forward=2)(outputs, mask)
    for row, length in enumerate(LENGTHS):
        assert_close(pooled[row], EXPECTED[kind](outputs[row, :length]), name=f"row {row}")


def test_last_without_directions_is_the_last_token():
    outputs, (_, mask) = torch.randn(len(LENGTHS), FULL, 5), make_batch()
    pooled = Pooling("last", 5)(outputs, mask)
    assert torch.equal(pooled, torch.stack([outputs[row, n - 1] for row, n in enumerate(LENGTHS)]))


def test_attention_pooling_is_a_weighted_mean_by_a_learned_score():
    torch.manual_seed(0)
    outputs, (_, mask) = torch.randn(len(LENGTHS), FULL, 5, dtype=torch.float64), make_batch()
    pooling = Pooling("attention", 5).double()
    pooled = pooling(outputs, mask)
    for row, length in enumerate(LENGTHS):
        x = outputs[row, :length]
        weights = (x @ pooling.score.weight[0] + pooling.score.bias).softmax(dim=0)
        # The scores are in float32.
        assert_close(pooled[row], weights @ x, 1e-6, f"row {row}")


def test_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of .*, got 'median'"):
        Pooling("median", 5)


@pytest.mark.parametrize(("decoder", "attention"), [(False, False), (True, False), (True, True)])
def test_all_steps_are_those_of_the_padded_reviews(decoder, attention):
    model = make_encoder_decoder(decoder, attention)
    ids, mask = make_batch()
    longer = nn.functional.pad(ids, (0, 4)), nn.functional.pad(mask, (0, 4))
    results = []
    for run in ("all_steps", "definition"):
        model.zero_grad()
        if run == "all_steps":
            outputs = model.all_steps(ids, mask, padded_length=FULL + 4)
        else:
            outputs, states = model.encoder(longer[0])
            if decoder:
                outputs, _ = model.decoder(outputs, tuple(state[:1] for state in states), longer[1])
        at_tokens = outputs[:, :FULL] * mask[..., None]
        at_tokens.square().sum().backward()
        results.append({"outputs": at_tokens.detach()} | gradients(model))
    assert_all_close(*results)


@pytest.mark.parametrize(("decoder", "attention"), [(False, False), (True, False), (True, True)])
def test_packed_review_is_computed_as_if_it_were_alone(decoder, attention):
    model = make_encoder_decoder(decoder, attention)
    ids, mask = make_batch()
    outputs = model.packed_steps(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = model.all_steps(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert_close(outputs[row, :length], alone[0], name=f"row {row}")
        assert not outputs[row, length:].any()
    assert_close(model.packed_first_step(ids, mask), outputs[:, 0])


@pytest.mark.parametrize("fast", ["packed_steps", "packed_first_step"])
def test_packed_encoder_computes_a_packed_sequence(fast):
    model = make_encoder_decoder(decoder=False, attention=False)
    ids, mask = make_batch()
    results = []
    for run in (fast, "definition"):
        model.zero_grad()
        if run == fast:
            outputs = getattr(model, fast)(ids, mask)
        else:
            x = pack_padded_sequence(model.encoder.embedding(ids), LENGTHS, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(model.encoder.rnn(x)[0], batch_first=True, total_length=FULL)
            outputs = outputs[:, 0] if fast == "packed_first_step" else outputs
        outputs.square().sum().backward()
        results.append({"outputs": outputs.detach()} | gradients(model))
    assert_all_close(*results)


@pytest.mark.parametrize("row", [[0] * FULL, [0] + [1] * (FULL - 1), [1, 1, 0] + [1] * (FULL - 3)])
@pytest.mark.parametrize("decoder", [False, True])
@pytest.mark.parametrize("run", ["packed_steps", "packed_first_step"])
def test_packed_reviews_must_be_padded_on_the_right(row, decoder, run):
    model = make_encoder_decoder(decoder, attention=False)
    ids, mask = make_batch()
    mask[1] = torch.tensor(row)
    with pytest.raises(ValueError, match="must be tokens, at least one, and then padding"):
        getattr(model, run)(ids, mask)


def test_token_outputs_of_a_transformer_are_its_normalised_states():
    torch.manual_seed(0)
    model = randomize(Transformer(V, 12, 10, num_heads=2, dropout=0.0).double())
    ids, mask = make_batch()
    x, with_cls = model.embed(ids, mask)
    for block in model.transformer:
        x = block(x, with_cls)
    assert_close(model.token_outputs(ids, mask), model.mlp_head(x)[:, 1:])
    # CLS is the same computation, at another position.
    assert_close(model(ids, mask), model.mlp_head(x)[:, 0])


def test_settings_offer_the_kinds_that_there_are():
    """The layers import nothing of the settings: a saved model is loaded without them, too."""
    assert POOLINGS == KINDS


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "settings",
    [
        ["model.backbone=lstm"],
        ["model.backbone=lstm", "model.padding=packed"],
        ["model.backbone=lstm", "model.decoder=true", "model.attention=true"],
        ["model.backbone=transformer"],
        ["model.backbone=embedding"],
    ],
    ids=lambda settings: " ".join(settings),
)
def test_pooled_logits_do_not_depend_on_the_padding_and_all_that_is_read_is_trained(settings, pooling):
    if pooling == "first" and "model.backbone=embedding" in settings:
        pytest.skip("refused")
    sizes = ["model.embedding_size=12", "model.hidden_size=10"]
    config = load_config(CONFIGS / "1_lstm.yaml", [*settings, *sizes, f"model.pooling={pooling}"])
    torch.manual_seed(0)
    model = build_model(config.model, V, FULL).double()
    ids, mask = make_batch()
    logits = model(ids, mask).logits
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length]).logits[0]
        assert_close(alone, logits[row], 1e-6, f"logits of row {row}")
    logits.square().sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_poolings_reach_every_backbone():
    kinds = {"lstm": LSTMBackbone, "transformer": TransformerBackbone, "embedding": EmbeddingBackbone}
    for backbone, kind in kinds.items():
        config = load_config(CONFIGS / "1_lstm.yaml", [f"model.backbone={backbone}", "model.pooling=max"])
        built = build_model(config.model, V, FULL).backbone
        assert isinstance(built, kind)
        assert built.pooling.kind == "max"
    built = build_model(load_config(CONFIGS / "8_minilm.yaml", ["model.pooling=mean"]).model, 30522, 256).backbone
    assert isinstance(built, BertBackbone)
    assert built.pooling.kind == "mean"
    assert built.eval()(*make_batch()).shape == (len(LENGTHS), built.output_size)


def test_bert_pools_the_states_of_its_last_layer():
    model = build_model(load_config(CONFIGS / "8_minilm.yaml", ["model.pooling=mean"]).model, 30522, 256).eval()
    ids, mask = make_batch()
    encoder = model.backbone.model
    states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    expected = torch.stack([states[row, :length].mean(dim=0) for row, length in enumerate(LENGTHS)])
    assert_close(model.backbone(ids, mask), expected, 1e-4)


def test_forget_bias_is_added_to_the_forget_gates_only():
    built = []
    for bias in (0, 1):
        config = load_config(CONFIGS / "3_lstm_decoder.yaml", [f"model.forget_bias={bias}"])
        torch.manual_seed(0)
        built.append(dict(build_model(config.model, V, FULL).named_parameters()))
    for name, before in built[0].items():
        added = built[1][name] - before
        if "bias_ih" in name:
            assert_close(added, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(256), 1e-6, name)
        else:
            assert not added.any(), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone=embedding"], "model.backbone=embedding needs another model.pooling"),
        (["model.backbone=transformer", "model.padding=packed"], "are settings of model.backbone=lstm"),
        (
            ["model.backbone=embedding", "model.pooling=mean", "model.forget_bias=1"],
            "are settings of model.backbone=lstm",
        ),
        (["model.pooling=median"], "one of first, last, mean, max, attention"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(CONFIGS / "1_lstm.yaml", overrides)
