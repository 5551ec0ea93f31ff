"""Kernels that go once over all elements of a batch of images: in strips, and sums in a fixed order."""
