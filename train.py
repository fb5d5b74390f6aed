"""Train and evaluate experiments: data -> model -> optimiser -> fit -> evaluate, with evidence in a run folder.

    python train.py configs/4_lstm_attention.yaml [more.yaml ...] [key=value ...]

A run folder holds `config.yaml` (resolved), `metrics.jsonl` (a line an evaluation), `best/` (the model that is
kept), `validation_predictions.csv` and `test_predictions.csv` of that model, and `summary.json`; before the run is
complete also `checkpoints/`. A run that was killed goes on from there when the same command is given again.
"""

import argparse
import contextlib
import gc
import json
import logging
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import get_scheduler, set_seed

from config import Config, InputError, RunError, describe_settings, load_config, to_yaml
from data import (
    Reviews,
    TokenizedReviews,
    batch_loader,
    evaluation_batches,
    load_reviews,
    training_batches,
)
from models import ReviewClassifier, build_model, count_parameters, load_model, save_model
from training import distributed
from training.checkpoint import (
    DamagedError,
    InterruptedRun,
    RunLock,
    StopRequest,
    best_path,
    bytes_of,
    checkpoint_path,
    checkpoints_of,
    load_checkpoint,
    no_space,
    optimizer_state,
    prune,
    random_states,
    remove_newer,
    save_checkpoint,
    set_optimizer_state,
    set_random_states,
    stop_requests,
    write_folder,
    write_text,
)
from training.device import MemoryMeter, device_name, now, pick_device, prepare
from training.frozen_features import FrozenFeatures
from training.run_folder import (
    PREDICTIONS,
    STATE_FILES,
    Record,
    best_step_of,
    clear_run,
    complete_run,
    finished_run,
    newest_checkpoint,
    write_predictions,
)

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit status: 0 done, 1 a run that can't go on (a loss that is no number, no memory, no space), 2 input that
        can't be used, 130 and 143 stopped by Ctrl-C and SIGTERM.
    """
    parser = argparse.ArgumentParser(
        description="Train one or more experiments, one after another.",
        epilog="settings (given as key=value, or in the YAML file):\n" + describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("given", nargs="+", metavar="FILE|KEY=VALUE", help="experiment files and settings")
    given = parser.parse_args(arguments).given
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    files = [text for text in given if "=" not in text]
    try:
        configs = [load_config(path, [text for text in given if "=" in text]) for path in files]
        check_run_dirs(configs)
        with distributed.process_group():
            if not distributed.is_main_process():
                logging.getLogger().setLevel(logging.WARNING)
            for config in configs:
                run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if not no_space(error):
            raise
        print(
            f"error: {error.filename}: no space left on the disk; what was saved before is untouched: free some space "
            "and start the same command again",
            file=sys.stderr,
        )
        return 1
    except InterruptedRun as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def check_run_dirs(configs: list[Config]) -> None:
    """Refuse (`InputError`) no experiment at all, or two in one folder."""
    if not configs:
        raise InputError("no experiment file given; the experiments are configs/1_*.yaml to configs/8_*.yaml")
    folders = [config.run_dir for config in configs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise InputError(
                f"run_dir={folder!r} is the folder of {folders.count(folder)} experiments; give each its own, "
                "such as run_dir='logs/try/${name}'"
            )


def run(config: Config) -> dict:
    """Train and evaluate one experiment, and write its run folder; where the folder holds it half done, go on there.

    Returns:
        The summary. Where the folder holds this run complete already, that one's, and nothing is done.

    Raises:
        InputError: the folder holds another run, or one that can't be read; another process works in it; or the data
            or a pretrained model can't be had.
        FloatingPointError: a loss or gradient became infinite or nan.
        RunError: no memory, or no space on the disk.
        InterruptedRun: SIGTERM or Ctrl-C came; the state is saved.
    """
    run_dir, device = Path(config.run_dir), pick_device(config.device)
    with distributed.process_group():
        finished = finished_run(config, run_dir)
        # No process writes before all have looked.
        distributed.barrier()
        if finished is not None:
            log.info("%s: already complete, kept as it is (overwrite=true trains it again)", run_dir)
            return finished
        with RunLock(run_dir) if distributed.is_main_process() else contextlib.nullcontext():
            return train_and_test(config, run_dir, device)


def train_and_test(config: Config, run_dir: Path, device: torch.device) -> dict:
    """`run`, in a folder that is this process's own."""
    log.info("%s: experiment %d, %s", run_dir, config.experiment, config.architecture)
    with distributed.main_process_first():
        reviews = load_reviews(config.data)
    prepare(device, config.train.precision)
    resumed = None if config.overwrite else newest_checkpoint(config, run_dir, reviews, device)
    set_seed(config.seed)
    model = build_model(config.model, len(reviews.tokenizer), config.data.max_length).to(device)
    # Each process draws its own dropout.
    torch.manual_seed(config.seed + distributed.rank())
    if config.train.compile:
        model.compile(dynamic=True)
    started = now(device)
    if config.train.cache_frozen_features and config.model.backbone == "bert":
        with distributed.main_process_first(), autocast(config, device):
            reviews = keep_frozen(config, model, reviews)
    if resumed is None and distributed.is_main_process():
        clear_run(run_dir)
        write_text(run_dir / "config.yaml", to_yaml(config))
    distributed.barrier()
    record = fit(config, model, reviews, device, run_dir, spent=now(device) - started, resumed=resumed)
    del model
    gc.collect()
    best = best_path(run_dir, record.best["step"])
    model = load_model(best)[0].to(device)
    started = time.perf_counter()
    test = evaluate(model, reviews.test, config, device)
    summary = summarize(config, model, reviews, record, test, time.perf_counter() - started, device)
    if distributed.is_main_process():
        complete_run(run_dir, best, reviews.test, test.probabilities, summary)
    distributed.barrier()
    log.info(
        "%s: best validation accuracy %.1f%% (step %d), test accuracy %.1f%%, %.0f s of training",
        run_dir,
        100 * summary["best_validation_accuracy"],
        summary["best_validation_step"],
        100 * test.accuracy,
        summary["train_seconds"],
    )
    return summary


def keep_frozen(config: Config, model: ReviewClassifier, reviews: Reviews) -> Reviews:
    """The splits with the outputs of the frozen layers in their batches; the test split, read once, without."""
    folder, precision = Path(config.data.cache_dir), config.train.cache_frozen_features
    kept = {
        name: FrozenFeatures(getattr(reviews, name), model.backbone, folder, precision, config.train.eval_batch_size)
        for name in ("train", "validation")
    }
    return replace(reviews, **kept)


# ---------------------------------------------------------------- fitting


def fit(
    config: Config,
    model: ReviewClassifier,
    reviews: Reviews,
    device: torch.device,
    run_dir: Path,
    spent: float = 0.0,
    resumed: Path | None = None,
) -> Record:
    """Train `model`, evaluating and saving as it goes; the best model by validation is kept in `run_dir`.

    Args:
        config: the run's settings.
        model: on `device`.
        reviews: the splits; the test split is not read.
        device: where to train.
        run_dir: gets a line of metrics.jsonl an evaluation, and the checkpoints.
        spent: seconds that count as training already, such as those for the frozen layers' outputs.
        resumed: the checkpoint to go on from; None starts at the beginning.

    Raises:
        FloatingPointError: a loss or gradient became infinite or nan; the weights are those before that step.
        RunError: no memory, or no space on the disk.
        InterruptedRun: SIGTERM or Ctrl-C came; the state is saved.
    """
    trainer = Trainer(config, model, reviews, device, run_dir)
    trainer.record.train_seconds += spent
    if resumed is not None:
        trainer.load(resumed)
    with stop_requests() as stop, trainer.progress:
        while trainer.record.epoch <= config.train.epochs:
            trainer.train_epoch(stop)
    record = trainer.record
    # A run that was killed after its last step has only its log to tell.
    record.memory = trainer.memory.result() if trainer.memory.samples else record.last["memory"]
    # One that goes on after its last step never began an epoch.
    model.start_epoch(config.train.epochs)
    record.trainable_parameters = count_parameters(model, trainable=True)
    return record


class Trainer:
    """A fit in progress: the model with all that its next step depends on. Arguments as of `fit`."""

    def __init__(self, config: Config, model: ReviewClassifier, reviews: Reviews, device: torch.device, run_dir: Path):
        self.config, self.model, self.reviews, self.device, self.run_dir = config, model, reviews, device, run_dir
        settings = config.train
        self.epoch_steps = -(-len(reviews.train) // settings.batch_size)
        steps = settings.epochs * self.epoch_steps
        self.optimizer, self.lr_scheduler = build_optimizer(config, model, steps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.record = Record(micro_batch_size=settings.micro_batch_size)
        self.finite = FiniteGuard(self.optimizer, device)
        self.interval = torch.zeros(2, dtype=torch.float64, device=device)
        self.memory = MemoryMeter(device)
        self.progress = tqdm(
            total=steps, unit="step", disable=None if distributed.is_main_process() else True, leave=False
        )
        self.ticked = self.saved = now(device)

    def train_epoch(self, stop: StopRequest) -> None:
        """The rest of the epoch at which the record stands."""
        record = self.record
        self.model.start_epoch(record.epoch)
        self.model.train()
        batches = self.batches(record.epoch)
        for indices, batch in self.shares(batches[record.epoch_step :]):
            self.step(indices, batch)
            at_end = record.epoch_step == self.epoch_steps
            if record.step % self.config.train.eval_steps == 0 or at_end:
                self.validate()
            if at_end:
                record.epoch, record.epoch_step = record.epoch + 1, 0
            stopped, due = distributed.any_process(bool(stop.signum), self.checkpoint_due(), device=self.device)
            if at_end or due or stopped:
                self.save()
            if stopped:
                message = f"{self.run_dir}: stopped after step {record.step}, which is saved; the same command goes on"
                raise InterruptedRun(stop.signum or signal.SIGTERM, message)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """The training reviews of each step of an epoch, for all processes."""
        lengths, by_length = self.reviews.train.lengths, self.config.data.group_by_length
        return training_batches(lengths, self.config.train.batch_size, self.config.seed, epoch, by_length)

    def shares(self, batches: list[np.ndarray]) -> Iterator[tuple[np.ndarray, dict[str, Tensor] | None]]:
        """Each batch's indices and this process's reviews of it, None where there are fewer than processes."""
        mine = [np.asarray(distributed.shard(list(batch))) for batch in batches]
        loaded = batch_loader(self.reviews.train, [share for share in mine if len(share)], self.device)
        for batch, share in zip(batches, mine, strict=True):
            yield batch, next(loaded) if len(share) else None

    def step(self, indices: np.ndarray, batch: dict[str, Tensor] | None) -> None:
        """One step of the optimiser on the training reviews `indices`; `batch` is this process's share of them."""
        record = self.record
        loss, logits = self.step_within_memory(indices, batch)
        record.step += 1
        record.epoch_step += 1
        record.reviews_seen += len(indices)
        record.interval_reviews += len(indices)
        correct = (logits.argmax(dim=1) == batch["labels"]).sum() if batch else loss.new_zeros(())
        self.interval += torch.stack([loss.double() * len(indices), correct.double()])
        # Reading costs nothing on a CPU; elsewhere it would make the host wait for the device at every step.
        if self.device.type == "cpu":
            self.check_finite()
        self.memory.sample()
        self.progress.update()

    def step_within_memory(self, indices: np.ndarray, batch: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """`training_step`; without memory for it, in halves where the settings allow that."""
        settings, record = self.config.train, self.record
        before = random_states() if settings.auto_find_micro_batch_size else None
        arguments = self.optimizer, self.lr_scheduler, self.scaler, self.config
        while True:
            try:
                return training_step(self.model, batch, *arguments, self.finite, len(indices), record.micro_batch_size)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                reason = f"no memory for step {record.step + 1} ({' '.join(str(error).split())[:120]})"
            size = min(record.micro_batch_size or len(indices), len(indices))
            if before is None or size == 1 or distributed.world_size() > 1:
                raise RunError(
                    f"{self.run_dir}: {reason}: lower train.batch_size or data.max_length; or keep the batch and set "
                    f"train.micro_batch_size={max(1, size // 2)}, or train.auto_find_micro_batch_size=true (one process)"
                )
            self.optimizer.zero_grad(set_to_none=True)
            gc.collect()
            torch.cuda.empty_cache()
            set_random_states(*before)
            record.micro_batch_size = size // 2
            log.warning("%s; going on with %d reviews at a time", reason, record.micro_batch_size)

    def check_finite(self) -> None:
        """Stop (`FloatingPointError`) if a loss or gradient was no number; no step has followed it."""
        step = self.finite.first_bad_step()
        if step is None:
            return
        epoch, position = divmod(step - 1, self.epoch_steps)
        batch = self.batches(epoch + 1)[position]
        rate = self.lr_scheduler.base_lrs[0] * self.lr_scheduler.lr_lambdas[0](step - 1)
        saved = checkpoints_of(self.run_dir)
        raise FloatingPointError(
            f"{self.run_dir}: a loss or gradient is infinite or nan at step {step}, at learning rate {rate:g}; "
            f"lower train.learning_rate. The step was not made; "
            + (f"{saved[0].name} is the last checkpoint; " if saved else "")
            + f"its reviews are the rows {self.reviews.train.rows[batch].tolist()} of the training data"
        )

    def tick(self, what: str) -> None:
        """Count the seconds since the last tick as `what`: train, evaluation or checkpoint."""
        before, self.ticked = self.ticked, now(self.device)
        key = f"{what}_seconds"
        setattr(self.record, key, getattr(self.record, key) + self.ticked - before)

    def validate(self) -> None:
        """Evaluate on the validation split, log a line, and keep the model if it is the best so far."""
        record = self.record
        self.tick("train")
        self.check_finite()
        train_loss, correct = (distributed.all_reduce_sum(self.interval.clone()) / record.interval_reviews).tolist()
        result = evaluate(self.model, self.reviews.validation, self.config, self.device)
        self.tick("evaluation")
        if not np.isfinite(result.loss):
            raise FloatingPointError(
                f"{self.run_dir}: the validation loss is {result.loss} after step {record.step}, at learning rate "
                f"{self.optimizer.param_groups[0]['lr']:g}; lower train.learning_rate"
            )
        line = {
            "step": record.step,
            "epoch": record.epoch,
            "reviews_seen": record.reviews_seen,
            "train_loss": train_loss,
            "train_accuracy": correct,
            "validation_loss": result.loss,
            "validation_accuracy": result.accuracy,
            "validation_f1": result.f1,
            "train_seconds": round(record.train_seconds, 3),
            "evaluation_seconds": round(record.evaluation_seconds, 3),
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
            "micro_batch_size": record.micro_batch_size,
            "memory": self.memory.result(),
        }
        self.interval.zero_()
        record.interval_reviews = 0
        record.history.append(line)
        if distributed.is_main_process():
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        log.info(
            "  step %4d  epoch %d  train loss %.4f  validation loss %.4f  accuracy %.4f",
            *(line[key] for key in ("step", "epoch", "train_loss", "validation_loss", "validation_accuracy")),
        )
        if record.best is None or is_better(line, record.best, self.config.train.best_metric):
            record.best = line
            if distributed.is_main_process():
                self.save_best(result.probabilities)
        self.model.train()

    def save_best(self, probabilities: np.ndarray) -> None:
        """Keep the model as it is, with its predictions on the validation split."""
        reviews, settings = self.reviews, self.config

        def write(folder: Path) -> None:
            save_model(folder, self.model, settings.model, settings.data.max_length, reviews.tokenizer)
            write_predictions(folder / PREDICTIONS, reviews.validation, probabilities)

        write_folder(best_path(self.run_dir, self.record.step), write, bytes_of(self.model.state_dict()))
        self.tick("checkpoint")

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint falls here, by steps or by minutes."""
        settings = self.config.train
        by_steps = settings.save_steps and self.record.step % settings.save_steps == 0
        # As wall-clock: on CUDA the host need not wait for the device to know.
        by_time = time.perf_counter() - self.saved > 60 * settings.save_minutes
        return bool(by_steps or by_time)

    def save(self) -> None:
        """Write a checkpoint of all that the next steps depend on, and remove what is no longer needed."""
        self.tick("train")
        self.check_finite()
        sums = distributed.all_reduce_sum(self.interval.clone())
        self.record.interval_loss, self.record.interval_correct = sums.tolist()
        generators, other = random_states()
        generators = {
            f"{rank}.{name}": state
            for name, tensor in generators.items()
            for rank, state in enumerate(distributed.all_gather(tensor))
        }
        if distributed.is_main_process():
            tensors, groups = optimizer_state(self.optimizer)
            state = {
                "record": asdict(self.record),
                "settings": asdict(self.config),
                "data": self.reviews.fingerprint,
                "processes": distributed.world_size(),
                "device": device_name(self.device),
                "optimizer": groups,
                "schedule": self.lr_scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": other,
            }
            files = {"model": self.model.state_dict(), "optimizer": tensors, "random": generators}
            save_checkpoint(checkpoint_path(self.run_dir, self.record.step), files, state)
            prune(self.run_dir, best_step_of, self.record.best["step"] if self.record.best else None)
        self.tick("checkpoint")
        self.saved = time.perf_counter()

    def load(self, folder: Path) -> None:
        """Stand where the checkpoint was written.

        Raises:
            InputError: its files are whole, but are not the state of this run.
        """
        try:
            tensors, state = load_checkpoint(folder, STATE_FILES)
            self.record = Record.from_json(state["record"])
            self.check_position()
            self.model.load_state_dict(tensors["model"])
            set_optimizer_state(self.optimizer, tensors["optimizer"], state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            mine = {
                name.partition(".")[2]: s
                for name, s in tensors["random"].items()
                if name.startswith(f"{distributed.rank()}.")
            }
            set_random_states(mine, state["random"])
        except (
            DamagedError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            RuntimeError,
            AttributeError,
        ) as error:
            raise InputError(
                f"{folder}: not the state of this run: {str(error)[:300]}; overwrite=true starts the run again"
            ) from None
        if distributed.is_main_process():
            remove_newer(self.run_dir, folder)
            sums = [self.record.interval_loss, self.record.interval_correct]
            self.interval += torch.tensor(sums, dtype=self.interval.dtype, device=self.device)
            lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.record.history]
            write_text(self.run_dir / "metrics.jsonl", "".join(lines))
        self.finite.steps = self.record.step
        self.progress.update(self.record.step)
        self.ticked = self.saved = now(self.device)

    def check_position(self) -> None:
        """Raise ValueError where epoch and step don't fit each other, or the run."""
        record, epochs = self.record, self.config.train.epochs
        steps = (record.epoch - 1) * self.epoch_steps + record.epoch_step
        if not (1 <= record.epoch <= epochs + 1 and 0 <= record.epoch_step < self.epoch_steps):
            raise ValueError(f"epoch {record.epoch}, step {record.epoch_step} of it, is outside the run")
        if record.step != steps:
            raise ValueError(f"step {record.step} is not epoch {record.epoch}, step {record.epoch_step} of it")


class FiniteGuard:
    """Sees to it that no step follows a loss or gradient that is infinite or nan, without waiting for the device.

    The optimiser is given a flag as a gradient scaler gives it, on the device; the host looks when it logs.
    """

    def __init__(self, optimizer: AdamW, device: torch.device):
        self.optimizer = optimizer
        self.steps = 0
        self.first_bad = torch.zeros((), device=device)

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Note a step's loss and the norm of its gradient, before the optimiser's step."""
        self.steps += 1
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm)) & (self.first_bad == 0)
        self.first_bad = torch.where(bad, float(self.steps), self.first_bad)
        self.optimizer.found_inf = (self.first_bad > 0).float()

    def first_bad_step(self) -> int | None:
        """The first such step, from 1, in any process."""
        return int(self.first_bad.item()) or None


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that there is no memory; on a CPU torch says it in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def build_optimizer(config: Config, model: ReviewClassifier, steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW over all parameters (frozen ones have no gradient and stay) and its learning-rate schedule.

    Args:
        config: the run's settings.
        model: whose parameters to train.
        steps: of the whole run, over which the schedule stretches.
    """
    settings = config.train
    optimizer = AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    warmup = round(settings.warmup_ratio * steps)
    return optimizer, get_scheduler(settings.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


def training_step(
    model: ReviewClassifier,
    batch: dict[str, Tensor] | None,
    optimizer: AdamW,
    schedule: LRScheduler,
    scaler: torch.amp.GradScaler,
    config: Config,
    finite: "FiniteGuard | None" = None,
    total: int | None = None,
    micro_batch_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of the optimiser.

    Args:
        model: in training mode.
        batch: this process's share of the step's reviews; None where it has none.
        optimizer: of all parameters.
        schedule: of its learning rate.
        scaler: of the loss; enabled for fp16.
        config: the run's settings.
        finite: keeps the optimiser from a step that is no number; None lets it.
        total: reviews of the step in all processes; None for those of `batch`.
        micro_batch_size: reviews at a time, whose gradients are summed; None for all.

    Returns:
        The batch's share of the loss, a scalar (the shares of all processes sum to the mean over the step's reviews),
        and its logits (B, 2); detached, on the device.
    """
    losses, logits = [], []
    for part in micro_batches(batch, micro_batch_size):
        with autocast(config, part["labels"].device):
            output = model(**part)
        loss = output.loss * (len(part["labels"]) / (total or len(batch["labels"])))
        scaler.scale(loss).backward()
        losses.append(loss.detach())
        logits.append(output.logits.detach())
    distributed.sum_gradients(model.parameters())
    scaler.unscale_(optimizer)
    norm = clip_gradients(model, config.train.max_grad_norm)
    loss = torch.stack(losses).sum() if losses else torch.zeros_like(norm)
    if finite is not None:
        # With a gradient scaler an infinite gradient is no failure: the scaler skips the step and lowers the scale.
        finite.note(distributed.all_reduce_sum(loss.clone()), torch.zeros_like(norm) if scaler.is_enabled() else norm)
    scaler.step(optimizer)
    scaler.update()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, torch.cat(logits) if logits else norm.new_zeros(0, 2)


def micro_batches(batch: dict[str, Tensor] | None, size: int | None) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of at most `size` reviews; None is no batch, or all at once."""
    if batch is None:
        return
    count = len(batch["labels"])
    for start in range(0, count, size or count):
        yield {name: tensor[start : start + (size or count)] for name, tensor in batch.items()}


def clip_gradients(model: ReviewClassifier, limit: float | None) -> Tensor:
    """Scale the gradients down to the norm `limit` (None: leave them); returns their norm before."""
    if limit is not None:
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    return torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def autocast(config: Config, device: torch.device) -> torch.autocast:
    """The context of the forward pass: half precision where the settings ask for it."""
    dtype = PRECISIONS[config.train.precision]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def is_better(line: dict, best: dict, metric: str) -> bool:
    """Whether an evaluation beats the best by `metric`: higher accuracy (at a tie, lower loss), or lower loss."""
    if metric == "loss":
        return line["validation_loss"] < best["validation_loss"]
    key = (line["validation_accuracy"], -line["validation_loss"])
    return key > (best["validation_accuracy"], -best["validation_loss"])


# ---------------------------------------------------------------- evaluating


@dataclass(frozen=True)
class Evaluation:
    """Figures of a split: mean cross-entropy (nats), accuracy and F1 of the positive class, all by review, and
    the probability of positive of each review, (n,)."""

    loss: float
    accuracy: float
    f1: float
    probabilities: np.ndarray


def evaluate(model: ReviewClassifier, reviews: TokenizedReviews, config: Config, device: torch.device) -> Evaluation:
    """Figures of `model` on a split; the model is left in evaluation mode."""
    model.eval()
    logits = predict_logits(model, reviews, config.train.eval_batch_size, device, config)
    labels = torch.from_numpy(reviews.labels)
    predicted = logits.argmax(dim=1)
    hits = int((predicted * labels).sum())
    return Evaluation(
        loss=torch.nn.functional.cross_entropy(logits, labels).item(),
        accuracy=(predicted == labels).double().mean().item(),
        f1=2 * hits / max(1, int(predicted.sum() + labels.sum())),
        probabilities=logits.softmax(dim=1)[:, 1].numpy(),
    )


@torch.inference_mode()
def predict_logits(
    model: ReviewClassifier, reviews: TokenizedReviews, batch_size: int, device: torch.device, config: Config
) -> Tensor:
    """Logits of each review in order, (n, 2), float64, on the CPU; batched by length."""
    batches = evaluation_batches(reviews.lengths, batch_size)
    mine = distributed.shard(batches)
    logits = torch.zeros(len(reviews), 2, dtype=torch.float64, device=device)
    for indices, batch in zip(mine, batch_loader(reviews, mine, device), strict=True):
        with autocast(config, device):
            found = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        logits[torch.from_numpy(indices).to(device)] = found.double()
    return distributed.all_reduce_sum(logits).cpu()


# ---------------------------------------------------------------- measuring


def summarize(
    config: Config,
    model: ReviewClassifier,
    reviews: Reviews,
    record: Record,
    test: Evaluation,
    test_seconds: float,
    device: torch.device,
) -> dict:
    """The run in one JSON object; accuracies are shares, times seconds, memory bytes."""
    packages = ("torch", "transformers", "datasets", "numpy")
    return {
        "experiment": config.experiment,
        "key": config.key,
        "name": config.name,
        "architecture": config.architecture,
        "profile": config.profile,
        "parameters": count_parameters(model),
        "trainable_parameters": record.trainable_parameters,
        "epochs": config.train.epochs,
        "steps": record.step,
        "train_loss": record.last["train_loss"],
        "train_accuracy": record.last["train_accuracy"],
        "best_validation_accuracy": record.best["validation_accuracy"],
        "best_validation_loss": record.best["validation_loss"],
        "best_validation_f1": record.best["validation_f1"],
        "best_validation_step": record.best["step"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_f1": test.f1,
        "train_seconds": round(record.train_seconds, 3),
        "evaluation_seconds": round(record.evaluation_seconds, 3),
        "test_seconds": round(test_seconds, 3),
        "checkpoint_seconds": round(record.checkpoint_seconds, 3),
        "steady_memory_bytes": record.memory["steady_bytes"],
        "peak_memory_bytes": record.memory["peak_bytes"],
        "memory": record.memory,
        "device": device_name(device),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seed": config.seed,
        "micro_batch_size": record.micro_batch_size,
        "world_size": distributed.world_size(),
        "data": {
            "source": config.data.source,
            "train": len(reviews.train),
            "validation": len(reviews.validation),
            "test": len(reviews.test),
            "fingerprint": reviews.fingerprint,
        },
        "completed": True,
    }


if __name__ == "__main__":
    sys.exit(main())
