"""The training loop, and what a run consists of."""
