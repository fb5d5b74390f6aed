"""How fast training, evaluation, layers and pipeline are, beside the reference implementation and PyTorch's own.

    python benchmarks/speed.py [--quick] [--device cuda] [--output FILE] [--only training evaluation ...]

Each pair runs in alternation in one process on the same weights; medians and spreads are printed, with the ratio of the
medians (the speed-up over the reference, or for a layer how many times PyTorch's time) and the largest
difference of logits or outputs. README and `README.md` beside this file say what the figures were.
"""

from project import ROOT

# isort: split
import argparse
import copy
import ctypes
import gc
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import reference
from config import Config, load_config
from data import Reviews, batch_loader, load_reviews, training_batches
from lstm import LSTM, EncoderDecoder
from models import ReviewClassifier, build_model
from train import cache_frozen_features
from training.checkpoint import checkpoints_of
from training.device import device_name, now, prepare_process
from training.evaluation import predict_logits
from training.trainer import Trainer, TrainingStep
from transformer_solution import LayerNorm, MultiHeadedAttention

YELP = ROOT.parent / "shared" / "data" / "yelp_reviews" / "train.csv"
SCRATCH = sorted((ROOT / "configs").glob("[1-7]_*.yaml"))
MINILM = ROOT / "configs" / "8_minilm.yaml"


class Bench:
    """What all measurements share: device, sizes, where the reviews are, and the rows found so far."""

    def __init__(self, device: str, quick: bool, yelp: Path):
        self.device = torch.device(device)
        self.quick = quick
        self.rounds = 1 if quick else 3
        self.reviews = 16 if quick else 512
        self.batch_size = 8 if quick else 64
        self.sources = {"imdb": ["data.source=imdb"]}
        if yelp.is_file() and not quick:
            self.sources["yelp"] = ["data.source=files", f"data.train={yelp}"]
        self.rows: list[dict] = []
        self.cases: dict[tuple[Path, str], Case] = {}

    def case(self, path: Path, lengths: str) -> "Case":
        """The experiment on reviews of that length distribution, made once."""
        if (path, lengths) not in self.cases:
            self.cases[path, lengths] = Case(self, path, lengths)
        return self.cases[path, lengths]

    def config(self, path: Path, lengths: str, *overrides: str) -> Config:
        common = [
            f"data.max_train_samples={self.reviews}",
            f"train.batch_size={self.batch_size}",
            f"data.cache_dir={ROOT}/.cache",
        ]
        return load_config(path, [*self.sources[lengths], *common, *overrides])

    def alternate(self, calls: dict[str, Callable[[], None]], rounds: int | None = None) -> dict[str, list[float]]:
        """Seconds of each call, in turn, after one call each that is not counted."""
        for call in calls.values():
            call()
        return self.take_turns(calls, rounds or self.rounds)

    def take_turns(self, calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
        """Seconds of each call, in turn."""
        seconds = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                started = now(self.device)
                call()
                seconds[name].append(now(self.device) - started)
        return seconds

    def add(self, seconds: dict[str, list[float]], pair: tuple[str, str], **row) -> None:
        """Print and keep a row; `ratio` is the first of the pair over the second, in median seconds."""
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        row["ratio"] = medians[pair[0]] / medians[pair[1]]
        row["median_seconds"] = medians
        row["spread_seconds"] = {name: [min(values), max(values)] for name, values in seconds.items()}
        self.rows.append(row)
        what = row.get("experiment") or row.get("layer") or ""
        print(f"{row['bench']:<12}{what!s:<28}{row.get('lengths') or '':<6}{row['ratio']:6.2f}x", end="")
        for name in medians:
            low, high = row["spread_seconds"][name]
            print(f"  {name} {medians[name] * 1e3:.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})", end="")
            if "reviews_per_second" in row:
                print(f" {row['reviews_per_second'][name]:.0f} reviews/s", end="")
            if "peak_bytes" in row:
                print(f" {row['peak_bytes'][name] / 2**20:.0f} MiB", end="")
        if row.get("max_difference") is not None:
            print(f"  difference {row['max_difference']:.1e}", end="")
        if "matmul_share" in row:
            print(f"  {row['matmul_share']:.0%} of the matrix-product rate", end="")
        print(flush=True)

    def peak(self, call: Callable[[], None]) -> int:
        """Bytes that a call needs beyond what was there: on CUDA of torch's allocator, else of resident memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return torch.cuda.max_memory_allocated() - before
        if sys.platform == "linux":
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        process, highest, done = psutil.Process(), [0], threading.Event()
        before = process.memory_info().rss

        def watch() -> None:
            while not done.wait(0.002):
                highest[0] = max(highest[0], process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        call()
        done.set()
        watcher.join()
        return max(0, highest[0] - before)


# ---------------------------------------------------------------- experiments


class Case:
    """An experiment on reviews of one length distribution: the classifier, and the reference at equal weights."""

    def __init__(self, bench: Bench, path: Path, lengths: str):
        self.bench, self.path, self.lengths = bench, path, lengths
        self.config = bench.config(path, lengths)
        self.reviews = load_reviews(self.config.data)
        torch.manual_seed(0)
        size = len(self.reviews.tokenizer), self.config.data.max_length
        self.fast = build_model(self.config.model, *size).to(bench.device)
        self.slow = reference.ReferenceClassifier(copy.deepcopy(self.fast))
        self.difference = logits_difference(bench, self.config, self.reviews, self.fast, self.slow)

    def measure(self, name: str, calls: dict[str, Callable[[], None]], **row) -> dict:
        """A row of reviews a second; the first call of each, not timed, is watched for its memory."""
        peaks = {which: self.bench.peak(call) for which, call in calls.items()}
        seconds = self.bench.take_turns(calls, self.bench.rounds)
        row = {which: value(seconds) for which, value in row.items()}
        self.bench.add(
            seconds,
            ("reference", "fast"),
            bench=name,
            experiment=self.path.stem,
            lengths=self.lengths,
            max_difference=self.difference,
            reviews_per_second={w: self.bench.reviews / statistics.median(values) for w, values in seconds.items()},
            peak_bytes=peaks,
            **row,
        )
        return self.bench.rows[-1]


def bench_training(bench: Bench) -> None:
    """Reviews a second in training, data included: experiments 1-7, both length distributions."""
    rate = matmul_rate(bench)
    print(f"matrix products: {rate / 1e9:.0f} GFLOP/s in float32")
    for lengths in bench.sources:
        add_mean(bench, "training", lengths, [measure_training(bench.case(path, lengths), rate) for path in SCRATCH])


def measure_training(case: Case, rate: float) -> float:
    """One experiment's row of `bench_training`; returns the ratio."""
    config, reviews, device = case.config, case.reviews, case.bench.device
    step = TrainingStep(case.fast, config.train, 10**6, device)
    slow_optimizer = torch.optim.AdamW(case.slow.parameters(), lr=config.train.learning_rate, eps=config.train.adam_eps)
    slow_batches = reference_batches(config, reviews, config.train.batch_size, shuffle=True)

    def run_fast() -> None:
        case.fast.train()
        batches = training_batches(reviews.train.lengths, config.train.batch_size, 0, 1)
        for batch in batch_loader(reviews.train, batches, device):
            step(batch)

    def run_slow() -> None:
        for _ in reference.train_epoch(case.slow, slow_batches, slow_optimizer, device):
            pass

    calls, share = {"reference": run_slow, "fast": run_fast}, {}
    if device.type == "cpu":  # the products inside of cuDNN are not counted
        flops = count_flops(run_fast)
        share = {"matmul_share": lambda seconds: flops / statistics.median(seconds["fast"]) / rate}
    return case.measure("training", calls, **share)["ratio"]


def bench_evaluation(bench: Bench) -> None:
    """Reviews a second in evaluation, data included: both length distributions; the mean is that of 1-7."""
    for lengths in bench.sources:
        rows = [measure_evaluation(bench.case(path, lengths)) for path in (*SCRATCH, MINILM)]
        add_mean(bench, "evaluation", lengths, rows[: len(SCRATCH)])


def measure_evaluation(case: Case) -> float:
    """One experiment's row of `bench_evaluation`; returns the ratio."""
    config, device = case.config, case.bench.device
    size = config.train.eval_batch_size
    batches = reference_batches(config, case.reviews, size, shuffle=False)
    calls = {
        "reference": lambda: reference.evaluate(case.slow, batches, device),
        "fast": lambda: predict_logits(case.fast, case.reviews.train, size, device),
    }
    return case.measure("evaluation", calls)["ratio"]


def reference_batches(config: Config, reviews: Reviews, size: int, shuffle: bool) -> DataLoader:
    """The training reviews as the reference batches them."""
    split = reviews.train
    return reference.loader(
        split.texts, split.labels.tolist(), reviews.tokenizer, size, config.data.max_length, shuffle
    )


def add_mean(bench: Bench, name: str, lengths: str, ratios: list[float]) -> None:
    """A row with the geometric mean of the experiments' ratios."""
    mean = float(np.exp(np.mean(np.log(ratios))))
    bench.rows.append({"bench": name, "experiment": "geometric mean", "lengths": lengths, "ratio": mean})
    print(f"{name:<12}{'geometric mean':<28}{lengths:<6}{mean:6.2f}x")


def logits_difference(
    bench: Bench, config: Config, reviews: Reviews, fast: ReviewClassifier, slow: reference.ReferenceClassifier
) -> float:
    """Largest difference of logits over the reviews, at equal weights, without dropout."""
    fast.eval()
    batches = reference_batches(config, reviews, 64, shuffle=False)
    _, expected = reference.evaluate(slow, batches, bench.device)
    logits = predict_logits(fast, reviews.train, 64, bench.device)
    return (logits - expected.double()).abs().max().item()


def bench_minilm(bench: Bench) -> None:
    """Experiment 8: two epochs, the last layer unfrozen in the second, an evaluation after each."""
    for lengths in bench.sources:
        train, evaluated = (16, 8) if bench.quick else (2000, 500) if lengths == "imdb" else (1800, 200)
        config = bench.config(MINILM, lengths, f"data.max_train_samples={train}", f"data.max_eval_samples={evaluated}")
        config = replace(config, train=replace(config.train, eval_steps=10**6))
        reviews = load_reviews(config.data)
        difference = bench.case(MINILM, lengths).difference
        accuracy: dict[str, float] = {}
        calls = {"reference": partial(minilm_reference, bench, config, reviews, accuracy)}
        for precision, cached in (("fp32", None), ("fp32", "fp32"), ("bf16", "bf16")):
            name = f"{precision}, " + (f"cached {cached}" if cached else "not cached")
            calls[name] = partial(minilm_fast, bench, config, reviews, accuracy, precision, cached, name)
        seconds = bench.take_turns(calls, rounds=1)
        for name in list(calls)[1:]:
            bench.add(
                {"reference": seconds["reference"], name: seconds[name]},
                ("reference", name),
                bench="minilm",
                experiment=f"8_minilm {name}",
                lengths=lengths,
                max_difference=difference if name.startswith("fp32") else None,
                reviews_per_second={
                    which: 2 * (train + evaluated) / seconds[which][0] for which in ("reference", name)
                },
                validation_accuracy=dict(accuracy),
            )
        print(f"{'minilm':<12}accuracy of {evaluated} validation reviews: {accuracy}")


def minilm_reference(bench: Bench, config: Config, reviews: Reviews, accuracy: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(bench.device)
    slow = reference.ReferenceClassifier(model)
    optimizer = torch.optim.AdamW(slow.parameters(), lr=config.train.learning_rate, eps=config.train.adam_eps)
    for epoch in (1, 2):
        model.start_epoch(epoch)
        batches = reference_batches(config, reviews, config.train.batch_size, shuffle=True)
        for _ in reference.train_epoch(slow, batches, optimizer, bench.device):
            pass
        batches = reference_batches(
            config, replace(reviews, train=reviews.validation), config.train.eval_batch_size, shuffle=False
        )
        accuracy["reference"], _ = reference.evaluate(slow, batches, bench.device)


def minilm_fast(
    bench: Bench,
    config: Config,
    reviews: Reviews,
    accuracy: dict[str, float],
    precision: str,
    cached: str | None,
    name: str,
) -> None:
    """With an empty cache: the frozen layers' outputs are computed anew in each round."""
    with tempfile.TemporaryDirectory() as folder:
        settings = replace(config.train, precision=precision, cache_frozen_features=cached)
        config = replace(config, data=replace(config.data, cache_dir=folder), train=settings)
        torch.manual_seed(0)
        model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(bench.device)
        if cached:
            reviews = cache_frozen_features(config, model, reviews, bench.device)
        record = Trainer(config, model, reviews, bench.device, Path(folder)).fit()
        accuracy[name] = record.last["validation_accuracy"]


def bench_checkpoints(bench: Bench) -> None:
    """What saving the whole state of a run costs: seconds, bytes, and the share of the default interval."""
    for path in SCRATCH[:1] if bench.quick else (*SCRATCH, MINILM):
        case = bench.case(path, "imdb")
        config, reviews = case.config, case.reviews
        with tempfile.TemporaryDirectory(dir=ROOT) as folder:
            trainer = Trainer(config, case.fast, reviews, bench.device, Path(folder))
            # Every layer that the run will train has its states in the optimiser.
            case.fast.start_epoch(config.train.epochs)
            case.fast.train()
            indices = training_batches(reviews.train.lengths, 8, 0, 1)[0]
            trainer.train_step(indices, next(batch_loader(reviews.train, [indices], bench.device)))
            seconds = bench.alternate({"checkpoint": trainer.save}, rounds=1 if bench.quick else 5)["checkpoint"]
            size = sum(file.stat().st_size for file in checkpoints_of(Path(folder))[0].iterdir())
        share = statistics.median(seconds) / (60 * config.train.save_minutes)
        row = {"bench": "checkpoint", "experiment": path.stem, "lengths": None, "ratio": None, "max_difference": None}
        row |= {"median_seconds": {"checkpoint": statistics.median(seconds)}, "bytes": size, "share_of_interval": share}
        bench.rows.append(row)
        print(
            f"{'checkpoint':<12}{path.stem:<28}{statistics.median(seconds):.2f} s ({min(seconds):.2f} to "
            f"{max(seconds):.2f})  {size / 2**20:.0f} MiB  {share:.2%} of {config.train.save_minutes:g} minutes"
        )


# ---------------------------------------------------------------- layers


def forward_backward(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A call that computes a loss and its gradients."""

    def run() -> None:
        outputs = call()
        outputs.backward(torch.ones_like(outputs))

    return run


def bench_layers(bench: Bench) -> None:
    """Forward and backward of the scratch layers beside PyTorch's; ratio: how many times its time."""
    torch.manual_seed(0)
    small = bench.quick
    bench_lstm(bench, *(8, 32, 64, 64) if small else (32, 256, 256, 256))
    bench_packed(bench, *(8, 32, 64) if small else (32, 256, 256))
    bench_layer_norm(bench, *(8, 32, 64) if small else (64, 256, 256))
    bench_attention(bench, *(8, 33, 2, 32) if small else (64, 257, 4, 64))


def compare_layers(bench: Bench, layer: str, reference: Callable, ours: dict[str, Callable], difference: float) -> None:
    """A row for each of our ways, in alternation with PyTorch's layer alone: others' memory would disturb the pair."""
    for name, call in ours.items():
        calls = {"torch": forward_backward(reference), name: forward_backward(call)}
        seconds = bench.alternate(calls, rounds=5 if bench.quick else 15)
        bench.add(
            seconds,
            (name, "torch"),
            bench="layer",
            layer=f"{layer} {name}",
            lengths=None,
            max_difference=difference,
            peak_bytes={which: bench.peak(call) for which, call in calls.items()},
        )


def bench_lstm(bench: Bench, batch: int, steps: int, inputs: int, size: int) -> None:
    ours = LSTM(inputs, size).to(bench.device)
    reference = nn.LSTM(inputs, size, batch_first=True).to(bench.device)
    with torch.no_grad():
        for part, letter in (("weight", "w"), ("bias", "b")):
            for source in "ih":
                gates = torch.cat([getattr(ours, f"{letter}_{source}{gate}") for gate in "ifgo"])
                getattr(reference, f"{part}_{source}h_l0").copy_(gates)
    x = torch.randn(batch, steps, inputs, device=bench.device, requires_grad=True)
    states = tuple(torch.zeros(1, batch, size, device=bench.device) for _ in range(2))
    difference = (ours(x, states)[0] - reference(x, states)[0]).abs().max().item()
    calls = {"scratch": lambda: ours(x, states)[0], "by steps": lambda: ours.forward_reference(x, states)[0]}
    compare_layers(bench, "LSTM", lambda: reference(x, states)[0], calls, difference)


def bench_packed(bench: Bench, batch: int, steps: int, size: int) -> None:
    """`EncoderDecoder.packed_steps` of an encoder; lengths from a half to all of the steps."""
    model = EncoderDecoder(1000, size, size, encoder_only=True).to(bench.device)
    lengths = torch.linspace(steps // 2, steps, batch).long()
    mask = (torch.arange(steps) < lengths[:, None]).to(bench.device)
    ids = torch.randint(1, 1000, mask.shape, device=bench.device) * mask

    def packed_sequence() -> torch.Tensor:
        x = pack_padded_sequence(model.encoder.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(model.encoder.rnn(x)[0], batch_first=True, total_length=steps)[0]

    difference = (model.packed_steps(ids, mask) - packed_sequence()).abs().max().item()
    compare_layers(bench, "packed", packed_sequence, {"steps": lambda: model.packed_steps(ids, mask)}, difference)


def bench_layer_norm(bench: Bench, batch: int, steps: int, width: int) -> None:
    ours, reference = LayerNorm(width).to(bench.device), nn.LayerNorm(width).to(bench.device)
    x = torch.randn(batch, steps, width, device=bench.device, requires_grad=True)
    difference = (ours(x) - reference(x)).abs().max().item()
    calls = {"scratch": lambda: ours(x), "by definition": lambda: ours.forward_reference(x)}
    compare_layers(bench, "LayerNorm", lambda: reference(x), calls, difference)
    if not bench.quick:
        compiled = torch.compile(ours)
        compare_layers(bench, "LayerNorm", lambda: reference(x), {"compiled": lambda: compiled(x)}, difference)


def bench_attention(bench: Bench, batch: int, steps: int, heads: int, size: int) -> None:
    width = heads * size
    reference = nn.MultiheadAttention(width, heads, batch_first=True).to(bench.device)
    x = torch.randn(batch, steps, width, device=bench.device, requires_grad=True)
    mask = torch.arange(steps, device=bench.device) < torch.randint(1, steps + 1, (batch, 1), device=bench.device)
    for implementation, weights in (("eager", True), ("sdpa", False)):
        ours = MultiHeadedAttention(size, heads, attn_implementation=implementation).to(bench.device)
        with torch.no_grad():
            for i, name in enumerate(("w_q", "w_k", "w_v")):
                getattr(ours, name).weight.copy_(reference.in_proj_weight[i * width : (i + 1) * width])
                getattr(ours, name).bias.copy_(reference.in_proj_bias[i * width : (i + 1) * width])
            ours.w_o.load_state_dict(reference.out_proj.state_dict())

        def torchs(weights=weights) -> torch.Tensor:
            return reference(x, x, x, key_padding_mask=~mask, need_weights=weights)[0]

        difference = (ours(x, mask) - torchs()).abs().max().item()
        calls = {implementation: lambda ours=ours: ours(x, mask)}
        compare_layers(bench, "MultiHeadedAttention", torchs, calls, difference)


def bench_scaling(bench: Bench) -> None:
    """How the time of a layer, forward and backward, grows with tokens and with reviews: the fitted exponent."""
    tokens = [16, 32, 64] if bench.quick else [64, 128, 256, 512, 1024]
    batches = [2, 4, 8] if bench.quick else [8, 16, 32, 64, 128]
    width = 64 if bench.quick else 256
    fixed_batch, fixed_tokens = batches[1], tokens[1]
    lstm = LSTM(width, width).to(bench.device)
    layers = {"LSTM": lambda x: lstm(x, tuple(x.new_zeros(1, len(x), width) for _ in range(2)))[0]}
    for implementation in ("eager", "sdpa"):
        layer = MultiHeadedAttention(width // 4, 4, attn_implementation=implementation).to(bench.device)
        layers[f"MultiHeadedAttention {implementation}"] = layer
    for name, layer in layers.items():
        for axis, sizes in (
            ("tokens", [(fixed_batch, t) for t in tokens]),
            ("reviews", [(b, fixed_tokens) for b in batches]),
        ):
            medians = []
            for batch, steps in sizes:
                x = torch.randn(batch, steps, width, device=bench.device, requires_grad=True)
                call = forward_backward(lambda x=x, layer=layer: layer(x))
                medians.append(statistics.median(bench.alternate({"": call})[""]))
            values = [steps if axis == "tokens" else batch for batch, steps in sizes]
            exponent = float(np.polyfit(np.log(values), np.log(medians), 1)[0])
            row = {"bench": "scaling", "layer": name, "axis": axis, "sizes": values, "median_seconds": medians}
            bench.rows.append({**row, "exponent": exponent, "ratio": None, "lengths": None, "max_difference": None})
            print(f"{'scaling':<12}{name:<28}time ~ {axis}^{exponent:.2f}")


# ---------------------------------------------------------------- pipeline


def bench_pipeline(bench: Bench) -> None:
    """Three epochs of batches alone, tokenising included on both sides; and a start from a warm cache."""
    epochs = 1 if bench.quick else 3
    for lengths in bench.sources:
        config = bench.config(SCRATCH[0], lengths, f"data.max_train_samples={bench.reviews if bench.quick else 1900}")
        reviews = load_reviews(config.data)
        calls = {
            "reference": partial(pipeline_reference, bench, config, reviews, epochs),
            "fast": partial(pipeline_fast, bench, config, reviews, epochs),
        }
        seconds = bench.alternate(calls)
        total = int(reviews.train.lengths.sum()) * epochs
        bench.add(
            seconds,
            ("reference", "fast"),
            bench="pipeline",
            experiment=f"{epochs} epochs",
            lengths=lengths,
            max_difference=None,
            tokens_per_second={name: total / statistics.median(values) for name, values in seconds.items()},
        )
    config = load_config(SCRATCH[0], [f"data.cache_dir={ROOT}/.cache"])
    load_reviews(config.data)
    started = time.perf_counter()
    reviews = load_reviews(config.data)
    next(iter(batch_loader(reviews.train, training_batches(reviews.train.lengths, 64, 0, 1), bench.device)))
    seconds = time.perf_counter() - started
    row = {"bench": "warm start", "experiment": "first batch", "lengths": "imdb", "ratio": None, "max_difference": None}
    bench.rows.append({**row, "median_seconds": {"fast": seconds}})
    print(f"{'warm start':<12}{'first batch of all IMDB':<28}{seconds:.2f} s, imports aside")


def pipeline_reference(bench: Bench, config: Config, reviews: Reviews, epochs: int) -> None:
    for _ in range(epochs):
        for batch in reference_batches(config, reviews, bench.batch_size, shuffle=True):
            for tensor in batch.values():
                tensor.to(bench.device)


def pipeline_fast(bench: Bench, config: Config, reviews: Reviews, epochs: int) -> None:
    """The tokenising is done here for its time, as on the first start; the batches come from the cache."""
    reviews.tokenizer(reviews.train.texts, truncation=True, max_length=config.data.max_length)
    for epoch in range(1, epochs + 1):
        batches = training_batches(reviews.train.lengths, config.train.batch_size, 0, epoch)
        for _ in batch_loader(reviews.train, batches, bench.device):
            pass


# ---------------------------------------------------------------- arithmetic


def matmul_rate(bench: Bench) -> float:
    """Floating-point operations a second of the best of three sizes of square float32 products."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(2, size, size, device=bench.device)
        seconds = bench.alternate({"": lambda a=a, b=b: a @ b}, rounds=5)[""]
        best = max(best, 2 * size**3 / statistics.median(seconds))
    return best


def lstm_flops(inputs, w_i, w_h, *arguments, out_shape=None, **keywords) -> int:
    """Products of oneDNN's LSTM: (T, B, I) with (4H, I), and a (B, H) with (4H, H) a step."""
    steps, batch, features = inputs
    return 2 * steps * batch * w_i[0] * (features + w_h[1])


def lstm_backward_flops(*arguments, **keywords) -> int:
    """Twice the forward products: those of the inputs' gradient and of the weights'."""
    return 2 * lstm_flops(*arguments)


def count_flops(call: Callable[[], None]) -> int:
    """Floating-point operations of the matrix products of a call."""
    aten = torch.ops.aten
    mapping = {aten.mkldnn_rnn_layer: lstm_flops, aten.mkldnn_rnn_layer_backward: lstm_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


BENCHES = {
    "layers": bench_layers,
    "pipeline": bench_pipeline,
    "evaluation": bench_evaluation,
    "training": bench_training,
    "scaling": bench_scaling,
    "checkpoints": bench_checkpoints,
    "minilm": bench_minilm,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="under a minute: shows that it works, measures little")
    parser.add_argument("--output", type=Path, help="JSON list of rows")
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    parser.add_argument("--yelp", type=Path, default=YELP, help="reviews in the Yelp Polarity form, for their lengths")
    options = parser.parse_args(arguments)
    prepare_process()
    bench = Bench(options.device, options.quick, options.yelp)
    print(f"{device_name(bench.device)}, torch {torch.__version__}, Python {platform.python_version()}")
    for name in options.only:
        BENCHES[name](bench)
        if options.output:
            machine = {"device": device_name(bench.device), "torch": torch.__version__}
            options.output.write_text(json.dumps([{**row, **machine} for row in bench.rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
