"""Benchmarks: operators and a training step, ours against PyTorch eager and torch.compile, in one run."""
