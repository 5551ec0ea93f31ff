"""How long a warm-up of ResNet-50 takes, with nothing in Triton's cache: python -m bench.warmup [--chip sm_90].

A batch of 32 images of 3 x 224 x 224 in bfloat16, channels_last. Without --chip for the GPU here; with --out the
figures go into a file, as JSON.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: it is to compile

import torch

import cnn_triton

from .networks import ResNet50
from .report import environment

SHAPE = (32, 3, 224, 224)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", help="another than the GPU here, as in sm_90")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads; as many as CPUs unless given")
    parser.add_argument("--out", type=Path, help="file for the figures, as in bench/results/<gpu>/warmup.json")
    options = parser.parse_args(arguments)
    if options.chip is None and not torch.cuda.is_available():
        parser.error("no GPU is here; name a chip, as in --chip sm_90")
    device = torch.device("meta" if options.chip else "cuda")  # of which a warm-up reads nothing
    with device:
        model = ResNet50().bfloat16().to(memory_format=torch.channels_last)
        images = torch.empty(SHAPE, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        try:
            done = cnn_triton.warmup(model, images, chip=options.chip, workers=options.workers)
        except ValueError as error:
            parser.error(str(error))
    print(f"{type(model).__name__}, {' x '.join(map(str, SHAPE))}, bfloat16, {options.workers} workers: {done}")
    if options.out:
        where = environment(torch.device("cpu") if options.chip else device)
        where |= {"CPUs": str(os.cpu_count()), "kernels": f"Triton kernels, compiled for {done.chip}"}
        figures = {"environment": where, "workers": options.workers, "shape": SHAPE, **done._asdict()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
