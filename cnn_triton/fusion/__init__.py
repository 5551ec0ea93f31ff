"""Our kernels in the graphs that TorchDynamo captures of a model: graph passes, torch.compile's backend, `convert`."""
