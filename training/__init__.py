"""What a run needs to live: trainer, checkpoints, run folders, processes, the device, cached frozen features.

Importing it, before torch, decides how long OpenMP's threads spin while they wait: briefly. Without a core of their own
they would spin for it, and a training step beside one other busy process takes several times as long
(`benchmarks/contention.py`). OpenMP reads its settings once, when torch is imported: hence here, and not in a function.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
