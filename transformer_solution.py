"""Layer norm, multi-head attention, pre-norm and post-norm blocks, and a Transformer encoder.

Shapes: `B` reviews, `T` tokens, `N` heads of size `d`, width `D = N d`, `E` embedding size; batch first.
A mask is 1 where there is a token and 0 on padding. Depends on torch alone.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

MAX_TOKENS = 256
# Numbers of a layer norm's block on a CPU: 4 MiB of float32, near the size of a second-level cache.
BLOCK = 2**20
IMPLEMENTATIONS = ("eager", "sdpa")


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension (Ba et al. 2016, eq. 4).

        y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias

    The variance is biased (divided by `D`) and taken of the centred values, which stays exact where the
    mean is large; half-precision inputs are normalised in float32, as `nn.LayerNorm` does.

    Args:
        hidden_size: size of the last dimension, `D`.
        eps: added to the variance, inside the root.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalise each vector of `inputs`, (..., D) -> (..., D).

        Raises:
            ValueError: the last dimension is not `D`.
        """
        if inputs.shape[-1] != self.hidden_size:
            raise ValueError(f"inputs must be (..., {self.hidden_size}), got {tuple(inputs.shape)}")
        if torch.compiler.is_compiling():
            return self.forward_by_definition(inputs)
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return LayerNormFunction.apply(x, self.weight, self.bias, self.eps).to(inputs.dtype)

    def forward_by_definition(self, inputs: Tensor) -> Tensor:
        """The definition of `forward`, differentiated by autograd. Slower, and equal."""
        x = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        centred = x - x.mean(dim=-1, keepdim=True)
        variance = centred.square().mean(dim=-1, keepdim=True)
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias).to(inputs.dtype)


class LayerNormFunction(torch.autograd.Function):
    """`LayerNorm.forward_by_definition` and its gradient by hand; keeps the input, its mean and 1 / std only.

    With `r = 1 / sqrt(var(x) + eps)`, `c = x - mean(x)` and `g = dy * r`, means over the last dimension:

        dx = g w - mean(g w) - c r^2 mean(c g w),    dweight = sum(c g),    dbias = sum(dy)

    On a CPU the vectors are worked on in blocks that stay in the cache, each written to memory once.
    """

    @staticmethod
    def forward(ctx, inputs: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """inputs (..., D), weight (D), bias (D) -> (..., D)."""
        x = inputs.reshape(-1, inputs.shape[-1])
        y = torch.empty_like(x)
        mean, scale = x.new_empty(2, len(x), 1)
        scratch = x.new_empty(1, block_rows(x), x.shape[1])
        for x_, mean_, scale_, y_ in blocks_of(x, mean, scale, y):
            (c,) = scratch[:, : len(x_)]
            torch.mean(x_, dim=-1, keepdim=True, out=mean_)
            torch.sub(x_, mean_, out=c)
            torch.linalg.vector_norm(c, dim=-1, keepdim=True, out=scale_)
            scale_.square_().div_(x.shape[1]).add_(eps).rsqrt_()
            torch.addcmul(bias, c.mul_(scale_), weight, out=y_)
        ctx.save_for_backward(x, mean, scale, weight)
        return y.view_as(inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, scale, weight = ctx.saved_tensors
        dy = d_outputs.reshape(x.shape)
        dx = torch.empty_like(x)
        d_weight, d_bias = weight.new_zeros(2, len(weight))
        scratch = x.new_empty(3, block_rows(x), x.shape[1])
        for x_, mean_, scale_, dy_, dx_ in blocks_of(x, mean, scale, dy, dx):
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


def block_rows(x: Tensor) -> int:
    """Rows of a block of `x`, (rows, D): about a million numbers on a CPU, else all."""
    rows, width = x.shape
    return max(1, min(rows, BLOCK // max(1, width)) if x.device.type == "cpu" else rows)


def blocks_of(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each tensor, `block_rows` at a time."""
    return zip(*(tensor.split(block_rows(tensors[0])) for tensor in tensors), strict=True)


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
            through `torch.nn.functional.scaled_dot_product_attention`, which need not keep them.

    Raises:
        ValueError: an unknown implementation.
    """

    def __init__(
        self,
        head_size: int,
        num_heads: int,
        sequence_length: int | None = None,
        attn_implementation: str = "eager",
    ):
        super().__init__()
        if attn_implementation not in IMPLEMENTATIONS:
            raise ValueError(f"attn_implementation must be one of {IMPLEMENTATIONS}, got {attn_implementation!r}")
        self.head_size = head_size
        self.num_heads = num_heads
        self.sequence_length = sequence_length
        self.attn_implementation = attn_implementation
        width = head_size * num_heads
        self.w_q = nn.Linear(width, width)
        self.w_k = nn.Linear(width, width)
        self.w_v = nn.Linear(width, width)
        self.w_o = nn.Linear(width, width)

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
        return masked_softmax(scores, None if mask is None else key_mask(mask, keys))

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
        if self.attn_implementation == "eager":
            return self.merge_heads(self.get_attention_weights(queries, keys, mask) @ values)
        tokens = None if mask is None else key_mask(mask, keys)
        return self.merge_heads(nn.functional.scaled_dot_product_attention(queries, keys, values, tokens))

    def split_heads(self, tensor: Tensor) -> Tensor:
        """(B, T, N d) -> (B, N, T, d), for any head size `d`; feature `n d + i` becomes `i` of head `n`.

        Raises:
            ValueError: the heads don't divide the features.
        """
        if tensor.shape[-1] % self.num_heads:
            raise ValueError(f"the features must be a multiple of num_heads={self.num_heads}, got {tensor.shape[-1]}")
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge_heads(self, tensor: Tensor) -> Tensor:
        """(B, N, T, d) -> (B, T, N d), for any head size `d`: the inverse of `split_heads`."""
        return tensor.transpose(1, 2).flatten(2)

    def forward(self, hidden_states: Tensor, mask: Tensor | None = None, queries: int | None = None) -> Tensor:
        """Self-attention of a sequence.

        Args:
            hidden_states: (B, T, N d).
            mask: (B, T) of any dtype, 1 = token.
            queries: compute the first so many positions only, `S`; None for all.

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
            return self.w_o(self.attend_first(hidden_states, mask))
        q = self.split_heads(self.w_q(hidden_states[:, :queries]))
        k = self.split_heads(self.w_k(hidden_states))
        v = self.split_heads(self.w_v(hidden_states))
        return self.w_o(self.apply_attention(q, k, v, mask))

    def attend_first(self, hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        """`apply_attention` for the first position, without projecting every key and value.

        A single query makes it cheaper to move the projections past the sums over the sequence:

            q . (W_k x_j + b_k)           = (W_k^T q) . x_j + q . b_k
            sum_j a_j (W_v x_j + b_v)     = W_v (sum_j a_j x_j) + b_v sum_j a_j

        Args:
            hidden_states: (B, T, N d).
            mask: (B, T) of any dtype, 1 = token.

        Returns:
            (B, 1, N d).
        """
        x = hidden_states
        heads = (self.num_heads, self.head_size)
        q = self.w_q(x[:, 0]).unflatten(-1, heads)  # (B, N, d)
        probes = torch.einsum("bnd,ndk->bnk", q, self.w_k.weight.unflatten(0, heads))  # (B, N, N d)
        offsets = (q * self.w_k.bias.unflatten(0, heads)).sum(dim=-1, keepdim=True)  # (B, N, 1)
        scores = (probes @ x.transpose(1, 2) + offsets) / math.sqrt(self.head_size)  # (B, N, T)
        weights = masked_softmax(scores, None if mask is None else key_mask(mask, x[:, None])[:, 0])
        values = torch.einsum("bnk,ndk->bnd", weights @ x, self.w_v.weight.unflatten(0, heads))
        values = values + weights.sum(dim=-1, keepdim=True) * self.w_v.bias.unflatten(0, heads)
        return values.flatten(1)[:, None]


class AttentionBlock(nn.Module):
    """What both blocks are made of: attention, feed-forward network, and a layer norm for each.

        ff(x) = dropout(dropout(gelu(x W_1^T + b_1)) W_2^T + b_2)

    Args:
        embed_dim: width of the block, `D`.
        hidden_dim: width inside the feed-forward network.
        num_heads: number of attention heads, `N`; divides `embed_dim`.
        sequence_length: longest sequence accepted; None accepts any.
        dropout: probability of zeroing a feature in the feed-forward network, in training.
        attn_implementation: of the attention, `"eager"` or `"sdpa"`.

    Raises:
        ValueError: the heads don't divide the width, or an unknown implementation.
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


BLOCKS = {"prenorm": PreNormAttentionBlock, "postnorm": PostNormAttentionBlock}


class Transformer(nn.Module):
    """Transformer encoder read at a learned CLS token (Vaswani et al. 2017; CLS as in Devlin et al. 2019).

    Departures from the first: learned positions, dropout on the sum of embedding and position only and
    inside the feed-forward networks, and a layer norm on the summary.

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
        if block not in BLOCKS:
            raise ValueError(f"block must be one of {sorted(BLOCKS)}, got {block!r}")
        positions = MAX_TOKENS + 1
        self.embedding = nn.Embedding(vocabulary_size, embed_dim, padding_idx=0)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, positions, embed_dim))
        self.dropout = nn.Dropout(dropout)
        self.transformer = nn.ModuleList(
            BLOCKS[block](embed_dim, hidden_dim, num_heads, positions, dropout, attn_implementation)
            for _ in range(num_layers)
        )
        self.mlp_head = LayerNorm(embed_dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summarise a batch of token sequences.

        Args:
            x: (B, T), token ids, `T` at most 256.
            mask: (B, T) of any dtype, 1 = token. CLS is never masked.

        Returns:
            (B, E), the normalised CLS position.

        Raises:
            ValueError: the input or the mask has another shape, or there are more tokens than positions.
        """
        x, mask = self.embed(x, mask)
        *blocks, last = self.transformer
        for block in blocks:
            x = block(x, mask)
        # The summary depends on the last block's first position alone.
        return self.mlp_head(last(x, mask, queries=1)[:, 0])

    def embed(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """CLS and the embedded tokens with their positions, (B, 1 + T, E), and the mask grown by one."""
        if x.ndim != 2:
            raise ValueError(f"x must be token ids of shape (B, T), got {tuple(x.shape)}")
        if x.shape[1] > MAX_TOKENS:
            raise ValueError(f"there are positions for {MAX_TOKENS} tokens, got {x.shape[1]}")
        if mask is not None:
            if mask.shape != x.shape:
                raise ValueError(f"mask must be (B, T) = {tuple(x.shape)}, got {tuple(mask.shape)}")
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        cls = self.cls_token.expand(len(x), -1, -1)
        x = torch.cat([cls, self.embedding(x)], dim=1)
        return self.dropout(x + self.pos_embedding[:, : x.shape[1]]), mask


def masked_softmax(scores: Tensor, tokens: Tensor | None) -> Tensor:
    """Softmax over the last dimension where `tokens` (booleans that broadcast) is true, 0 elsewhere.

    Filled with the lowest number and not with -inf, a row without any token still has a softmax, which is then
    set to 0; so are its gradients. `scores` are overwritten: (B, N, T, T) is most of what attention needs.
    """
    if tokens is None:
        return scores.softmax(dim=-1)
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill_(~tokens, lowest).softmax(dim=-1).masked_fill(~tokens, 0.0)


def key_mask(mask: Tensor, keys: Tensor) -> Tensor:
    """Booleans (B, 1, 1, T) that broadcast over heads and queries, from a mask (B, T) of any dtype.

    Raises:
        ValueError: the mask's shape is not the keys' (B, T).
    """
    shape = (keys.shape[0], keys.shape[2])
    if mask.shape != shape:
        raise ValueError(f"mask must be (B, T) = {shape}, got {tuple(mask.shape)}")
    return (mask != 0)[:, None, None, :]
