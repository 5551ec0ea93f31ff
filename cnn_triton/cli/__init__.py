"""The command line: `cnn-triton`, or `python -m cnn_triton.cli`."""
