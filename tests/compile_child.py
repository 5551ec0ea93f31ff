"""Run by test_compile.py in a process without the interpreter: compiles what launchers launch, prints it as JSON.

python compile_child.py CHIP CALLS VERSION, where CALLS is JSON: a list of {"what", "dtype", "dot", "tile"} (see
`call`), and VERSION that of Triton, or "pinned".
"""

import json
import sys
from itertools import pairwise

import torch
import triton

from cnn_triton.kernels.compiler import aot
from cnn_triton.kernels.tiles import pick, shapes
from compile_calls import call


def main():
    chip, calls, version = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    assert version in ("pinned", triton.__version__), f"this is Triton {triton.__version__}, not {version}"
    ends = [0]
    with aot.recording(chip) as codes:  # what several calls launch is compiled once
        for each in calls:
            torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = each["dot"]
            given = each["tile"] and shapes.Tile(*each["tile"])
            if given:
                given = given._replace(box=given.box and tuple(given.box), programs=1)
            op, args = call(each["what"], getattr(torch, each["dtype"]), each["channels"])
            with pick.overriding(lambda picked, *problem, given=given: given or picked):
                op.launch(*args)
            ends.append(len(codes))
    for first, end in pairwise(ends):
        print(json.dumps([code._asdict() for code in codes[first:end]]))


if __name__ == "__main__":
    main()
