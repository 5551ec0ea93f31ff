"""The ledger's commands: show its tables, check what changed against them, write them: python -m bench.ledger."""

import argparse
import importlib.metadata
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import CHIPS, Cell, Ledger, Row, child, compare, read, result, save, save_kernels, unclean
from .tables import summarize, table


def work(chip: str, **request: Any) -> tuple[str, dict[Cell, tuple[str, ...]], list[Row]]:
    """What a chip's launches compile to: Triton's version, the codes by cell, rows; see `compile_new`."""
    version = importlib.metadata.version("triton")
    known = [code for code, row in read(chip).kernels.items() if row["triton"] == version]
    return result(child(chip, known=known, **request))


def check(chips: list[str], sample: int, seed: int) -> int:
    """Does the ledger know all that is launched, and does a sample of it compile to the same, cleanly? 1 if not."""
    wrong = 0
    for chip in chips:
        ledger = read(chip)
        version, cells, rows = work(chip, new=False, sample=sample, seed=seed)
        unknown = [
            cell
            for cell, codes in cells.items()
            if ledger.codes.get(cell) != codes or any(code not in ledger.kernels for code in codes)
        ]
        _, other = compare(ledger, cells, rows)
        arithmetic = {code: cell[2] for cell, codes in cells.items() for code in codes}
        judged = [(row, unclean(chip, arithmetic[row["code"]], row)) for row in rows]
        other += [f"{row['code']}, {row['kernel']}: {what}" for row, what in judged if what]
        print(f"{chip}, Triton {version}: {len(cells)} launches, {len(rows)} kernels compiled again")
        for what in other:
            print(f"  not as it should be: {what}")
        if unknown:
            print(f"  {len(unknown)} launches are not in the ledger, e.g. {', '.join(unknown[0])}: make ledger")
        wrong += len(other) + len(unknown)
    return 1 if wrong else 0


def write(chips: list[str], reason: str, workers: int) -> int:
    """Compiles what the tables don't know, and replaces them; nothing, if something got worse without a reason."""
    ledgers = {chip: read(chip) for chip in chips}
    after: dict[str, Ledger] = {}
    unexplained = 0

    def job(chip: str) -> tuple[str, str, dict[Cell, tuple[str, ...]], list[Row]]:
        version, cells, rows = work(chip)
        with lock:  # what was compiled once is kept, whatever happens to the rest
            save_kernels(chip, ledgers[chip].kernels | {row["code"]: row for row in rows})
        return chip, version, cells, rows

    lock = threading.Lock()
    with ThreadPoolExecutor(workers) as pool:
        for chip, version, cells, rows in pool.map(job, chips):
            before = ledgers[chip]
            found, _ = compare(before, cells, rows)
            print(f"{chip}, Triton {version}: {len(cells)} launches, {len(rows)} kernels compiled, {len(found)} worse")
            reasons = {cell: text for cell, text in before.reasons.items() if cell in cells}
            for cell, what in found.items():
                print(f"  worse: {', '.join(cell)}: {what}")
                reasons[cell] = f"{what} (Triton {version}): {reason}"
            unexplained += 0 if reason else len(found)
            after[chip] = Ledger(cells, reasons, before.kernels | {row["code"]: row for row in rows})
    if unexplained:
        print(f"{unexplained} figures got worse: say why with --reason (make ledger REASON=...)", file=sys.stderr)
        return 1
    for chip, ledger in after.items():
        save(chip, ledger)
    summarize()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("show", "check", "write"))
    parser.add_argument("chips", nargs="*", help="all unless named; after `show` one, and words of layers")
    parser.add_argument("--reason", default="", help="why figures got worse")
    parser.add_argument("--sample", type=int, default=5, help="known codes that a check compiles again, a chip")
    parser.add_argument("--seed", type=int, default=0, help="which ones")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    if options.command == "show":
        chip, *words = options.chips or [CHIPS[0]]
        print("\n".join(table(chip, words)))
        return 0
    chips = options.chips or list(CHIPS)
    if options.command == "check":
        return check(chips, options.sample, options.seed)
    return write(chips, options.reason, options.workers)


if __name__ == "__main__":
    raise SystemExit(main())
