"""Transformer encoder, its pre-norm and post-norm blocks, multi-head attention and layer norm.

Experiments 5 to 7 run `Transformer` with this module's `LayerNorm` and blocks, and with
`scaled_dot_product_attention` in place of the eager attention (`attn_implementation="sdpa"`), except in training in
bfloat16 on a CPU, where it is slower. The attention of experiment 4 is `MultiHeadedAttention` with one head.

Shapes: `B` reviews, `T` tokens, `N` heads of size `d`, width `D = N d`, `E` embedding size; batch first.
A mask is 1 where there is a token and 0 on padding. Depends on torch alone.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

_IMPLEMENTATIONS = ("eager", "sdpa")


class Transformer(nn.Module):
    """Transformer encoder read at a learned CLS token (Vaswani et al. 2017; CLS as in Devlin et al. 2019).

    Departures from the first: learned positions, dropout on the sum of embedding and position only and
    inside the feed-forward networks, and a layer norm on the output.

    Args:
        vocabulary_size: entries of the embedding; entry 0 is padding.
        embed_dim: width, `E`.
        hidden_dim: width inside the feed-forward networks.
        num_heads: attention heads a block; divides `embed_dim`.
        num_layers: number of blocks.
        block: `"prenorm"` or `"postnorm"`.
        dropout: probability of zeroing a feature of the embedding and in the feed-forward networks.
        attn_implementation: of the attention, `"eager"` or `"sdpa"`.

    Raises:
        ValueError: an unknown block or implementation, no layers, or heads that don't divide the width.
    """

    def __init__(
        self,
        vocabulary_size: int = 30522,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        num_heads: int = 1,
        num_layers: int = 2,
        block: str = "prenorm",
        dropout: float = 0.3,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        if block not in _BLOCKS:
            raise ValueError(f"block must be one of {sorted(_BLOCKS)}, got {block!r}")
        self.sequence_length = 256
        positions = self.sequence_length + 1  # CLS
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=0)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, positions, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.ModuleList(
            _BLOCKS[block](embed_dim, hidden_dim, num_heads, positions, dropout, attn_implementation)
            for _ in range(num_layers)
        )
        self.mlp_head = LayerNorm(embed_dim)
        self.register_load_state_dict_pre_hook(_rename_mlp_head)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode a batch of token sequences and pool it at CLS.

        Args:
            x: (B, T), token ids, `T` at most `sequence_length`, 256.
            mask: (B, T) of any dtype, 1 = token; or (B, 1 + T), whose first column is for CLS.

        Returns:
            (B, E), the output at the CLS position after the final layer norm.

        Raises:
            ValueError: the input is not integers, the input or the mask has another shape, or there are more tokens
                than positions.
        """
        x, mask = self.embed(x, mask)
        *blocks, last = self.transformer
        for block in blocks:
            x = block(x, mask)
        # Only the first position of the last block, CLS, reaches the result.
        return self.mlp_head(last(x, mask, queries=1)[:, 0])

    def token_outputs(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The outputs at the tokens after the final layer norm, (B, T, E); arguments and errors as in `forward`."""
        x, mask = self.embed(x, mask)
        for block in self.transformer:
            x = block(x, mask)
        return self.mlp_head(x[:, 1:])

    def embed(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The input of the first block: CLS and the embedded tokens, plus positions, after dropout.

        Args:
            x: (B, T), token ids, `T` at most `sequence_length`, 256.
            mask: (B, T) of any dtype, 1 = token; or (B, 1 + T), whose first column is for CLS.

        Returns:
            (B, 1 + T, E), and the mask with a column for CLS, (B, 1 + T), or None without a mask.

        Raises:
            ValueError: as in `forward`.
        """
        _check_tokens(x, self.sequence_length)
        mask = None if mask is None else _add_cls_column(mask, x.shape)
        cls = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([cls, self.embedding(x)], dim=1)
        return self.dropout(x + self.pos_embedding[:, : x.shape[1]]), mask


class AttentionBlock(nn.Module):
    """The layers of both blocks: attention, feed-forward network, and a layer norm for each.

        ff(x) = dropout(dropout(gelu(x W_1^T + b_1)) W_2^T + b_2)

    Args:
        embed_dim: width of the block, `D`.
        hidden_dim: width inside the feed-forward network.
        num_heads: number of attention heads, `N`; divides `embed_dim`.
        sequence_length: longest sequence accepted; None accepts any.
        dropout: probability of zeroing a feature in the feed-forward network, in training.
        attn_implementation: of the attention, `"eager"` or `"sdpa"`.

    Raises:
        ValueError: the heads don't divide the width, an unknown implementation, or a `sequence_length` that is not
            an integer.
    """

    def __init__(
        self,
        embed_dim: int,
        hidden_dim: int,
        num_heads: int,
        sequence_length: int | None = None,
        dropout: float = 0.0,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.layer_norm_1 = LayerNorm(embed_dim)
        self.attn = MultiHeadedAttention(embed_dim // num_heads, num_heads, sequence_length, attn_implementation)
        self.layer_norm_2 = LayerNorm(embed_dim)
        self.linear = nn.Sequential(
            nn.Linear(embed_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, embed_dim),
            nn.Dropout(dropout),
        )


class PreNormAttentionBlock(AttentionBlock):
    """Normalise before each sublayer (Xiong et al. 2020, fig. 1b); arguments as in `AttentionBlock`.

    x = x + attn(norm_1(x))
    x = x + ff(norm_2(x))
    """

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or its first `queries` positions; `mask` is (B, T) of any dtype, 1 = token."""
        x = hidden_states[:, :queries] + self.attn(self.layer_norm_1(hidden_states), mask, queries)
        return x + self.linear(self.layer_norm_2(x))


class PostNormAttentionBlock(AttentionBlock):
    """Normalise after each residual sum (Xiong et al. 2020, fig. 1a); arguments as in `AttentionBlock`.

    x = norm_1(x + attn(x))
    x = norm_2(x + ff(x))
    """

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D), or its first `queries` positions; `mask` is (B, T) of any dtype, 1 = token."""
        x = self.layer_norm_1(hidden_states[:, :queries] + self.attn(hidden_states, mask, queries))
        return self.layer_norm_2(x + self.linear(x))


class MultiHeadedAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, sections 3.2.1 and 3.2.2).

        attention(Q, K, V) = softmax(Q K^T / sqrt(d)) V
        y = concat(head_1 ... head_N) W_o^T + b_o,    head_n = attention(x W_q^T + b_q, ...)_n

    Departure from the paper: the four projections have biases. Padding is masked before the softmax; the
    weights of a sequence without any token are all 0, so that its output is `b_o` and not NaN.

    Args:
        head_size: features of a head, `d`.
        num_heads: number of heads, `N`.
        sequence_length: longest sequence accepted, `T`; None accepts any.
        attn_implementation: `"eager"` computes the weights of `get_attention_weights`; `"sdpa"` gives equal outputs
            through `torch.nn.functional.scaled_dot_product_attention`, which need not store the weights; with
            gradients in bfloat16 on a CPU it is the eager one, which is faster there.
            For second derivatives use `"eager"`, or `"sdpa"` in `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`;
            PyTorch's other kernels refuse them.

    Raises:
        ValueError: an unknown implementation, or a `sequence_length` that is not an integer.
    """

    def __init__(
        self,
        head_size: int,
        num_heads: int,
        sequence_length: int | None = None,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        if attn_implementation not in _IMPLEMENTATIONS:
            raise ValueError(f"attn_implementation must be one of {_IMPLEMENTATIONS}, got {attn_implementation!r}")
        if sequence_length is not None and type(sequence_length) is not int:
            raise ValueError(f"sequence_length must be an int or None, got {sequence_length!r}")
        self.head_size = head_size
        self.num_heads = num_heads
        self.sequence_length = sequence_length
        self.attn_implementation = attn_implementation
        width = head_size * num_heads
        self.w_q = nn.Linear(width, width)
        self.w_k = nn.Linear(width, width)
        self.w_v = nn.Linear(width, width)
        self.w_o = nn.Linear(width, width)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Self-attention of a sequence.

        Args:
            hidden_states: (B, T, N d).
            mask: (B, T) of any dtype, 1 = token.
            queries: number of positions to compute, `S`, counted from the first; None for all.

        Returns:
            (B, T, N d), or (B, S, N d).

        Raises:
            ValueError: the input or the mask has another shape, or there are too many tokens.
        """
        width = self.head_size * self.num_heads
        if hidden_states.ndim != 3 or hidden_states.shape[-1] != width:
            raise ValueError(f"hidden_states must be (B, T, {width}), got {tuple(hidden_states.shape)}")
        if self.sequence_length is not None and hidden_states.shape[1] > self.sequence_length:
            raise ValueError(f"at most sequence_length={self.sequence_length} tokens fit, got {hidden_states.shape[1]}")
        if queries == 1:
            return self.w_o(_attend_first(self, hidden_states, mask))
        q = self.split_heads(self.w_q(hidden_states[:, :queries]))
        k = self.split_heads(self.w_k(hidden_states))
        v = self.split_heads(self.w_v(hidden_states))
        return self.w_o(self.apply_attention(q, k, v, mask))

    def get_attention_weights(self, queries: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Softmax of the scaled dot products over the keys.

        Args:
            queries: (B, N, S, d); `S` queries, usually `T`.
            keys: (B, N, T, d).
            mask: (B, T) of any dtype, 1 = token, over the keys.

        Returns:
            (B, N, S, T); a row sums to 1 and is 0 on padding, or is all 0 where there is no token.

        Raises:
            ValueError: the mask has another shape.
        """
        scores = (queries / math.sqrt(queries.shape[-1])) @ keys.transpose(-1, -2)
        return _masked_softmax(scores, None if mask is None else _key_mask(mask, keys))

    def apply_attention(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weighted sums of the values, heads merged.

        Args:
            queries: (B, N, S, d).
            keys: (B, N, T, d).
            values: (B, N, T, d).
            mask: (B, T) of any dtype, 1 = token, over the keys and values.

        Returns:
            (B, S, N d).

        Raises:
            ValueError: the mask has another shape.
        """
        if self.attn_implementation == "eager" or _is_sdpa_slow(queries):
            return self.merge_heads(self.get_attention_weights(queries, keys, mask) @ values)
        tokens = None if mask is None else _key_mask(mask, keys)
        return self.merge_heads(nn.functional.scaled_dot_product_attention(queries, keys, values, tokens))

    def split_heads(self, tensor: Tensor) -> Tensor:
        """(B, T, N d) -> (B, N, T, d), for any head size `d`; feature `n d + i` becomes feature `i` of head `n`.

        Raises:
            ValueError: the number of features is not a multiple of the number of heads.
        """
        if tensor.shape[-1] % self.num_heads:
            raise ValueError(f"the features must be a multiple of num_heads={self.num_heads}, got {tensor.shape[-1]}")
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge_heads(self, tensor: Tensor) -> Tensor:
        """(B, N, T, d) -> (B, T, N d), for any head size `d`: the inverse of `split_heads`."""
        return tensor.transpose(1, 2).flatten(2)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (Ba et al. 2016, eq. 4).

        y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

    The variance is biased (divided by `D`). It is computed from the centred values, which is accurate even if the
    mean is large. Half-precision inputs are normalised in float32, as `nn.LayerNorm` does.

    Args:
        hidden_size: size of the last dimension, `D`.
        eps: added to the variance, inside the root.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size))
        self.bias = nn.Parameter(torch.empty(hidden_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones and the bias to zeros."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward_reference(self, inputs: Tensor) -> Tensor:
        """The definition of `forward`, (..., D) -> (..., D), differentiated by autograd."""
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return self._normalise(x, self.weight, self.bias, self.eps).to(inputs.dtype)

    @staticmethod
    def _normalise(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """The formula of the class."""
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return centred * torch.rsqrt(variance + eps) * weight + bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise over the last dimension: equal to `forward_reference`, computed faster by `_LayerNormFunction`.

        Args:
            inputs: (..., D).

        Returns:
            (..., D), of the dtype of `inputs`.

        Raises:
            ValueError: the last dimension is not `D`.
        """
        if inputs.shape[-1] != self.hidden_size:
            raise ValueError(f"inputs must be (..., {self.hidden_size}), got {tuple(inputs.shape)}")
        if _is_transformed():
            return self.forward_reference(inputs)
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return _LayerNormFunction.apply(x, self.weight, self.bias, self.eps).to(inputs.dtype)


_BLOCKS = {"prenorm": PreNormAttentionBlock, "postnorm": PostNormAttentionBlock}


def _check_tokens(x: Tensor, max_tokens: int) -> None:
    """Refuse (`ValueError`) anything but token ids of shape (B, T) with `T` at most `max_tokens`."""
    if x.ndim != 2:
        raise ValueError(f"x must be token ids of shape (B, T), got {tuple(x.shape)}")
    if x.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"x must be token ids, int64 or int32, got {x.dtype}")
    if x.shape[1] > max_tokens:
        raise ValueError(f"there are positions for {max_tokens} tokens, got {x.shape[1]}")


def _add_cls_column(mask: Tensor, shape: torch.Size) -> Tensor:
    """A mask (B, 1 + T) from one of the tokens, `shape` = (B, T), or one that already has a column for CLS."""
    batch_size, num_tokens = shape
    if mask.shape == (batch_size, num_tokens + 1):
        return mask
    if mask.shape != shape:
        with_cls = (batch_size, num_tokens + 1)
        raise ValueError(f"mask must be (B, T) = {tuple(shape)} or (B, 1 + T) = {with_cls}, got {tuple(mask.shape)}")
    return torch.cat([mask.new_ones(batch_size, 1), mask], dim=1)


def _rename_mlp_head(module: Transformer, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Make weights loadable that were saved with the layer norm inside an `nn.Sequential`, as `mlp_head.0.weight`."""
    for name in ("weight", "bias"):
        indexed, plain = f"{prefix}mlp_head.0.{name}", f"{prefix}mlp_head.{name}"
        if indexed in state_dict and plain not in state_dict:
            state_dict[plain] = state_dict.pop(indexed)


def _is_transformed() -> bool:
    """Whether torch.compile or torch.func is active; both need the reference, which has no in-place operation."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _attend_first(attn: MultiHeadedAttention, hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """`attn.apply_attention` for the first query only, without the projection of every key and value.

    For a single query it is cheaper to sum over the sequence first and to project the sums:

        q . (W_k x_j + b_k)           = (W_k^T q) . x_j + q . b_k
        sum_j a_j (W_v x_j + b_v)     = W_v (sum_j a_j x_j) + b_v sum_j a_j

    Args:
        attn: the attention whose projections are used.
        hidden_states: (B, T, N d).
        mask: (B, T) of any dtype, 1 = token.

    Returns:
        (B, 1, N d).
    """
    x = hidden_states
    heads = (attn.num_heads, attn.head_size)
    q = attn.w_q(x[:, 0]).unflatten(-1, heads)  # (B, N, d)
    projected = torch.einsum("bnd,ndk->bnk", q, attn.w_k.weight.unflatten(0, heads))  # (B, N, N d)
    offsets = (q * attn.w_k.bias.unflatten(0, heads)).sum(dim=-1, keepdim=True)  # (B, N, 1)
    scores = (projected @ x.transpose(1, 2) + offsets) / math.sqrt(attn.head_size)  # (B, N, T)
    weights = _masked_softmax(scores, None if mask is None else _key_mask(mask, x[:, None])[:, 0])
    values = torch.einsum("bnk,ndk->bnd", weights @ x, attn.w_v.weight.unflatten(0, heads))
    values = values + weights.sum(dim=-1, keepdim=True) * attn.w_v.bias.unflatten(0, heads)
    return values.flatten(1)[:, None]


def _is_sdpa_slow(queries: Tensor) -> bool:
    """Whether PyTorch's kernel would be slower than the definition: with gradients, in bfloat16 on a CPU.

    On an Intel Xeon 63 ms against 44 forward and backward (B32, N4, T257, d64), and 75 against 19 (B64, T115).
    """
    return queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and torch.is_grad_enabled()


def _masked_softmax(scores: Tensor, tokens: Tensor | None) -> Tensor:
    """Softmax over the last dimension where `tokens` (booleans that broadcast) is true, 0 elsewhere.

    The scores of padding are set to the lowest finite number. With -inf, a row without any token would be NaN; so it
    has a softmax, which is then set to 0, and its gradients are 0. `scores` is overwritten, because a second tensor
    of its size (B, N, T, T) would nearly double the memory of the attention.
    """
    if tokens is None:
        return scores.softmax(dim=-1)
    lowest = torch.finfo(scores.dtype).min
    weights = scores.masked_fill_(~tokens, lowest).softmax(dim=-1)
    # To look costs nothing on a CPU; on a GPU the host would wait.
    can_look = tokens.device.type == "cpu" and not _is_transformed()
    return weights if can_look and tokens.any(dim=-1).all() else weights.masked_fill(~tokens, 0.0)


def _key_mask(mask: Tensor, keys: Tensor) -> Tensor:
    """Booleans (B, 1, 1, T) that broadcast over heads and queries, from a mask (B, T) of any dtype.

    Raises:
        ValueError: the mask's shape is not the keys' (B, T).
    """
    shape = (keys.shape[0], keys.shape[2])
    if mask.shape != shape:
        raise ValueError(f"mask must be (B, T) = {shape}, got {tuple(mask.shape)}")
    return (mask != 0)[:, None, None, :]


class _LayerNormFunction(torch.autograd.Function):
    """`LayerNorm.forward_reference` with a hand-written gradient; saves only the input, its mean and 1 / std.

    Write `r = 1 / sqrt(var(x) + eps)`, `c = x - mean(x)` and `g = dy * r`. With means over the last dimension,

        dx = g w - mean(g w) - c r^2 mean(c g w),    dweight = sum(c g),    dbias = sum(dy)

    Second derivatives (`create_graph=True`) are those of the reference. On a CPU the rows are processed in blocks
    that fit the cache, so each result is written to memory only once.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """inputs (..., D), weight (D), bias (D) -> (..., D)."""
        x = inputs.reshape(-1, inputs.shape[-1])
        y = torch.empty_like(x)
        mean, scale = x.new_empty(2, len(x), 1)
        scratch = x.new_empty(1, _block_rows(x), x.shape[1])
        for x_, mean_, scale_, y_ in _split_blocks(x, mean, scale, y):
            (c,) = scratch[:, : len(x_)]
            torch.mean(x_, dim=-1, keepdim=True, out=mean_)
            torch.sub(x_, mean_, out=c)
            torch.linalg.vector_norm(c, dim=-1, keepdim=True, out=scale_)
            scale_.square_().div_(x.shape[1]).add_(eps).rsqrt_()
            torch.addcmul(bias, c.mul_(scale_), weight, out=y_)
        ctx.save_for_backward(inputs, weight, bias, mean, scale)
        ctx.eps = eps
        return y.view_as(inputs)

    @staticmethod
    def backward(ctx, d_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of the four inputs of `forward`, from that of its output (..., D)."""
        inputs, weight, bias, mean, scale = ctx.saved_tensors
        # With create_graph=True the gradients are differentiated again, which in-place operations don't allow.
        if torch.is_grad_enabled():
            _, pullback = torch.func.vjp(partial(LayerNorm._normalise, eps=ctx.eps), inputs, weight, bias)
            return *pullback(d_outputs), None
        x = inputs.reshape(-1, inputs.shape[-1])
        dy = d_outputs.reshape(x.shape)
        dx = torch.empty_like(x)
        d_weight, d_bias = weight.new_zeros(2, len(weight))
        scratch = x.new_empty(3, _block_rows(x), x.shape[1])
        for x_, mean_, scale_, dy_, dx_ in _split_blocks(x, mean, scale, dy, dx):
            c, g, products = scratch[:, : len(x_)]
            torch.sub(x_, mean_, out=c)
            torch.mul(dy_, scale_, out=g)
            torch.mul(g, c, out=products)
            d_weight += products.sum(dim=0)
            d_bias += dy_.sum(dim=0)
            along = products.mul_(weight).mean(dim=-1, keepdim=True).mul_(scale_).mul_(scale_)
            g.mul_(weight)
            g.sub_(g.mean(dim=-1, keepdim=True))
            torch.addcmul(g, c, along, value=-1, out=dx_)
        return dx.view_as(d_outputs), d_weight, d_bias, None


# Elements of a block on a CPU: 4 MiB of float32, about the size of a second-level cache.
_BLOCK_ELEMENTS = 2**20


def _block_rows(x: Tensor) -> int:
    """Number of rows in a block of `x`, (rows, D): at most `_BLOCK_ELEMENTS` elements on a CPU, else all rows."""
    rows, width = x.shape
    return max(1, min(rows, _BLOCK_ELEMENTS // max(1, width)) if x.device.type == "cpu" else rows)


def _split_blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, `_block_rows` at a time."""
    return zip(*(tensor.split(_block_rows(tensors[0])) for tensor in tensors), strict=True)
