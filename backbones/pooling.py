"""One vector a review from the outputs at its tokens."""

import torch
from torch import Tensor, nn

KINDS = ("first", "last", "mean", "max", "attention")


class Pooling(nn.Module):
    """Pool the outputs at a review's tokens.

    first: that of the first token. last: that of the last token. mean, max: over the tokens, by feature. attention: a
    weighted mean, the weights a softmax over the tokens of a learned linear score (as in Yang et al. 2016, section 2.2,
    without their hidden layer).

    Args:
        kind: one of the five.
        size: features of an output.
        num_forward: of a bidirectional encoder, the features of the direction that ends at the last token; the
            others end at the first, and are their direction's last there. None: all end at the last token.

    Raises:
        ValueError: an unknown kind.
    """

    def __init__(self, kind: str, size: int, num_forward: int | None = None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"pooling must be one of {KINDS}, got {kind!r}")
        self.kind = kind
        self.num_forward = size if num_forward is None else num_forward
        self.score = nn.Linear(size, 1) if kind == "attention" else None

    def forward(self, outputs: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) and a mask (B, T), 1 = token, padded on the right -> (B, D)."""
        if self.kind == "first":
            return outputs[:, 0]
        tokens = mask != 0
        if self.kind == "last":
            rows = torch.arange(len(outputs), device=outputs.device)
            ends = outputs[rows, tokens.sum(dim=1) - 1]
            return torch.cat([ends[:, : self.num_forward], outputs[:, 0, self.num_forward :]], dim=-1)
        if self.kind == "max":
            return outputs.masked_fill(~tokens[..., None], torch.finfo(outputs.dtype).min).amax(dim=1)
        if self.kind == "mean":
            weights = tokens.to(outputs.dtype) / tokens.sum(dim=1, keepdim=True)
        else:
            scores = self.score(outputs)[..., 0].float()
            weights = scores.masked_fill(~tokens, torch.finfo(scores.dtype).min).softmax(dim=1)
        return (weights.to(outputs.dtype)[:, None] @ outputs)[:, 0]
