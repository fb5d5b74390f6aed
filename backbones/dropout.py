"""Dropout that draws few random bits."""

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU, where drawing a number for each element takes most of its time.

    On an Intel Xeon it takes 3.4 ms instead of 17 for 1.9 million elements.

    An element is zeroed with the probability `p`, rounded to 16 bits, and the others are divided by the probability of
    the rest. Equal to `nn.Dropout` in distribution; it takes other numbers from the same generator.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """In training zero some elements and scale the others; any shape."""
        level = round(self.p * _LEVELS)
        is_plain = torch.compiler.is_compiling() or inputs.device.type != "cpu" or level in (0, _LEVELS)
        if is_plain or not self.training:
            return super().forward(inputs)
        return _DropoutFunction.apply(inputs, level)


# A 16-bit number decides over an element.
_LEVELS = 2**16


class _DropoutFunction(torch.autograd.Function):
    """Dropout with the probability `level` / 2^16; saves a byte an element."""

    @staticmethod
    def forward(ctx, inputs: Tensor, level: int) -> Tensor:
        count = inputs.numel()
        # Four 16-bit numbers at a time. Without an upper bound all 64 bits are random.
        drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = (drawn[:count] >= level - _LEVELS // 2).view(inputs.shape)
        ctx.save_for_backward(kept)
        ctx.scale = _LEVELS / (_LEVELS - level)
        return (inputs * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, d_outputs: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return d_outputs * kept * ctx.scale, None


def use_fast_dropout(model: nn.Module) -> None:
    """Put `Dropout` in the place of every `nn.Dropout` inside the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p).train(child.training))
