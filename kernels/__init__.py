"""Triton kernels of convolutional networks, with their shape arithmetic and launchers; no autograd, no modules."""
