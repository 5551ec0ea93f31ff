"""The ledger for people: what its tables come to, and the kernels of chosen layers one by one."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from ..calls import ARITHMETICS, PASSES
from . import CHIPS, FOLDER, Ledger, Row, read

HEAD = """# What the kernels compile to

Made by `make ledger`, with Triton {version}. A row sums up the kernels of the 89 distinct layers of ResNet-50, VGG-16,
MobileNetV2, ConvNeXt-T and LeNet-5: those with a spilled register, the median and the most registers of a thread, those
whose main loop has matrix instructions, those whose operands come as boxes of the tensor memory accelerator, and the
median of machine instructions for 1,000 FLOP in a thread's main loop. `python -m bench.ledger show sm_90 3x3 256-256`
shows single layers.

"""
COLUMNS = ("chip", "arithmetic", "pass", "kernels", "spill", "registers", "matrix", "boxes", "instructions")


def _products(ledger: Ledger, arithmetic: str, what: str) -> list[Row]:
    """The distinct kernels of a pass, without the sums of their parts."""
    codes = {c for (_, p, a), every in ledger.codes.items() if (p, a) == (what, arithmetic) for c in every}
    return [ledger.kernels[code] for code in sorted(codes) if ledger.kernels[code]["kernel"] != "sum_kernel"]


def _summary(folder: Path) -> Iterator[tuple[str, ...]]:
    for chip in CHIPS:
        ledger = read(chip, folder)
        for arithmetic in ARITHMETICS:
            for what in PASSES:
                rows = _products(ledger, arithmetic, what)
                registers = [int(row["registers"]) for row in rows]
                costs = [float(row["per_flop"]) for row in rows if row["per_flop"]]
                some = {
                    name: sum(row[name] not in ("", "0") for row in rows) for name in ("spills", "loop_matrix", "tma")
                }
                yield (
                    chip, arithmetic, what, str(len(rows)), str(some["spills"]),
                    f"{median(registers):.0f}, {max(registers)}", str(some["loop_matrix"]), str(some["tma"]),
                    f"{median(costs):.3g}" if costs else "",
                )  # fmt: skip


def readme(folder: Path = FOLDER) -> str:
    """The text of README.md."""
    version = next(iter(read(CHIPS[0], folder).kernels.values()))["triton"]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *_summary(folder)]
    return HEAD.format(version=version) + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summarize(folder: Path = FOLDER) -> None:
    """README.md, replaced in one step."""
    part = folder / "README.md.part"
    part.write_text(readme(folder))
    part.replace(folder / "README.md")


def table(chip: str, words: Sequence[str] = (), folder: Path = FOLDER) -> Iterator[str]:
    """Lines of a table of a chip's kernels, of the layers whose names have all the words."""
    ledger = read(chip, folder)
    columns = ("kernel", "registers", "spills", "shared", "resident", "instruction", "tma", "load_bytes", "per_flop")
    rows = [("layer", "pass", "arithmetic", *columns)]
    for (layer, what, arithmetic), codes in ledger.codes.items():
        if all(word in f"{layer} {what} {arithmetic}" for word in words):
            rows += [(layer, what, arithmetic, *(ledger.kernels[code][name] for name in columns)) for code in codes]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
