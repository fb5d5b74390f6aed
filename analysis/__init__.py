"""What is made of runs: comparisons, figures, the report; the linear baseline; robustness, saliency, transfer."""

import training  # noqa: F401  before torch
