"""What TorchDynamo captured of a model, with our kernels put in: graph passes, torch.compile's backend, `convert`."""
