"""Many runs, of which the logs are kept: what the sweep and the training sizes share."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from config import Config, load_config
from training.device import pick_device
from training.jobs import default_jobs, run_at_a_time
from training.run_folder import finished_run


def run_missing(words: Sequence[Sequence[str]], last: Callable[[Path], None] = lambda folder: None) -> None:
    """Train the runs that are not complete; then keep only their logs: weights and states take 150 MB a run.

    Args:
        words: of each run, the experiment file and `key=value`, as train.py takes them.
        last: called with the folder of each complete run that still has its model.

    Raises:
        RunError, InterruptedRun: as `run_at_a_time`; the runs that are complete have their logs.
    """
    configs: list[Config] = [load_config(file, overrides) for file, *overrides in words]
    missing = [i for i, config in enumerate(configs) if finished_run(config, Path(config.run_dir)) is None]
    try:
        if missing:
            devices = [pick_device(configs[i].device, configs[i].train.precision) for i in missing]
            jobs = default_jobs(len(missing), devices)
            run_at_a_time([words[i] for i in missing], [configs[i] for i in missing], jobs)
    finally:
        for config in configs:
            folder = Path(config.run_dir)
            if (folder / "summary.json").is_file() and (folder / "best").is_dir():
                last(folder)
                for name in ("best", "checkpoints"):
                    shutil.rmtree(folder / name, ignore_errors=True)
