"""One run in several processes; every function also serves a single process.

`accelerate launch` and `torchrun` start the processes and say in the environment how they find each other. Every
process holds the whole model; a batch is divided among them and the gradients are summed, so that a step equals that
of one process on the whole batch. Process 0 writes.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config import InputError


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """For the time of a block, the group of all processes that a launcher started.

    Args:
        device: that computes. On CUDA the processes speak NCCL, each with the GPU that the launcher gave it; what stays
            on the CPU goes over gloo.

    Raises:
        InputError: this machine has more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise InputError(
                f"process {local_rank} of this machine has no GPU: torch sees {num_gpus}; start at most "
                f"{num_gpus} processes a machine, or give device=cpu"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Process 0 runs the block, then the others: they read what it has cached."""
    if not is_main_process():
        barrier()
    yield
    if is_main_process():
        barrier()


def shard(items: list) -> list:
    """This process's share of a list: one of every `world_size()` items."""
    return items[rank() :: world_size()]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gradients become their sums over all processes; one that had no review counts as zero."""
    if world_size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = all_reduce_sum(torch.cat([parameter.grad.flatten() for parameter in trained]))
    for parameter, gradient in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad.copy_(gradient.view_as(parameter))


def any_process(*flags: bool) -> list[bool]:
    """Of each flag, whether it is set in any process; over the CPU, so that no host waits for its GPU."""
    if world_size() == 1:
        return list(flags)
    return (all_reduce_sum(torch.tensor(flags, dtype=torch.int32)) > 0).tolist()


def all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, in order; equal shapes."""
    if world_size() == 1:
        return [tensor]
    tensors = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(tensors, tensor)
    return tensors
