"""The assignment's name for `transformer_solution.py`: `from transformer import Transformer, MultiHeadedAttention`."""

from transformer_solution import (  # noqa: F401
    AttentionBlock,
    LayerNorm,
    MultiHeadedAttention,
    PostNormAttentionBlock,
    PreNormAttentionBlock,
    Transformer,
)
