"""What is made of runs: comparisons, figures, the report; the linear baseline; robustness, saliency, transfer."""
