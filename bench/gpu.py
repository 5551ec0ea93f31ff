"""On a machine with a CUDA GPU: native tests, memory checker, benchmarks, into one folder: python -m bench.gpu."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def part(name: str, command: list[str], out: Path, minutes: float) -> bool:
    """Runs a part with its output in a log; a part out of time leaves what it had."""
    print(f"{name}: {' '.join(command)}", flush=True)
    with (out / f"{name}.log").open("w") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, cwd=ROOT, timeout=60 * minutes, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {minutes} minutes\n")
            code = -1
    lines = (out / f"{name}.log").read_text().strip().splitlines()
    print(f"{name}: exit {code}; {lines[-1] if lines else 'no output'}", flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("tests", "sanitizer", "bench"), help="one part alone")
    parser.add_argument("--out", type=Path, help="folder; bench/results/<gpu> unless given")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA GPU is here; `make bench` times the interpreter instead", file=sys.stderr)
        return 2
    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    out = (options.out or ROOT / "bench" / "results" / gpu).resolve()
    out.mkdir(parents=True, exist_ok=True)
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = ["tests/test_ops.py", "tests/test_gradients.py", "tests/test_tiles.py", "tests/test_semantics.py"]
    native = [*pytest, "-n", "8", *tests, "tests/test_nn.py", "tests/test_cli.py", "--cover", "0.3"]
    checked = [*pytest, "-n", "0", *tests[:3], "--cover", "0.01", "-k", "accuracy or tile"]
    sanitizer = shutil.which("compute-sanitizer")
    parts = {
        "tests": (native, 3.5),
        "sanitizer": ([sanitizer or "", "--tool", "memcheck", "--error-exitcode", "1", *checked], 1.5),
        "bench": ([sys.executable, "-m", "bench.run", "--out", str(out), "--minutes", "4"], 4.5),
    }
    passed = True
    for name, (command, minutes) in parts.items():
        if options.part not in (None, name):
            continue
        if not command[0]:
            print(f"{name}: skipped, no compute-sanitizer on the PATH", flush=True)
            continue
        passed &= part(name, command, out, minutes)
    print(f"written to {out}")
    return 0 if passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
