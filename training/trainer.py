"""Training: epochs, steps, evaluations, and the checkpoints from which a run resumes."""

import contextlib
import gc
import json
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm
from transformers import get_scheduler

from config import Config, InputError, RunError, TrainConfig
from data import Reviews, batch_loader, training_batches, write_text
from models import ReviewClassifier, count_parameters, save_model
from training import distributed
from training.checkpoint import (
    best_path,
    checkpoint_path,
    checkpoints_of,
    load_checkpoint,
    num_bytes,
    optimizer_state,
    prune,
    random_states,
    remove_newer,
    save_checkpoint,
    set_optimizer_state,
    set_random_states,
    write_folder,
)
from training.device import MemoryMeter, device_name, now
from training.evaluation import Evaluation, autocast, evaluate
from training.interrupts import InterruptedRun, StopRequest, stop_requests
from training.run_folder import PREDICTIONS, STATE_FILES, Record, write_predictions
from training.tensorboard import ScalarWriter

log = logging.getLogger(__name__)

# Steps after which a run says how long it will take.
PACE_STEPS = 100


class Trainer:
    """Trains a model, evaluating and saving as it goes; the best model by validation is kept in the run's folder.

    Args:
        config: the run's settings.
        model: on `device`.
        reviews: the splits; the test split is not read.
        device: where to train.
        run_dir: gets a line of metrics.jsonl an evaluation, and the checkpoints.
    """

    def __init__(self, config: Config, model: ReviewClassifier, reviews: Reviews, device: torch.device, run_dir: Path):
        self.config, self.model, self.reviews, self.device, self.run_dir = config, model, reviews, device, run_dir
        self.epoch_steps = -(-len(reviews.train) // config.train.batch_size)
        num_steps = config.train.epochs * self.epoch_steps
        self.step = TrainingStep(model, config.train, num_steps, device)
        self.record = Record(micro_batch_size=config.train.micro_batch_size)
        self.train_sample = self._choose_train_sample()
        # Sums over the interval since the last evaluation: loss x reviews, correct predictions, norm of the gradient.
        self.interval = torch.zeros(3, dtype=torch.float64, device=device)
        self.memory = MemoryMeter(device)
        self.scalars: ScalarWriter | None = None
        no_bar = None if distributed.is_main_process() else True
        self.progress = tqdm(total=num_steps, unit="step", disable=no_bar, leave=False)
        self.ticked = self.saved = now(device)
        self.pace_from = 0, self.ticked

    def _choose_train_sample(self) -> np.ndarray | None:
        """Positions of the training reviews on which it is evaluated too: the same in each run on these reviews."""
        size, count = self.config.train.train_sample, len(self.reviews.train)
        if size is None:
            return None
        return np.random.default_rng(self.config.data.split_seed).choice(count, min(size, count), replace=False)

    def fit(self, resume_from: Path | None = None, frozen_features_seconds: float = 0.0) -> Record:
        """Train to the end.

        Args:
            resume_from: a checkpoint to resume from; None starts at the beginning.
            frozen_features_seconds: that the cached frozen features took; they count as training.

        Raises:
            FloatingPointError: a non-finite loss or gradient; the weights are those before that step.
            RunError: no memory, or no space on the disk.
            InterruptedRun: SIGTERM or Ctrl-C came; the state is saved.
        """
        if resume_from is not None:
            self.load(resume_from)
        self.record.train_seconds += frozen_features_seconds
        self.record.frozen_features_seconds += frozen_features_seconds
        self.pace_from = self.record.step, now(self.device)
        with contextlib.ExitStack() as stack:
            if self.config.train.tensorboard and distributed.is_main_process():
                self.scalars = ScalarWriter(self.run_dir, self.record.step)
                stack.callback(self.scalars.close)
            stop = stack.enter_context(stop_requests())
            stack.enter_context(self.progress)
            while self.record.epoch <= self.config.train.epochs:
                self.train_epoch(stop)
        record = self.record
        # A run that was killed after its last step has only its log to tell.
        record.memory = self.memory.result() if self.memory.samples else record.last["memory"]
        # One that resumes after its last step never began an epoch.
        self.model.start_epoch(self.config.train.epochs)
        record.trainable_parameters = count_parameters(self.model, trainable=True)
        return record

    def train_epoch(self, stop: StopRequest) -> None:
        """The rest of the epoch at which the record stands."""
        record = self.record
        self.model.start_epoch(record.epoch)
        self.model.train()
        for indices, batch in self.shares(self.batches(record.epoch)[record.epoch_step :]):
            self.train_step(indices, batch)
            self._report_pace()
            at_end = record.epoch_step == self.epoch_steps
            if record.step % self.config.train.eval_steps == 0 or at_end:
                self.validate()
            if at_end:
                record.epoch, record.epoch_step = record.epoch + 1, 0
            stopped, due = distributed.any_process(bool(stop.signum), self.is_save_due())
            if at_end or due or stopped:
                self.save()
            if stopped:
                raise InterruptedRun(
                    stop.signum or signal.SIGTERM,
                    f"{self.run_dir}: stopped after step {record.step}, whose state is saved; run the same command "
                    "again to resume",
                )

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

    def train_step(self, indices: np.ndarray, batch: dict[str, Tensor] | None) -> None:
        """One step of the optimiser on the training reviews `indices`; `batch` is this process's share of them."""
        record = self.record
        loss, logits = self._step_within_memory(indices, batch)
        record.step += 1
        record.epoch_step += 1
        record.reviews_seen += len(indices)
        record.interval_reviews += len(indices)
        record.interval_tokens += int(self.reviews.train.lengths[indices].sum())
        correct = (logits.argmax(dim=1) == batch["labels"]).sum() if batch else loss.new_zeros(())
        # All processes have the same gradient: one counts it.
        norm = self.step.gradient_norm.nan_to_num(posinf=0.0) * distributed.is_main_process()
        self.interval += torch.stack([loss.double() * len(indices), correct.double(), norm.double()])
        # Reading costs nothing on a CPU; elsewhere it would make the host wait for the device at every step.
        if self.device.type == "cpu":
            self.check_finite()
        self.memory.sample()
        self.progress.update()

    def _report_pace(self) -> None:
        """Once, how long the rest takes at the pace of the first steps of this process, evaluations included."""
        first_step, started = self.pace_from
        num_left = self.progress.total - self.record.step
        if self.record.step - first_step == PACE_STEPS and num_left:
            seconds = (now(self.device) - started) / PACE_STEPS
            minutes = max(1, round(num_left * seconds / 60))
            log.info("  step %4d  %.2f s a step, about %d min to go", self.record.step, seconds, minutes)

    def _step_within_memory(self, indices: np.ndarray, batch: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
        """A `TrainingStep`; when memory runs out, in halves where the settings allow that."""
        settings, record = self.config.train, self.record
        before = random_states() if settings.auto_find_micro_batch_size else None
        while True:
            try:
                return self.step(batch, len(indices), record.micro_batch_size)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = f"no memory for step {record.step + 1} ({' '.join(str(error).split())[:120]})"
            size = min(record.micro_batch_size or len(indices), len(indices))
            if before is None or size == 1 or distributed.world_size() > 1:
                raise RunError(
                    f"{self.run_dir}: {reason}: lower train.batch_size or data.max_length; or keep the batch and set "
                    f"train.micro_batch_size={max(1, size // 2)}, or (with one process) "
                    "train.auto_find_micro_batch_size=true"
                )
            self.step.undo()
            gc.collect()
            torch.cuda.empty_cache()
            set_random_states(*before)
            record.micro_batch_size = size // 2
            log.warning("%s; repeating it with %d reviews at a time", reason, record.micro_batch_size)

    def check_finite(self) -> None:
        """Stop (`FloatingPointError`) after a non-finite loss or gradient; no weight has changed since."""
        step = self.step.guard.first_bad_step()
        if step is None:
            return
        epoch, position = divmod(step - 1, self.epoch_steps)
        batch = self.batches(epoch + 1)[position]
        saved = checkpoints_of(self.run_dir)
        raise FloatingPointError(
            f"{self.run_dir}: non-finite (NaN/Inf) loss or gradient at step {step}, at learning rate "
            f"{self.step.learning_rate_at(step):g}; lower train.learning_rate. The step was not made; "
            + (f"{saved[0].name} is the last checkpoint; " if saved else "")
            + f"its reviews are the rows {self.reviews.train.rows[batch].tolist()} of the training data"
        )

    # ------------------------------------------------------------ evaluation

    def validate(self) -> None:
        """Evaluate on the validation split, log a line, and keep the model if it is the best so far."""
        record, settings = self.record, self.config.train
        self._count_time("train")
        self.check_finite()
        running = self._running_metrics()
        how = settings.eval_batch_size, self.device, settings.precision
        result = evaluate(self.model, self.reviews.validation, *how)
        sample = None
        if self.train_sample is not None:
            sample = evaluate(self.model, self.reviews.train, *how, self.train_sample)
        self._count_time("evaluation")
        for name, evaluation in (("validation loss", result), ("loss on train.train_sample", sample)):
            if evaluation is not None and not np.isfinite(evaluation.loss):
                raise FloatingPointError(
                    f"{self.run_dir}: the {name} is {evaluation.loss} after step {record.step}, at learning rate "
                    f"{self.step.learning_rate:g}; lower train.learning_rate"
                )
        self.interval.zero_()
        record.interval_reviews = record.interval_tokens = 0
        line = self._metrics_line(running, sample, result)
        self._log(line)
        if record.best is None or is_better(line, record.best, settings.best_metric):
            record.best = line
            if distributed.is_main_process():
                self.save_best(result.probabilities)
        self.model.train()

    def _running_metrics(self) -> dict[str, float]:
        """Of the steps since the last evaluation: means over the reviews, and over the steps the gradient's norm before
        it was clipped (0 where a gradient scaler skipped the step); tokens a second without evaluations."""
        record = self.record
        before = record.history[-1] if record.history else {"step": 0, "train_seconds": record.frozen_features_seconds}
        seconds = max(1e-3, record.train_seconds - before["train_seconds"])
        loss, num_correct, norm = distributed.all_reduce_sum(self.interval.clone()).tolist()
        return {
            "train_loss": loss / record.interval_reviews,
            "train_accuracy": num_correct / record.interval_reviews,
            "gradient_norm": norm / (record.step - before["step"]),
            "tokens_per_second": round(record.interval_tokens / seconds),
        }

    def _metrics_line(self, running: dict[str, float], sample: Evaluation | None, result: Evaluation) -> dict:
        """An evaluation's line of metrics.jsonl: of the steps since the last one, the training sample, validation."""
        record = self.record
        return {
            "step": record.step,
            "epoch": record.epoch,
            "reviews_seen": record.reviews_seen,
            **running,
            "train_sample_loss": sample and sample.loss,
            "train_sample_accuracy": sample and sample.accuracy,
            "validation_loss": result.loss,
            "validation_accuracy": result.accuracy,
            "validation_f1": result.f1,
            "train_seconds": round(record.train_seconds, 3),
            "evaluation_seconds": round(record.evaluation_seconds, 3),
            "learning_rate": self.step.lr_scheduler.get_last_lr()[0],
            "micro_batch_size": record.micro_batch_size,
            "memory": self.memory.result(),
        }

    def _log(self, line: dict) -> None:
        self.record.history.append(line)
        if distributed.is_main_process():
            with (self.run_dir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
            if self.scalars is not None:
                self.scalars.write(line)
        log.info(
            "  step %4d  epoch %d  train loss %.4f  validation loss %.4f  accuracy %.4f",
            *(line[key] for key in ("step", "epoch", "train_loss", "validation_loss", "validation_accuracy")),
        )

    def save_best(self, probabilities: np.ndarray) -> None:
        """Keep the model as it is, with its predictions on the validation split."""
        reviews = self.reviews

        def write(folder: Path) -> None:
            save_model(folder, self.model, reviews.tokenizer)
            write_predictions(folder / PREDICTIONS, reviews.validation, probabilities)

        write_folder(best_path(self.run_dir, self.record.step), write, num_bytes(self.model.state_dict()))
        self._count_time("checkpoint")

    def _count_time(self, what: str) -> None:
        """Count the seconds since the last call as `what`: train, evaluation or checkpoint."""
        before, self.ticked = self.ticked, now(self.device)
        key = f"{what}_seconds"
        setattr(self.record, key, getattr(self.record, key) + self.ticked - before)

    # ------------------------------------------------------------ checkpoints

    def is_save_due(self) -> bool:
        """Whether a checkpoint falls here, by steps or by minutes."""
        settings = self.config.train
        by_steps = settings.save_steps and self.record.step % settings.save_steps == 0
        # As wall-clock: on CUDA the host need not wait for the device to know.
        by_time = time.perf_counter() - self.saved > 60 * settings.save_minutes
        return bool(by_steps or by_time)

    def save(self) -> None:
        """Write a checkpoint of all that the next steps depend on, and remove what is no longer needed."""
        self._count_time("train")
        self.check_finite()
        sums = distributed.all_reduce_sum(self.interval.clone())
        record = self.record
        record.interval_loss, record.interval_correct, record.interval_gradient_norm = sums.tolist()
        generators, other_generators = random_states()
        generators = {
            f"{rank}.{name}": state
            for name, tensor in generators.items()
            for rank, state in enumerate(distributed.all_gather(tensor))
        }
        if distributed.is_main_process():
            optimizer_tensors, state = self.step.state()
            state |= {
                "record": asdict(self.record),
                "settings": asdict(self.config),
                "data": self.reviews.fingerprint,
                "world_size": distributed.world_size(),
                "device": device_name(self.device),
                "random": other_generators,
            }
            files = {"model": self.model.state_dict(), "optimizer": optimizer_tensors, "random": generators}
            save_checkpoint(checkpoint_path(self.run_dir, self.record.step), files, state)
            prune(self.run_dir, self.record.best["step"] if self.record.best else None)
        self._count_time("checkpoint")
        self.saved = time.perf_counter()

    def load(self, folder: Path) -> None:
        """Continue where the checkpoint was written.

        Raises:
            InputError: its files are whole, but are not the state of this run.
        """
        try:
            tensors, state = load_checkpoint(folder, STATE_FILES)
            self._restore(tensors, state)
        except (ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"{folder}: not the state of this run: {str(error)[:300]}; overwrite=true starts the run again"
            ) from None
        if distributed.is_main_process():
            remove_newer(self.run_dir, folder)
            record = self.record
            sums = [record.interval_loss, record.interval_correct, record.interval_gradient_norm]
            self.interval += torch.tensor(sums, dtype=self.interval.dtype, device=self.device)
            lines = [json.dumps(line, allow_nan=False) + "\n" for line in self.record.history]
            write_text(self.run_dir / "metrics.jsonl", "".join(lines))
        self.progress.update(self.record.step)
        self.ticked = self.saved = now(self.device)

    def _restore(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        """Set the record, the weights, the optimiser and the random generators."""
        self.record = Record.from_json(state["record"])
        self._check_position()
        epochs = state["settings"]["train"]["epochs"]
        if epochs < self.config.train.epochs:
            self.record.extended_from_epochs.append(epochs)
        self.model.load_state_dict(tensors["model"])
        self.step.set_state(tensors["optimizer"], state, self.record.step)
        prefix = f"{distributed.rank()}."
        mine = {name.removeprefix(prefix): s for name, s in tensors["random"].items() if name.startswith(prefix)}
        set_random_states(mine, state["random"])

    def _check_position(self) -> None:
        """Raise ValueError where epoch and step don't fit each other, or the run."""
        record, epochs = self.record, self.config.train.epochs
        steps = (record.epoch - 1) * self.epoch_steps + record.epoch_step
        if not (1 <= record.epoch <= epochs + 1 and 0 <= record.epoch_step < self.epoch_steps):
            raise ValueError(f"epoch {record.epoch}, step {record.epoch_step} of it, is outside the run")
        if record.step != steps:
            raise ValueError(f"step {record.step} is not epoch {record.epoch}, step {record.epoch_step} of it")


class TrainingStep:
    """One step of the optimiser: forward, backward, clip, update; called as `step(batch)`.

    Args:
        model: in training mode, on `device`.
        settings: of the optimiser, the schedule, clipping and precision.
        num_steps: of the whole run, over which the schedule stretches.
        device: where the model is.
    """

    def __init__(self, model: ReviewClassifier, settings: TrainConfig, num_steps: int, device: torch.device):
        self.model, self.settings, self.device = model, settings, device
        self.optimizer, self.lr_scheduler = build_optimizer(settings, model, num_steps)
        self.scaler = self._gradient_scaler()
        self.guard = NonFiniteGuard(self.optimizer, device)
        # Of the last step, before clipping; on the device.
        self.gradient_norm = torch.zeros((), device=device)

    def __call__(
        self, batch: dict[str, Tensor] | None, num_reviews: int | None = None, micro_batch_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make the step.

        Args:
            batch: this process's share of the step's reviews; None where it has none.
            num_reviews: of the step in all processes; None for those of `batch`.
            micro_batch_size: reviews at a time, whose gradients are summed; None for all.

        Returns:
            The batch's share of the loss, a scalar (the shares of all processes sum to the mean over the step's
            reviews), and its logits (B, 2); detached, on the device.
        """
        losses, logits = [], []
        for part in _micro_batches(batch, micro_batch_size):
            with autocast(self.settings.precision, self.device):
                output = self.model(**part)
            loss = output.loss * (len(part["labels"]) / (num_reviews or len(batch["labels"])))
            self.scaler.scale(loss).backward()
            losses.append(loss.detach())
            logits.append(output.logits.detach())
        distributed.sum_gradients(self.model.parameters())
        norm = self.gradient_norm = self._clip()
        loss = torch.stack(losses).sum() if losses else torch.zeros_like(norm)
        self._update(loss, norm)
        return loss, torch.cat(logits) if logits else norm.new_zeros(0, 2)

    def _clip(self) -> Tensor:
        """Scale the gradients down to the norm of the settings (None: leave them); returns their norm before."""
        self.scaler.unscale_(self.optimizer)
        if self.settings.max_grad_norm is not None:
            return torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        return torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])

    def _update(self, loss: Tensor, norm: Tensor) -> None:
        """Step the optimiser, unless the loss or the gradient is non-finite, and the schedule."""
        # With a gradient scaler an infinite gradient is no failure: the scaler skips the step and lowers the scale.
        norm = torch.zeros_like(norm) if self.scaler.is_enabled() else norm
        self.guard.note(distributed.all_reduce_sum(loss.clone()), norm)
        self.scaler.step(self.optimizer)
        self.guard.num_steps += 1
        self.scaler.update()
        self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)

    def undo(self) -> None:
        """After a step that failed for want of memory: forget its gradients, so that it can be made again."""
        self.optimizer.zero_grad(set_to_none=True)
        # The optimiser takes a parameter that has a count of steps for one that has both moments.
        for parameter, moments in list(self.optimizer.state.items()):
            if "exp_avg_sq" not in moments:
                del self.optimizer.state[parameter]
        # A scaler unscales once a step, and begins the next one in `update`, which also moves the scale.
        state, self.scaler = self.scaler.state_dict(), self._gradient_scaler()
        self.scaler.load_state_dict(state)

    def _gradient_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, enabled=self.settings.precision == "fp16")

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 1."""
        return self.lr_scheduler.base_lrs[0] * self.lr_scheduler.lr_lambdas[0](step - 1)

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Tensors, and everything else as JSON."""
        tensors, groups = optimizer_state(self.optimizer)
        schedules = {"lr_scheduler": self.lr_scheduler.state_dict(), "scaler": self.scaler.state_dict()}
        return tensors, {"optimizer": groups, **schedules}

    def set_state(self, tensors: dict[str, Tensor], state: dict, num_steps_done: int) -> None:
        """The inverse of `state`."""
        set_optimizer_state(self.optimizer, tensors, state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        # A run that is trained further has another schedule from here on.
        self.optimizer.param_groups[0]["lr"] = self.learning_rate_at(num_steps_done + 1)
        self.scaler.load_state_dict(state["scaler"])
        self.guard.num_steps = num_steps_done


class NonFiniteGuard:
    """Keeps the optimiser from stepping on a non-finite loss or gradient, without waiting for the device.

    The optimiser is given a flag as a gradient scaler gives it, on the device; the host looks when it logs.
    """

    def __init__(self, optimizer: AdamW, device: torch.device):
        self.optimizer = optimizer
        self.num_steps = 0  # done before this one
        self.first_bad = torch.zeros((), device=device)

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Note a step's loss and the norm of its gradient, before the optimiser's step."""
        is_bad = ~(torch.isfinite(loss) & torch.isfinite(norm)) & (self.first_bad == 0)
        self.first_bad = torch.where(is_bad, float(self.num_steps + 1), self.first_bad)
        self.optimizer.found_inf = (self.first_bad > 0).float()

    def first_bad_step(self) -> int | None:
        """The first such step, from 1, in any process."""
        return int(self.first_bad.item()) or None


def build_optimizer(settings: TrainConfig, model: ReviewClassifier, num_steps: int) -> tuple[AdamW, LRScheduler]:
    """AdamW over all parameters (frozen ones have no gradient and stay) and its learning-rate schedule.

    Args:
        settings: of both.
        model: whose parameters to train.
        num_steps: of the whole run, over which the schedule stretches.
    """
    optimizer = AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        eps=settings.adam_eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    warmup = round(settings.warmup_ratio * num_steps)
    return optimizer, get_scheduler(
        settings.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=num_steps
    )


def is_better(line: dict, best: dict, metric: str) -> bool:
    """Whether an evaluation beats the best by `metric`: higher accuracy (at a tie, lower loss), or lower loss."""
    if metric == "loss":
        return line["validation_loss"] < best["validation_loss"]
    key = (line["validation_accuracy"], -line["validation_loss"])
    return key > (best["validation_accuracy"], -best["validation_loss"])


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; a CPU's allocator and CUDA's libraries say it in words only."""
    words = ("can't allocate memory", "out of memory", "STATUS_ALLOC_FAILED", "ALLOCATION_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _micro_batches(batch: dict[str, Tensor] | None, size: int | None) -> Iterator[dict[str, Tensor]]:
    """A batch in parts of at most `size` reviews; None is no batch, or all at once."""
    if batch is None:
        return
    count = len(batch["labels"])
    for start in range(0, count, size or count):
        yield {name: tensor[start : start + (size or count)] for name, tensor in batch.items()}
