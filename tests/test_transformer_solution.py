"""transformer_solution.py against PyTorch's own layers: whole outputs and every gradient, float64, prime sizes."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer
import transformer_solution
from helpers import assert_all_close, assert_close, gradients, ragged_mask, random_tensor, randomize
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


def compare(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, *arguments, keep=None) -> None:
    """Equal outputs and input gradients of two modules; `keep` (B, T) excludes the outputs on padding."""
    results = []
    for module in (ours, theirs):
        inputs = x.detach().clone().requires_grad_()
        outputs = module(inputs, *arguments)
        torch.manual_seed(7)
        weights = torch.randn(outputs.shape, dtype=outputs.dtype)
        if keep is not None:
            outputs = torch.where(keep[..., None], outputs, 0.0)
        (outputs * weights).sum().backward()
        results.append({"outputs": outputs, "inputs.grad": inputs.grad})
    assert_all_close(*results)


# ---------------------------------------------------------------- layer norm


@pytest.mark.parametrize("shape", [(B, T, D), (B, D), (D,), (2, 3, T, D)])
@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_layer_norm_outputs_and_gradients_equal_nn_layer_norm(shape, eps):
    torch.manual_seed(0)
    ours = randomize(LayerNorm(D, eps).double())
    theirs = nn.LayerNorm(D, eps).double()
    theirs.load_state_dict(ours.state_dict())
    compare(ours, theirs, random_tensor(*shape))
    assert_all_close(gradients(ours), gradients(theirs), where="gradient of ")


def test_layer_norm_is_accurate_for_a_large_mean():
    """In float32, against float64: the error of a variance E[x^2] - E[x]^2 would be larger than the variance."""
    torch.manual_seed(0)
    x = torch.randn(B, T, D) + 1e4
    exact = nn.LayerNorm(D).double()(x.double())
    assert_close(LayerNorm(D)(x).double(), exact.detach(), 1e-2)
    naive = (x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square() + 1e-5).rsqrt()
    assert not torch.allclose((x - x.mean(-1, keepdim=True)) * naive, exact.float(), atol=1e-2)


def test_layer_norm_reset_parameters_sets_ones_and_zeros():
    layer = randomize(LayerNorm(D))
    layer.reset_parameters()
    assert torch.equal(layer.weight, torch.ones(D))
    assert torch.equal(layer.bias, torch.zeros(D))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_keeps_half_precision_dtypes(dtype):
    torch.manual_seed(0)
    x = torch.randn(B, T, D).to(dtype)
    y = LayerNorm(D).to(dtype)(x)
    assert y.dtype == dtype
    assert_close(y.float(), nn.LayerNorm(D)(x.float()).detach(), 2e-2)


def test_layer_norm_calls_no_builtin_layer_norm(monkeypatch):
    forbid(
        monkeypatch, (torch, "layer_norm"), (F, "layer_norm"), (nn.LayerNorm, "forward"), (torch, "native_layer_norm")
    )
    LayerNorm(D)(torch.randn(B, T, D, requires_grad=True)).sum().backward()
    with pytest.raises(AssertionError, match="built-in layer"):
        nn.LayerNorm(D)(torch.randn(B, T, D))


def forbid(monkeypatch, *functions) -> None:
    """Make each `(owner, name)` raise when it is called."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a built-in layer was called")

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


def attention_gradients(ours: MultiHeadedAttention) -> dict[str, torch.Tensor]:
    """The scratch layer's gradients under the names of `nn.MultiheadAttention`."""
    grads = gradients(ours)
    stacked = {kind: torch.cat([grads[f"{w}.{kind}"] for w in ("w_q", "w_k", "w_v")]) for kind in ("weight", "bias")}
    in_proj = {f"in_proj_{kind}": gradient for kind, gradient in stacked.items()}
    return in_proj | {f"out_proj.{kind}": grads[f"w_o.{kind}"] for kind in stacked}


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` with the call of the scratch layer, a mask of tokens."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x, mask):
        padding = None if mask is None else ~mask
        return self.attention(x, x, x, key_padding_mask=padding, need_weights=False)[0]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_outputs_and_gradients_equal_nn_multihead_attention(masked):
    torch.manual_seed(0)
    ours = randomize(MultiHeadedAttention(HEAD, N).double())
    theirs = SelfAttention(reference_attention(ours))
    mask = ragged_mask(LENGTHS, T) if masked else None
    compare(ours, theirs, random_tensor(B, T, D), mask)
    assert_all_close(attention_gradients(ours), gradients(theirs.attention), where="gradient of ")


def test_attention_weights_equal_nn_multihead_attention():
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


def test_attention_of_a_slice_of_queries_equals_the_slice_of_all():
    torch.manual_seed(0)
    layer = MultiHeadedAttention(HEAD, N).double()
    q, k, v = (random_tensor(B, N, T, HEAD) for _ in range(3))
    mask = ragged_mask(LENGTHS, T)
    assert_close(layer.apply_attention(q[:, :, 2:4], k, v, mask), layer.apply_attention(q, k, v, mask)[:, 2:4])


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float64])
def test_mask_dtype_does_not_change_the_attention_output(dtype):
    torch.manual_seed(0)
    layer, x, mask = MultiHeadedAttention(HEAD, N), torch.randn(B, T, D), ragged_mask(LENGTHS, T)
    assert torch.equal(layer(x, mask.to(dtype)), layer(x, mask))
    assert not torch.allclose(layer(x, mask), layer(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fully_masked_row_has_finite_outputs_and_gradients(dtype):
    torch.manual_seed(0)
    layer = randomize(MultiHeadedAttention(HEAD, N)).to(dtype)
    x = random_tensor(B, T, D, dtype=dtype)
    outputs = layer(x, ragged_mask([0, T, 1, 0, 3], T))
    outputs.square().sum().backward()
    assert torch.equal(outputs[0], layer.w_o.bias.expand(T, D))
    for name, tensor in ({"outputs": outputs, "x.grad": x.grad} | gradients(layer)).items():
        assert tensor.isfinite().all(), name
    assert (x.grad[0] == 0).all()


def test_split_heads_layout_and_merge_heads_inverse():
    layer = MultiHeadedAttention(HEAD, N)
    for size in (HEAD, 1, 5):
        x = torch.arange(B * T * N * size).view(B, T, N * size)
        heads = layer.split_heads(x)
        assert heads.shape == (B, N, T, size)
        assert torch.equal(layer.merge_heads(heads), x)
        assert torch.equal(layer.split_heads(layer.merge_heads(heads)), heads)
    heads = layer.split_heads(torch.arange(B * T * D).view(B, T, D))
    assert heads[0, 1, 2, 3] == 2 * D + 1 * HEAD + 3


def test_attention_calls_no_builtin_attention_and_has_four_affine_maps(monkeypatch):
    forbid(monkeypatch, (nn.MultiheadAttention, "forward"), (F, "multi_head_attention_forward"))
    layer = MultiHeadedAttention(HEAD, N)
    layer(torch.randn(B, T, D), ragged_mask(LENGTHS, T)).sum().backward()
    assert sum(p.numel() for p in layer.parameters()) == 4 * (D**2 + D)
    with pytest.raises(AssertionError, match="built-in layer"):
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
    """`nn.TransformerEncoderLayer` with the call of the scratch block, a mask of tokens."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.layer = layer

    def forward(self, x, mask):
        return self.layer(x, src_key_padding_mask=~mask)


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_outputs_and_gradients_equal_nn_transformer_encoder_layer(kind):
    torch.manual_seed(0)
    ours = randomize(kind(D, HIDDEN, N).double())
    theirs = reference_block(ours)
    mask = ragged_mask(LENGTHS, T)
    compare(ours, MaskedBlock(theirs), random_tensor(B, T, D), mask, keep=mask)
    assert_all_close(block_gradients(ours), gradients(theirs), where="gradient of ")


def block_gradients(ours: nn.Module) -> dict[str, torch.Tensor]:
    """The scratch block's gradients under the names of `nn.TransformerEncoderLayer`."""
    pairs = {"linear.0": "linear1", "linear.3": "linear2", "layer_norm_1": "norm1", "layer_norm_2": "norm2"}
    grads = gradients(ours)
    renamed = {
        f"{theirs}.{kind}": grads[f"{mine}.{kind}"] for mine, theirs in pairs.items() for kind in ("weight", "bias")
    }
    attention = {f"self_attn.{name}": gradient for name, gradient in attention_gradients(ours.attn).items()}
    return renamed | attention


@pytest.mark.parametrize("kind", BLOCKS)
def test_block_applies_dropout_after_gelu_and_after_the_second_linear(kind):
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
def test_transformer_equals_nn_encoder_layers_over_cls_and_positions(block):
    model = make_transformer(block)
    layers = [reference_block(layer) for layer in model.transformer]
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    pooled = model(tokens, mask)
    torch.manual_seed(7)
    weights = torch.randn_like(pooled)
    (pooled * weights).sum().backward()
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    x = torch.cat([model.cls_token.expand(B, 1, D), model.embedding.weight[tokens]], dim=1)
    x = x + model.pos_embedding[:, : T + 1]
    grown = torch.cat([torch.ones(B, 1).bool(), mask], dim=1)
    for layer in layers:
        x = layer(x, src_key_padding_mask=~grown)
    expected = F.layer_norm(x[:, 0], (D,), model.mlp_head.weight, model.mlp_head.bias)
    assert pooled.shape == (B, D)
    assert_close(pooled, expected, name="pooled")
    (expected * weights).sum().backward()
    for name in ("cls_token", "pos_embedding", "mlp_head.weight", "mlp_head.bias"):
        assert_close(ours[name], model.get_parameter(name).grad, name=name)
    # Indexing has no padding entry as `nn.Embedding` has; no token here is padding.
    assert_close(ours["embedding.weight"], model.embedding.weight.grad, name="embedding.weight")
    for number, layer in enumerate(layers):
        name = f"transformer.{number}"
        assert_close(ours[f"{name}.linear.0.weight"], layer.linear1.weight.grad, name=f"{name}.linear.0.weight")
        in_proj = layer.self_attn.in_proj_weight.grad
        assert_close(ours[f"{name}.attn.w_v.weight"], in_proj[2 * D :], name=f"{name}.attn.w_v.weight")


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_transformer_output_ignores_padding_ids(block):
    model = make_transformer(block)
    mask = ragged_mask(LENGTHS, T)
    tokens = torch.randint(1, V, (B, T))
    others = torch.where(mask, tokens, torch.randint(1, V, (B, T)))
    assert not torch.equal(tokens, others)
    assert_close(model(others, mask), model(tokens, mask), 1e-12)
    assert not torch.allclose(model(others), model(tokens))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float32, torch.float64])
def test_transformer_accepts_masks_with_and_without_a_cls_column(dtype):
    model = make_transformer("prenorm")
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    expected = model(tokens, mask)
    assert not torch.allclose(model(tokens), expected)
    assert torch.equal(model(tokens, mask.to(dtype)), expected)
    with_cls = F.pad(mask, (1, 0), value=True)
    assert torch.equal(model(tokens, with_cls.to(dtype)), expected)
    # The first of the 1 + T columns is for CLS, so a mask of 1 + T tokens is not cut at its end.
    assert not torch.allclose(model(tokens, F.pad(mask, (0, 1))), expected)


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_transformer_output_ignores_padding_length(block):
    model = make_transformer(block)
    tokens, mask = torch.randint(1, V, (B, T)), ragged_mask(LENGTHS, T)
    assert_close(model(F.pad(tokens, (0, 9)), F.pad(mask, (0, 9))), model(tokens, mask), 1e-12)


@pytest.mark.parametrize("block", ["prenorm", "postnorm"])
def test_transformer_output_of_a_fully_masked_row_depends_on_cls_only(block):
    model = make_transformer(block)
    pooled = model(torch.randint(1, V, (1, T)), torch.zeros(1, T))
    assert_close(pooled, model(torch.zeros(1, 0).long()), 1e-12)


def test_every_transformer_argument_reaches_its_layers():
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


def test_transformer_has_256_positions_by_default():
    assert Transformer(V, D, HIDDEN, N).sequence_length == 256


def test_weights_saved_under_mlp_head_0_load_strictly():
    model, other = make_transformer("prenorm"), randomize(make_transformer("prenorm"))
    saved = {name.replace("mlp_head.", "mlp_head.0."): value for name, value in other.state_dict().items()}
    assert "mlp_head.0.weight" in saved
    model.load_state_dict(saved)
    assert_all_close(model.state_dict(), other.state_dict())
    assert "mlp_head.0.weight" in saved, "the caller's dictionary is unchanged"
    nested = nn.ModuleDict({"backbone": make_transformer("prenorm")})
    nested.load_state_dict({f"backbone.{name}": value for name, value in saved.items()})
    assert_all_close(nested["backbone"].state_dict(), other.state_dict())
    assert model.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"mlp_head.0.weight": torch.ones(D)}, r"Unexpected key\(s\) in state_dict: \"mlp_head.0.weight\""),
        ({"mlp_head.1.weight": torch.ones(D)}, r"Unexpected key\(s\) in state_dict: \"mlp_head.1.weight\""),
        ({"head.weight": torch.ones(D)}, r"Unexpected key\(s\) in state_dict: \"head.weight\""),
    ],
)
def test_other_unexpected_weights_are_refused(extra, message):
    model = make_transformer("prenorm")
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(model.state_dict() | extra)


def test_transformer_module_has_the_public_names_of_transformer_solution():
    classes = {
        name
        for name, value in vars(transformer_solution).items()
        if inspect.isclass(value) and value.__module__ == "transformer_solution" and not name.startswith("_")
    }
    assert {name for name, value in vars(transformer).items() if inspect.isclass(value)} == classes
    for name in classes:
        assert getattr(transformer, name) is getattr(transformer_solution, name)


def test_transformer_dropout_acts_on_the_sum_of_embedding_and_position():
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
        (
            lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B, T).long(), torch.ones(B, T + 2)),
            r"\(5, 11\) or \(B, 1 \+ T\) = \(5, 12\), got \(5, 13\)",
        ),
        (lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B, T)), "int64 or int32, got torch.float32"),
        (lambda: Transformer(V, D, HIDDEN, N)(torch.ones(B, T).bool()), "int64 or int32, got torch.bool"),
        (lambda: MultiHeadedAttention(HEAD, N, 0.3), "sequence_length must be an int or None, got 0.3"),
        (lambda: MultiHeadedAttention(HEAD, N, True), "sequence_length must be an int or None, got True"),
        (lambda: PreNormAttentionBlock(D, HIDDEN, N, 0.3), "sequence_length must be an int or None, got 0.3"),
        (lambda: PostNormAttentionBlock(D, HIDDEN, N, "256"), "sequence_length must be an int or None, got '256'"),
    ],
)
def test_invalid_arguments_raise_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_attention_scores_are_divided_by_the_root_of_the_head_size():
    layer = MultiHeadedAttention(HEAD, N)
    queries = torch.zeros(1, N, 1, HEAD)
    queries[..., 0] = math.sqrt(HEAD) * math.log(3)
    keys = torch.zeros(1, N, 2, HEAD)
    keys[:, :, 0, 0] = 1
    assert_close(layer.get_attention_weights(queries, keys), torch.tensor([0.75, 0.25]).expand(1, N, 1, 2), 1e-6)
