"""The ledger's two commands: check what changed against it, and write it anew: python -m bench.ledger check | write."""

import argparse
import importlib.metadata
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import CHIPS, OLDEST, Cell, Ledger, Row, child, compare, read, result, save, save_kernels


def versions() -> list[bool]:
    """Which Tritons are at hand: the environment's, and the oldest supported one where `make` has put it."""
    return [False, *([True] if OLDEST.exists() else [])]


def version_of(oldest: bool) -> str:
    """The version of the environment's Triton, or of the one in OLDEST."""
    if oldest:
        return next(OLDEST.glob("triton-*.dist-info")).name.removeprefix("triton-").removesuffix(".dist-info")
    return importlib.metadata.version("triton")


def work(chip: str, oldest: bool, **request: Any) -> tuple[str, dict[Cell, tuple[str, ...]], list[Row]]:
    """What a chip's launches compile to with one Triton: its version, the codes by cell, rows; see `compile_new`."""
    known = [code for code, version in read(chip).kernels if version == version_of(oldest)]
    return result(child(chip, oldest, known=known, **request))


def check(chips: list[str], sample: int, seed: int) -> int:
    """Does the ledger know all that is launched, and does a sample of it still compile to the same? 1 if not."""
    wrong = 0
    for oldest in versions():
        for chip in chips:
            ledger = read(chip)
            version, cells, rows = work(chip, oldest, new=False, sample=sample, seed=seed)
            unknown = [
                cell
                for cell, codes in cells.items()
                if ledger.codes.get(cell) != codes or any((code, version) not in ledger.kernels for code in codes)
            ]
            _, other = compare(ledger, version, cells, rows)
            print(f"{chip}, Triton {version}: {len(cells)} launches, {len(rows)} kernels compiled again")
            for what in other:
                print(f"  not as in the ledger: {what}")
            if unknown:
                print(f"  {len(unknown)} launches are not in the ledger, e.g. {', '.join(unknown[0])}: make ledger")
            wrong += len(other) + len(unknown)
    return 1 if wrong else 0


def write(chips: list[str], reason: str, workers: int) -> int:
    """Compiles what the tables don't know, and replaces them; nothing, if something got worse without a reason."""
    ledgers = {chip: read(chip) for chip in chips}
    after: dict[str, Ledger] = {}
    unexplained = 0

    def job(task: tuple[str, bool]) -> tuple[str, str, dict[Cell, tuple[str, ...]], list[Row]]:
        chip, oldest = task
        version, cells, rows = work(chip, oldest)
        with lock:  # what was compiled once is kept, whatever happens to the rest
            ledgers[chip].kernels.update({(row["code"], version): row for row in rows})
            save_kernels(chip, ledgers[chip].kernels)
        return chip, version, cells, rows

    lock = threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        for chip, version, cells, rows in pool.map(job, [(chip, oldest) for oldest in versions() for chip in chips]):
            before = ledgers[chip]
            found, _ = compare(before, version, cells, rows)
            print(f"{chip}, Triton {version}: {len(cells)} launches, {len(rows)} kernels compiled, {len(found)} worse")
            reasons = after[chip].reasons if chip in after else {c: r for c, r in before.reasons.items() if c in cells}
            for cell, what in found.items():
                print(f"  worse: {', '.join(cell)}: {what}")
                reasons[cell] = f"{what} (Triton {version}): {reason}"
            unexplained += 0 if reason else len(found)
            after[chip] = Ledger(cells, reasons, before.kernels)
    if unexplained:
        print(f"{unexplained} figures got worse: say why with --reason (make ledger REASON=...)", file=sys.stderr)
        return 1
    for chip, ledger in after.items():
        save(chip, ledger)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("check", "write"))
    parser.add_argument("chips", nargs="*", default=list(CHIPS), help="all unless named")
    parser.add_argument("--reason", default="", help="why figures got worse")
    parser.add_argument("--sample", type=int, default=5, help="known codes that a check compiles again, a chip")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.command == "check":
        return check(options.chips, options.sample, options.seed)
    return write(options.chips, options.reason, options.workers)


if __name__ == "__main__":
    raise SystemExit(main())
