"""Products of matrices and what follows them: convolutions, linear and locally connected layers, their gradients."""
