"""Training steps and evaluations of an experiment on fake CUDA tensors, which have a shape, a dtype and a device only.

    python tests/fake_cuda.py fake_cuda.so EXPERIMENT:PRECISION ...

Prints a JSON object a line. A fake tensor has no values: reading one on the host, as `item`, `nonzero` and an index of
booleans do, raises, and so does an operation on two devices. Copies between the devices are recorded here. For cuDNN's
LSTM, which a CPU build of torch lacks, stands a function that checks what cuDNN wants of its arguments.
"""

import contextlib
import ctypes
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

if __name__ == "__main__":
    libraries = Path(importlib.util.find_spec("torch").origin).parent / "lib"
    # The device must be registered before torch's Python part looks for one.
    for name in (libraries / "libc10.so", libraries / "libtorch_cpu.so", sys.argv[1]):
        ctypes.CDLL(str(name), mode=ctypes.RTLD_GLOBAL)

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import CONFIGS, Config, load_config
from models import ReviewClassifier, build_model
from training import evaluation
from training.checkpoint import optimizer_state, set_optimizer_state
from training.evaluation import predict_logits
from training.trainer import TrainingStep

CUDA = torch.device("cuda")
BERT_VOCABULARY = 30522
NUM_REVIEWS, NUM_TOKENS = 6, 20


def main() -> None:
    for case in sys.argv[2:]:
        experiment, precision = case.split(":")
        print(json.dumps({"case": case, **check(experiment, precision)}), flush=True)


def check(experiment: str, precision: str) -> dict:
    """What happens in steps, micro-batches, a resumed step and an evaluation; `errors` is empty where all work."""
    config = load_config(CONFIGS / f"{experiment}.yaml", ["profile=yelp", f"train.precision={precision}"])
    report, repeat_bias = {"errors": {}, "copies": {}, "lstm": []}, set()
    with pretend_cuda(report["lstm"]), FakeTensorMode():
        model = to_fake_cuda(build_model(config.model, BERT_VOCABULARY, config.data.max_length))
        model.train().start_epoch(config.train.epochs)
        step = TrainingStep(model, config.train, 100, CUDA)
        parts = {
            "step": lambda: [step(make_batch()) for _ in range(2)],
            "micro_batches": lambda: step(make_batch(), micro_batch_size=4),
            "resumed_step": lambda: step_after_resuming(step),
            "evaluation": lambda: evaluate(model.eval(), config),
        }
        for name, part in parts.items():
            copies = report["copies"][name] = []
            try:
                with RecordOperations(copies, repeat_bias):
                    part()
            except Exception as error:
                report["errors"][name] = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
        report["optimizer"] = optimizer_devices(step)
    return report | {"repeat_bias": sorted(repeat_bias)}


@contextlib.contextmanager
def pretend_cuda(lstm_calls: list[dict]) -> Iterator[None]:
    """Autocast and gradient scaler as on a GPU, and a stand-in for cuDNN's LSTM that notes its calls."""
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False),
        mock.patch("torch.cuda.is_bf16_supported", return_value=True),
        mock.patch("torch.lstm", lambda *arguments: _CudnnLSTM.call(lstm_calls, *arguments)),
        mock.patch("torch._VF.lstm", lambda *arguments: _CudnnLSTM.call(lstm_calls, *arguments)),
    ):
        yield


class _CudnnLSTM(torch.autograd.Function):
    """Shapes and dtypes of cuDNN's LSTM in one direction, batch first."""

    @classmethod
    def call(cls, calls: list[dict], inputs: Tensor, states: tuple, weights: list[Tensor], *flags) -> tuple:
        tensors = [inputs, *states, *weights]
        sizes, starts = [w.numel() for w in weights], [w.storage_offset() for w in weights]
        one_storage = len({w.untyped_storage()._cdata for w in weights}) == 1
        call = {
            "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}),
            "devices": sorted({tensor.device.type for tensor in tensors}),
            "contiguous_states": all(state.is_contiguous() for state in states),
            "one_chunk_of_weights": one_storage and np.diff(starts).tolist() == sizes[:-1],
            "autocast": torch.is_autocast_enabled("cuda"),
        }
        if call not in calls:
            calls.append(call)
        return cls.apply(inputs, *states, *weights)

    @staticmethod
    def forward(ctx, inputs: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(inputs, h, c, *weights)
        num_reviews, num_tokens, _ = inputs.shape
        return inputs.new_empty(num_reviews, num_tokens, h.shape[2]), torch.empty_like(h), torch.empty_like(c)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors)


class RecordOperations(TorchDispatchMode):
    """Notes each operation whose result is on another device than its arguments, and the functions that led to it.

    Also the dtype of the bias with which an LSTM repeats one step: autocast on CUDA, unlike a CPU's, would round it.
    """

    def __init__(self, copies: list[str], repeat_bias: set[str]):
        super().__init__()
        self.copies, self.repeat_bias = copies, repeat_bias

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func == torch.ops.aten.addmv.default:
            self.repeat_bias.add(str(out.dtype).removeprefix("torch."))
        before, after = (
            {t.device.type for t in tree_leaves(x) if isinstance(t, Tensor)} for x in ([args, kwargs], out)
        )
        if before and after - before:
            where = " ".join(f"{Path(f.filename).name}:{f.name}" for f in traceback.extract_stack() if _is_ours(f))
            self.copies.append(f"{'+'.join(sorted(before))} to {'+'.join(sorted(after))} in {where}")
        return out


def _is_ours(frame: traceback.FrameSummary) -> bool:
    root = Path(__file__).resolve().parents[1]
    path = Path(frame.filename).resolve()
    return path.is_relative_to(root) and path != Path(__file__).resolve() and "site-packages" not in path.parts


def to_fake_cuda(model: ReviewClassifier) -> ReviewClassifier:
    """The model with fake parameters and buffers on the device, under a FakeTensorMode."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return model


def make_batch() -> dict[str, Tensor]:
    """A batch with padding, shorter than the limit."""
    shape = (NUM_REVIEWS, NUM_TOKENS)
    mask = torch.ones(shape, dtype=torch.int64, device=CUDA)
    mask[0, NUM_TOKENS // 2 :] = 0
    labels = torch.zeros(NUM_REVIEWS, dtype=torch.int64, device=CUDA)
    return {"input_ids": torch.ones_like(mask), "attention_mask": mask, "labels": labels}


def step_after_resuming(step: TrainingStep) -> None:
    """A step from a state that was read from files: on the CPU."""
    tensors, groups = optimizer_state(step.optimizer)
    read = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in tensors.items()}
    set_optimizer_state(step.optimizer, read, groups)
    step(make_batch())


def evaluate(model: ReviewClassifier, config: Config) -> None:
    """`predict_logits` of two batches; its copy to the host at the end is the only one."""
    reviews = mock.MagicMock(lengths=np.array([NUM_TOKENS] * NUM_REVIEWS * 2))
    reviews.__len__.return_value = NUM_REVIEWS * 2
    with mock.patch.object(
        evaluation, "batch_loader", lambda reviews, batches, device: (make_batch() for _ in batches)
    ):
        logits = predict_logits(model, reviews, NUM_REVIEWS, CUDA, config.train.precision)
    assert logits.shape == (NUM_REVIEWS * 2, 2)
    assert logits.device.type == "cpu"


def optimizer_devices(step: TrainingStep) -> list[str]:
    """Where the state of the optimiser is, and that it is fake throughout."""
    tensors = tree_leaves([list(part.values()) for part in step.optimizer.state.values()])
    assert all(isinstance(tensor, FakeTensor) for tensor in tensors)
    return sorted({tensor.device.type for tensor in tensors})


if __name__ == "__main__":
    main()
