"""What a run needs to live: trainer, checkpoints, run folders, processes, the device, cached frozen features."""
