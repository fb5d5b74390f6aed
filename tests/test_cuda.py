"""The eight experiments on a real GPU, held against the CPU; skipped where there is none."""

import pytest
import torch
from torch import nn

from config import CONFIGS, load_config
from helpers import EXPERIMENTS, read_metrics, small_config
from lstm import LSTM
from models import ReviewClassifier, build_model
from train import run
from training.interrupts import InterruptedRun
from training.trainer import TrainingStep
from transformer_solution import LayerNorm

pytestmark = pytest.mark.cuda

NUM_REVIEWS, NUM_TOKENS, VOCABULARY = 12, 40, 30522
# Of a gradient's norm. cuDNN may compute in TF32.
TOLERANCES = {"fp32": 0.02, "bf16": 0.1, "fp16": 0.1}


def build(experiment: str) -> ReviewClassifier:
    config = load_config(CONFIGS / f"{experiment}.yaml", ["profile=yelp"])
    torch.manual_seed(0)
    model = build_model(config.model, VOCABULARY, config.data.max_length)
    model.start_epoch(config.train.epochs)
    return model


def make_batch(device: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (NUM_REVIEWS, NUM_TOKENS)
    lengths = torch.randint(2, NUM_TOKENS + 1, (NUM_REVIEWS, 1), generator=generator)
    mask = (torch.arange(NUM_TOKENS) < lengths).long()
    ids = torch.randint(1000, VOCABULARY, shape, generator=generator) * mask
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(NUM_REVIEWS) % 2}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def loss_and_gradients(model: ReviewClassifier, device: str, precision: str) -> tuple[float, dict[str, torch.Tensor]]:
    """Without dropout: the loss, and the gradients of all that is trained."""
    model = model.to(device).eval()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        loss = model(**make_batch(device)).loss
    # As a gradient scaler does it, so that fp16 keeps small gradients.
    (loss * 2.0**10).backward()
    return loss.item(), {name: p.grad.cpu().float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_loss_and_gradients_are_those_of_the_cpu(experiment, precision):
    expected_loss, expected = loss_and_gradients(build(experiment), "cpu", "fp32")
    loss, actual = loss_and_gradients(build(experiment), "cuda", precision)
    assert loss == pytest.approx(expected_loss, abs=1e-2)
    assert actual.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        # Some are 0 but for rounding, such as that of the keys' bias, which moves all scores of a query alike.
        error = (actual[name] - gradient).norm() / torch.maximum(gradient.norm(), largest / 100)
        assert error < TOLERANCES[precision], f"{name}: relative error {error:.1%}"


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_step_makes_no_host_wait_and_changes_the_weights(experiment, precision):
    config = load_config(CONFIGS / f"{experiment}.yaml", ["profile=yelp", f"train.precision={precision}"])
    model = build(experiment).cuda().train()
    step = TrainingStep(model, config.train, 100, torch.device("cuda"))
    batch = make_batch("cuda")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    step(batch)  # the optimiser makes its state, cuDNN its workspace
    try:
        torch.cuda.set_sync_debug_mode("error")
        loss = [step(batch, micro_batch_size=size)[0] for size in (None, 5, None)][-1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
    after = dict(model.named_parameters())
    assert [name for name in before if torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("ours", [LSTM, LayerNorm])
def test_scratch_layer_equals_pytorchs_in_double_precision(ours):
    torch.manual_seed(0)
    x = torch.randn(3, 11, 7, dtype=torch.float64, device="cuda", requires_grad=True)
    if ours is LayerNorm:
        layers = [LayerNorm(7), nn.LayerNorm(7)]
        outputs = [layer.double().cuda()(x) for layer in layers]
    else:
        layer, theirs = LSTM(7, 5).double().cuda(), nn.LSTM(7, 5, batch_first=True).double().cuda()
        with torch.no_grad():
            for way, name in (("i", "ih"), ("h", "hh")):
                for ours_name, theirs_name in ((f"w_{way}", f"weight_{name}_l0"), (f"b_{way}", f"bias_{name}_l0")):
                    gates = [getattr(layer, f"{ours_name}{gate}") for gate in "ifgo"]
                    getattr(theirs, theirs_name).copy_(torch.cat(gates))
        states = tuple(torch.randn(1, 3, 5, dtype=torch.float64, device="cuda") for _ in range(2))
        outputs = [layer(x, states)[0], theirs(x, states)[0]]
    input_gradients = [torch.autograd.grad(output.square().sum(), x)[0] for output in outputs]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(input_gradients[0], input_gradients[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("experiment", ["1_lstm", "4_lstm_attention", "5_transformer_prenorm", "8_minilm"])
def test_run_is_stopped_and_resumed(review_files, tmp_path, stop_at, experiment):
    config = small_config(experiment, review_files, tmp_path / "run", "device=cuda")
    stop_at(3)
    with pytest.raises(InterruptedRun):
        run(config)
    summary = run(config)
    assert summary["completed"] is True
    assert summary["device"] == torch.cuda.get_device_name()
    assert summary["memory"]["kind"] == "cuda_allocated"
    assert [line["step"] for line in read_metrics(config.run_dir)][-1] == 6 * config.train.epochs
