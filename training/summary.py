"""summary.json: a complete run in one JSON object, of a classifier or of the linear baseline alike."""

import platform
from importlib.metadata import version

from config import Config
from data import Reviews
from models import ReviewClassifier, count_parameters
from training import distributed
from training.evaluation import Evaluation
from training.run_folder import Record


def build_summary(config: Config, reviews: Reviews, measured: dict, packages: tuple[str, ...]) -> dict:
    """The run in one JSON object; accuracies are shares, times seconds, memory bytes.

    Args:
        config: whose identity, seed and data count.
        reviews: the splits.
        measured: what the run measured: metrics, times, `memory` of a `MemoryMeter`, the device.
        packages: whose versions to note.
    """
    memory = measured["memory"]
    return {
        "experiment": config.experiment,
        "key": config.key,
        "name": config.name,
        "architecture": config.architecture,
        "profile": config.profile,
        **measured,
        "steady_memory_bytes": memory["steady_bytes"],
        "peak_memory_bytes": memory["peak_bytes"],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "seed": config.seed,
        "data": {
            "source": config.data.source,
            "train": len(reviews.train),
            "validation": len(reviews.validation),
            "test": len(reviews.test),
            "fingerprint": reviews.fingerprint,
        },
        "completed": True,
    }


def run_measurements(
    config: Config, model: ReviewClassifier, record: Record, test: Evaluation, test_seconds: float
) -> dict:
    """What a run measured, for its summary."""
    return {
        "parameters": count_parameters(model),
        "trainable_parameters": record.trainable_parameters,
        "epochs": config.train.epochs,
        "extended_from_epochs": record.extended_from_epochs,
        "init_from": record.init_from,
        "steps": record.step,
        "train_loss": record.last["train_loss"],
        "train_accuracy": record.last["train_accuracy"],
        "train_sample_accuracy": record.last["train_sample_accuracy"],
        "best_validation_accuracy": record.best["validation_accuracy"],
        "best_validation_loss": record.best["validation_loss"],
        "best_validation_f1": record.best["validation_f1"],
        "best_validation_step": record.best["step"],
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_f1": test.f1,
        "train_seconds": round(record.train_seconds, 3),
        "frozen_features_seconds": round(record.frozen_features_seconds, 3),
        "evaluation_seconds": round(record.evaluation_seconds, 3),
        "test_seconds": round(test_seconds, 3),
        "checkpoint_seconds": round(record.checkpoint_seconds, 3),
        "memory": record.memory,
        "micro_batch_size": record.micro_batch_size,
        "world_size": distributed.world_size(),
    }
