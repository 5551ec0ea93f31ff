"""Benchmarks: operators and a training step, ours against PyTorch eager and torch.compile, in one run."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the interpreter's small steps are slower on several threads

import torch

if torch.cuda.is_available():
    os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # "0" is for looking at what compiles
