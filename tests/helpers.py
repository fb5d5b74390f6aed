"""What the comparisons with PyTorch's own layers share."""

import torch
from torch import Tensor, nn


def random_tensor(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal values that ask for a gradient."""
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    """Equal shape and, to `tolerance`, equal values, absolute and relative."""
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter by name; every one must have one."""
    found = {name: parameter.grad for name, parameter in module.named_parameters()}
    missing = [name for name, gradient in found.items() if gradient is None]
    assert not missing, f"no gradient: {missing}"
    return found


def ragged_mask(lengths: list[int], width: int) -> Tensor:
    """(B, T) booleans, 1 = token, of sequences with these many tokens."""
    return torch.arange(width) < torch.tensor(lengths)[:, None]
