"""Window arithmetic of convolutions and pools, memory layouts, checks of arguments: plain Python, no tensors."""
