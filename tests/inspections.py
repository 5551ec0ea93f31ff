"""A layer of ResNet-50 in the words of `cnn-triton inspect`, and what that command writes and prints."""

import json

from small import process

LAYER = ("conv2d_relu", "input=32x64x56x56", "weight=64x64x3x3", "bias=64", "padding=1")


def inspected(tmp_path, *args):
    """The figures that the command writes, and what it prints."""
    file = tmp_path / "figures.json"
    code, out, said = process("inspect", *args, "--json", file)
    assert code == 0, said
    return json.loads(file.read_text()), out
