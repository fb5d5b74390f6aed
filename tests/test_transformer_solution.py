"""transformer_solution.py against PyTorch's own layers: whole outputs and every gradient, float64, prime sizes."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, gradients, ragged_mask, random_tensor
from torch import nn

from transformer_solution import (
    LayerNorm,
    MultiHeadedAttention,
    PostNormAttentionBlock,
    PreNormAttentionBlock,
    Transformer,
)

B, T, N, HEAD, HIDDEN, V = 5, 11, 3, 7, 13, 17
D = N * HEAD
LENGTHS = [T, 1, 4, 2, 7]
BLOCKS = [PreNormAttentionBlock, PostNormAttentionBlock]


def randomize(module: nn.Module) -> nn.Module:
    """Every parameter drawn anew: biases and norms at their initial 0 and 1 would hide mistakes."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def compare(ours: nn.Module, theirs: nn.Module, inputs: tuple, reference_inputs: tuple, keep=None) -> None:
    """Equal outputs and input gradients of two modules; `keep` (B, T) leaves padding's own outputs aside."""
    found = []
    for module, arguments in ((ours, inputs), (theirs, reference_inputs)):
        outputs = module(*arguments)
        torch.manual_seed(7)
        weights = torch.randn(outputs.shape, dtype=outputs.dtype)
        if keep is not None:
            outputs = torch.where(keep[..., None], outputs, 0.0)
        (outputs * weights).sum().backward()
        found.append((outputs, arguments[0].grad))
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


# ---------------------------------------------------------------- layer norm


@pytest.mark.parametrize("shape", [(B, T, D), (B, D), (D,), (2, 3, T, D)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_is_nn_layer_norm(shape, eps):
    torch.manual_seed(0)
    ours = randomize(LayerNorm(D, eps).double())
    theirs = nn.LayerNorm(D, eps).double()
    theirs.load_state_dict(ours.state_dict())
    x = random_tensor(*shape)
    compare(ours, theirs, (x,), (x.detach().clone().requires_grad_(),))
    expected = gradients(theirs)
    for name, gradient in gradients(ours).items():
        assert_close(gradient, expected[name])


def test_layer_norm_is_right_where_the_mean_is_large():
    """In float32, against float64: a variance of E[x^2] - E[x]^2 would be off by more than its own size."""
    torch.manual_seed(0)
    x = torch.randn(B, T, D) + 1e4
    exact = nn.LayerNorm(D).double()(x.double())
    assert_close(LayerNorm(D)(x).double(), exact.detach(), 1e-2)
    naive = (x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square() + 1e-5).rsqrt()
    assert not torch.allclose((x - x.mean(-1, keepdim=True)) * naive, exact.float(), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_of_half_precision_keeps_the_type(dtype):
    torch.manual_seed(0)
    x = torch.randn(B, T, D).to(dtype)
    y = LayerNorm(D).to(dtype)(x)
    assert y.dtype == dtype
    assert_close(y.float(), nn.LayerNorm(D)(x.float()).detach(), 2e-2)


def test_layer_norm_calls_no_ready_made_one(monkeypatch):
    forbid(
        monkeypatch, (torch, "layer_norm"), (F, "layer_norm"), (nn.LayerNorm, "forward"), (torch, "native_layer_norm")
    )
    LayerNorm(D)(torch.randn(B, T, D, requires_grad=True)).sum().backward()
    with pytest.raises(AssertionError, match="ready-made"):
        nn.LayerNorm(D)(torch.randn(B, T, D))


def forbid(monkeypatch, *functions) -> None:
    """Make each `(owner, name)` raise when it is called."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a ready-made layer was called")

    for owner, name in functions:
        monkeypatch.setattr(owner, name, forbidden)


# ---------------------------------------------------------------- attention


def reference_attention(ours: MultiHeadedAttention) -> nn.MultiheadAttention:
    """`nn.MultiheadAttention` with the weights of the scratch layer."""
    theirs = nn.MultiheadAttention(D, N, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.w_q.weight, ours.w_k.weight, ours.w_v.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.w_q.bias, ours.w_k.bias, ours.w_v.bias]))
    theirs.out_proj.load_state_dict(ours.w_o.state_dict())
    return theirs


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` called as ours is, with a mask of tokens."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x, mask):
        padding = None if mask is None else ~mask
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_nn_multihead_attention(masked):
    torch.manual_seed(0)
    ours = randomize(MultiHeadedAttention(HEAD, N).double())
    theirs = SelfAttention(reference_attention(ours))
    mask = ragged_mask(LENGTHS, T) if masked else None
    x = random_tensor(B, T, D)
    compare(ours, theirs, (x, mask), (x.detach().clone().requires_grad_(), mask))
    reference = gradients(theirs.attention)
    for name, part in (("weight", "in_proj_weight"), ("bias", "in_proj_bias")):
        stacked = torch.cat([getattr(getattr(ours, w), name).grad for w in ("w_q", "w_k", "w_v")])
        assert_close(stacked, reference[part])
        assert_close(getattr(ours.w_o, name).grad, reference[f"out_proj.{name}"])


def test_attention_weights_are_those_of_nn_multihead_attention():
    torch.manual_seed(0)
    ours = randomize(MultiHeadedAttention(HEAD, N).double())
    x, mask = random_tensor(B, T, D), ragged_mask(LENGTHS, T)
    weights = ours.get_attention_weights(ours.split_heads(ours.w_q(x)), ours.split_heads(ours.w_k(x)), mask)
    _, expected = reference_attention(ours)(x, x, x, key_padding_mask=~mask, average_attn_weights=False)
    assert weights.shape == (B, N, T, T)
    assert_close(weights, expected)


def test_attention_rows_sum_to_one_and_are_zero_on_padding():
    torch.manual_seed(0)
    mask = ragged_mask([T, 1, 4, 2, 0], T)
    weights = MultiHeadedAttention(HEAD, N).get_attention_weights(
        100 * torch.randn(B, N, T, HEAD), torch.randn(B, N, T, HEAD), mask
    )
    assert (weights[~mask[:, None, None].expand_as(weights)] == 0).all()
    assert_close(weights[:4].sum(-1), torch.ones(4, N, T), 1e-6)
    assert (weights[4] == 0).all()


def test_fewer_queries_than_keys_give_the_same_rows():
    torch.manual_seed(0)
    layer = MultiHeadedAttention(HEAD, N).double()
    q, k, v = (random_tensor(B, N, T, HEAD) for _ in range(3))
    mask = ragged_mask(LENGTHS, T)
    assert_close(layer.apply_attention(q[:, :, 2:4], k, v, mask), layer.apply_attention(q, k, v, mask)[:, 2:4])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float64])
def test_a_mask_may_be_of_any_type(dtype):
    torch.manual_seed(0)
    layer, x, mask = MultiHeadedAttention(HEAD, N), torch.randn(B, T, D), ragged_mask(LENGTHS, T)
    assert torch.equal(layer(x, mask.to(dtype)), layer(x, mask))
    assert not torch.allclose(layer(x, mask), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_fully_masked_row_has_finite_outputs_and_gradients(dtype):
    torch.manual_seed(0)
    layer = randomize(MultiHeadedAttention(HEAD, N)).to(dtype)
    x = random_tensor(B, T, D, dtype=dtype)
    outputs = layer(x, ragged_mask([0, T, 1, 0, 3], T))
    outputs.square().sum().backward()
    assert torch.equal(outputs[0], layer.w_o.bias.expand(T, D))
    for tensor in (outputs, x.grad, *gradients(layer).values()):
        assert tensor.isfinite().all()
    assert (x.grad[0] == 0).all()


def test_split_heads_puts_features_where_the_assignment_says_and_merge_heads_undoes_it():
    layer = MultiHeadedAttention(HEAD, N)
    for size in (HEAD, 1, 5):
        x = torch.arange(B * T * N * size).view(B, T, N * size)
        heads = layer.split_heads(x)
        assert heads.shape == (B, N, T, size)
        assert torch.equal(layer.merge_heads(heads), x)
        assert torch.equal(layer.split_heads(layer.merge_heads(heads)), heads)
    heads = layer.split_heads(torch.arange(B * T * D).view(B, T, D))
    assert heads[0, 1, 2, 3] == 2 * D + 1 * HEAD + 3


def test_attention_calls_no_ready_made_one_and_has_the_parameters_of_four_affine_maps(monkeypatch):
    forbid(monkeypatch, (nn.MultiheadAttention, "forward"), (F, "multi_head_attention_forward"))
    layer = MultiHeadedAttention(HEAD, N)
    layer(torch.randn(B, T, D), ragged_mask(LENGTHS, T)).sum().backward()
    assert sum(p.numel() for p in layer.parameters()) == 4 * (D**2 + D)
    with pytest.raises(AssertionError, match="ready-made"):
        nn.MultiheadAttention(D, N)(*[torch.randn(B, T, D)] * 3)


# ---------------------------------------------------------------- blocks


def reference_block(ours: nn.Module) -> nn.TransformerEncoderLayer:
    """`nn.TransformerEncoderLayer` with the weights of the scratch block."""
    theirs = nn.TransformerEncoderLayer(
        D,
        N,
        dim_feedforward=HIDDEN,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=isinstance(ours, PreNormAttentionBlock),
    ).double()
    theirs.self_attn.load_state_dict(reference_attention(ours.attn).state_dict())
    theirs.linear1.load_state_dict(ours.linear[0].state_dict())
    theirs.linear2.load_state_dict(ours.linear[3].state_dict())
    theirs.norm1.load_state_dict(ours.layer_norm_1.state_dict())
    theirs.norm2.load_state_dict(ours.layer_norm_2.state_dict())
    return theirs


class MaskedBlock(nn.Module):
    """`nn.TransformerEncoderLayer` called as ours is, with a mask of tokens."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x, mask):
        return self.layer(x, src_key_padding_mask=~mask)


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_nn_transformer_encoder_layer(kind):
    torch.manual_seed(0)
    ours = randomize(kind(D, HIDDEN, N).double())
    theirs = reference_block(ours)
    mask = ragged_mask(LENGTHS, T)
    x = random_tensor(B, T, D)
    compare(ours, MaskedBlock(theirs), (x, mask), (x.detach().clone().requires_grad_(), mask), keep=mask)
    reference = gradients(theirs)
    pairs = {"linear.0": "linear1", "linear.3": "linear2", "layer_norm_1": "norm1", "layer_norm_2": "norm2"}
    pairs |= {"attn.w_o": "self_attn.out_proj"}
    found = gradients(ours)
    for mine, other in pairs.items():
        for kind_of in ("weight", "bias"):
            assert_close(found[f"{mine}.{kind_of}"], reference[f"{other}.{kind_of}"])
    for kind_of in ("weight", "bias"):
        stacked = torch.cat([found[f"attn.{w}.{kind_of}"] for w in ("w_q", "w_k", "w_v")])
        assert_close(stacked, reference[f"self_attn.in_proj_{kind_of}"])


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_drops_features_after_both_feed_forward_layers(kind):
    block = kind(D, HIDDEN, N, dropout=0.25)
    assert [(type(m), getattr(m, "p", None)) for m in block.linear] == [
        (nn.Linear, None),
        (nn.GELU, None),
        (nn.Dropout, 0.25),
        (nn.Linear, None),
        (nn.Dropout, 0.25),
    ]


# ---------------------------------------------------------------- transformer


def make_transformer(block: str, **settings) -> Transformer:
    torch.manual_seed(0)
    sizes = {"embed_dim": D, "hidden_dim": HIDDEN, "num_heads": N, "num_layers": 3, "dropout": 0.0}
    return Transformer(V, block=block, **(sizes | settings)).double()


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_transformer_is_nn_transformer_encoder_over_cls_and_positions(block):
    model = make_transformer(block)
    layers = [reference_block(layer) for layer in model.transformer]
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    summary = model(tokens, mask)
    torch.manual_seed(7)
    weights = torch.randn_like(summary)
    (summary * weights).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    x = torch.cat([model.cls_token.expand(B, 1, D), model.embedding.weight[tokens]], dim=1)
    x = x + model.pos_embedding[:, : T + 1]
    grown = torch.cat([torch.ones(B, 1).bool(), mask], dim=1)
    for layer in layers:
        x = layer(x, src_key_padding_mask=~grown)
    expected = F.layer_norm(x[:, 0], (D,), model.mlp_head.weight, model.mlp_head.bias)
    assert summary.shape == (B, D)
    assert_close(summary, expected)
    (expected * weights).sum().backward()
    for name in ("cls_token", "pos_embedding", "mlp_head.weight", "mlp_head.bias"):
        assert_close(ours[name], model.get_parameter(name).grad)
    # The hand-wired look-up knows no padding entry; no token here is one.
    assert_close(ours["embedding.weight"], model.embedding.weight.grad)
    for number, layer in enumerate(layers):
        assert_close(ours[f"transformer.{number}.linear.0.weight"], layer.linear1.weight.grad)
        assert_close(ours[f"transformer.{number}.attn.w_v.weight"], layer.self_attn.in_proj_weight.grad[2 * D :])


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_what_stands_on_padding_changes_no_summary(block):
    model = make_transformer(block)
    mask = ragged_mask(LENGTHS, T)
    tokens = torch.randint(1, V, (B, T))
    others = torch.where(mask, tokens, torch.randint(1, V, (B, T)))
    assert not torch.equal(tokens, others)
    assert_close(model(others, mask), model(tokens, mask), 1e-12)
    assert not torch.allclose(model(others), model(tokens))


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_longer_padding_changes_no_summary(block):
    model = make_transformer(block)
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    assert_close(model(F.pad(tokens, (0, 9)), F.pad(mask, (0, 9))), model(tokens, mask), 1e-12)


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_a_review_without_tokens_is_read_from_cls_alone(block):
    model = make_transformer(block)
    summary = model(torch.randint(1, V, (1, T)), torch.zeros(1, T))
    assert_close(summary, model(torch.zeros(1, 0).long()), 1e-12)


def test_every_setting_of_the_transformer_reaches_its_layers():
    model = Transformer(V, embed_dim=D, hidden_dim=HIDDEN, num_heads=N, num_layers=4, block="postnorm", dropout=0.125)
    assert model.embedding.weight.shape == (V, D)
    assert model.embedding.padding_idx == 0
    assert model.cls_token.shape == (1, 1, D)
    assert model.pos_embedding.shape == (1, 257, D)
    assert model.dropout.p == 0.125
    assert isinstance(model.transformer, nn.ModuleList)
    assert [type(block) for block in model.transformer] == [PostNormAttentionBlock] * 4
    for block in model.transformer:
        assert (block.attn.num_heads, block.attn.head_size) == (N, HEAD)
        assert block.linear[0].weight.shape == (HIDDEN, D)
        assert block.linear[2].p == block.linear[4].p == 0.125
    assert isinstance(model.mlp_head, LayerNorm)
    assert [type(block) for block in Transformer(V, D, HIDDEN, N, 1).transformer] == [PreNormAttentionBlock]


def test_dropout_acts_on_the_sum_of_embedding_and_position():
    model = make_transformer("prenorm", dropout=0.25).train()
    tokens = torch.randint(1, V, (64, T))
    x, _ = model.embed(tokens)
    assert (x == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    full, _ = model.eval().embed(tokens)
    assert_close(x[x != 0], full[x != 0] / 0.75)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LayerNorm(D)(torch.zeros(B, D + 1)), r"\(\.\.\., 21\), got \(5, 22\)"),
        (lambda: MultiHeadedAttention(HEAD, N)(torch.zeros(B, T, D + 1)), r"\(B, T, 21\), got \(5, 11, 22\)"),
        (
            lambda: MultiHeadedAttention(HEAD, N)(torch.zeros(B, T, D), torch.ones(B, T + 1)),
            r"\(5, 11\), got \(5, 12\)",
        ),
        (lambda: MultiHeadedAttention(HEAD, N, 4)(torch.zeros(B, T, D)), "sequence_length=4 tokens fit, got 11"),
        (lambda: MultiHeadedAttention(HEAD, N).split_heads(torch.zeros(B, T, 20)), "num_heads=3, got 20"),
        (lambda: PreNormAttentionBlock(20, HIDDEN, N), "num_heads=3 must divide embed_dim=20"),
        (lambda: PreNormAttentionBlock(D, HIDDEN, N, 4)(torch.zeros(B, T, D)), "sequence_length=4 tokens fit"),
        (lambda: Transformer(V, 20, HIDDEN, N), "num_heads=3 must divide embed_dim=20"),
        (lambda: Transformer(V, D, HIDDEN, N, block="midnorm"), r"\['postnorm', 'prenorm'\], got 'midnorm'"),
        (lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B, 257).long()), "positions for 256 tokens, got 257"),
        (lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B).long()), r"\(B, T\), got \(5,\)"),
        (lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B, T).long(), torch.ones(B, T + 1)), r"got \(5, 12\)"),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_scale_is_the_root_of_the_head_size():
    layer = MultiHeadedAttention(HEAD, N)
    queries = torch.zeros(1, N, 1, HEAD)
    queries[..., 0] = math.sqrt(HEAD) * math.log(3)
    keys = torch.zeros(1, N, 2, HEAD)
    keys[:, :, 0, 0] = 1
    assert_close(layer.get_attention_weights(queries, keys), torch.tensor([0.75, 0.25]).expand(1, N, 1, 2), 1e-6)
