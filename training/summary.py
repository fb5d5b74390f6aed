"""summary.json: a complete run in one JSON object, of a classifier or of the linear baseline alike."""

import platform
from importlib.metadata import version

from config import Config
from data import Reviews


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
