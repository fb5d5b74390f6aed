"""The lines of metrics.jsonl as scalars of TensorBoard, for `train.tensorboard`; the package is an extra."""

from pathlib import Path

from config import InputError

EVENTS = "tensorboard"


class ScalarWriter:
    """Writes each evaluation's numbers under their names to the folder `tensorboard` of a run.

    Args:
        run_dir: the run's folder.
        step: after which the run goes on; what an earlier process wrote beyond it is void.

    Raises:
        InputError: the package is not installed.
    """

    def __init__(self, run_dir: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            message = "train.tensorboard=true needs the package tensorboard: pip install tensorboard"
            raise InputError(message) from None
        self.writer = SummaryWriter(run_dir / EVENTS, purge_step=step + 1)

    def write(self, line: dict) -> None:
        """The numbers of a line of metrics.jsonl; those of `memory` as `memory/steady_bytes`."""
        memory = {f"memory/{name}": value for name, value in line["memory"].items()}
        for name, value in (line | memory).items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, line["step"])
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()
