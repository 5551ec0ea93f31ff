"""Run the command line: `python -m cnn_triton.cli`."""

from .main import main

main()
