"""The pages: examples and commands work as written, links and paths lead somewhere, tables and figures are true."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bench.ledger import read
from cnn_triton import functional, nn
from test_package import files, python

ROOT = Path(__file__).parents[1]
PAGES = {name: (ROOT / name).read_text() for name in files("*.md")}
RESULTS = ROOT / "bench" / "results" / "no-gpu"
# The pages of users; the others' code blocks are parts of files.
GUIDES = [name for name in PAGES if name == "README.md" or name.startswith(("docs/", "examples/"))]


def blocks(page, language):
    """The code blocks of a language on a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def rows(page, columns):
    """The cells of the rows of a page's tables that have so many columns."""
    lines = [line.strip("|").split("|") for line in PAGES[page].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if len(line) == columns]


def test_readme_is_short():
    """It is read in two minutes, and its first example in seconds."""
    assert len(PAGES["README.md"].splitlines()) <= 120
    assert len(blocks("README.md", "python")[0].splitlines()) <= 12


EXAMPLES = {f"{page} {i}": code for page in GUIDES for i, code in enumerate(blocks(page, "python"), 1)}


@pytest.mark.cover
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(name, tmp_path):
    """They run as written, and print what their comments say they print; those with kernels from a file, of which
    Triton reads the source."""
    code, file = EXAMPLES[name], tmp_path / "example.py"
    file.write_text(code)
    said = python(f"import runpy; runpy.run_path({str(file)!r})", "simulating" not in code)
    for comment in re.findall(r"^print\(\w+(?:\[0\])?\)  # (.*)$", code, re.MULTILINE):
        assert all(words in said for words in re.split(r"; |: | \(| \.\.\.", comment)), said


def commands(page):
    """The words of each command line on a page, without comments."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@pytest.mark.parametrize("page", GUIDES)
def test_commands(page):
    """Every `make` has its target, and `cnn-triton` takes the options; so do commands in the text."""
    typer = pytest.importorskip("typer")
    from cnn_triton.cli.main import app

    program = typer.main.get_command(app)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    inline = [shlex.split(code) for code in re.findall(r"`((?:make|cnn-triton|python -m) [^`]+)`", PAGES[page])]
    for words in (*commands(page), *inline):
        if words[0] == "make":
            assert words[1] in targets, words
        if words[:2] == ["python", "-m"]:
            module = words[2].replace(".", "/")
            assert (ROOT / f"{module}.py").exists() or (ROOT / module / "__main__.py").exists(), words
        if "cnn-triton" in words and "--help" not in words:
            name, *arguments = words[words.index("cnn-triton") + 1 :]
            if arguments:
                program.commands[name].make_context(name, arguments)
            assert name in program.commands


def slug(heading):
    """A heading's name in links, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Every relative link leads to a file, and where it names a heading, to one that the file has."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, heading = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if heading:
            assert heading in map(slug, re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)), target


@pytest.mark.parametrize("page", GUIDES)
def test_paths(page):
    """Every file and folder of the repository that a page names is there."""
    for path in re.findall(r"`((?:kernels|cnn_triton|tests|bench|docs|examples)/[\w./-]*)`", PAGES[page]):
        assert (ROOT / path).exists(), path


def test_table_of_functions():
    """The table of torch.nn.functional is complete and true: what is here, its modules, what isn't."""
    told = {
        name: (here, re.findall(r"`(\w+)`", kinds))
        for names, here, kinds, _ in rows("docs/operators.md", 4)
        if here in ("yes", "no")
        for name in re.findall(r"`(\w+)`", names)
    }
    family = {name for name in dir(F) if re.search("conv|pool|linear|fold", name) and name[0] != "_"}
    family -= {name for name in family if name.endswith("_with_indices")} | {"upsample_bilinear"}
    assert set(told) == family | {"linear_cross_entropy"}  # which PyTorch has from 2.12
    assert {name for name, (here, _) in told.items() if here == "yes"} == set(functional.__all__) & family
    modules = {kind for _, kinds in told.values() for kind in kinds}
    assert modules == {kind for kind in nn.__all__ if hasattr(torch.nn, kind)}
    fused = {
        name
        for functions, kinds, _ in rows("docs/operators.md", 3)
        for name in re.findall(r"`(\w+)`", functions + kinds)
    }
    assert fused - {"conv2d", "linear"} == set(functional.__all__) - family | set(nn.__all__) - modules


def test_figures_of_the_ledger():
    """The rows in docs/performance.md are the ledger's."""
    ledger, told = read("sm_90"), rows("docs/performance.md", 8)[2:]
    assert told
    for layer, phase, *figures in told:
        row, *_ = (ledger.kernels[code] for code in ledger.codes[layer, phase, "bf16"])
        names = ("registers", "spills", "resident", "instruction", "tma", "per_flop")
        assert figures == [row[name] for name in names], (layer, phase)


def test_figures_of_the_classifier():
    """The shares and the numbers of weights in docs/classifier.md are those of the runs."""
    from cnn_triton.classifier.models import MODELS

    told = rows("docs/classifier.md", 3)[2:]
    for name, (_, weights, correct) in zip(("lenet5", "lenet5-local", "lenet5-full"), told, strict=True):
        config = json.loads((RESULTS / "compare" / name / "config.json").read_text())
        model = MODELS[name](config["channels"], (config["height"], config["width"]), len(config["classes"]))
        assert weights == f"{model.first.weight.numel():,}"
        head, *_, last = (RESULTS / "compare" / name / "metrics.csv").read_text().splitlines()
        row = dict(zip(head.split(","), last.split(","), strict=True))
        assert correct == f"{float(row['test_accuracy']):.1%}".replace("%", " %")
        assert (row["epoch"], row["test_images"]) == ("15", "360")
    assert f"classifies {told[0][2]} of 360 unseen digits" in PAGES["README.md"]


def measured(name):
    """A raw file of bench/results/no-gpu/."""
    return json.loads((RESULTS / name).read_text())


def test_figures_of_the_results():
    """What docs/results.md and docs/fusing.md say of conversion, host, memory and warm-up is in the raw files."""
    every = measured("fusing.json")["rows"]
    forward, training = ([row for row in every if row["mode"] == mode] for mode in ("forward", "training"))
    means = [statistics.geometric_mean(row["ratio"] for row in each) for each in (forward, training)]
    spans = [least_and_most(row["ratio"] for row in each) for each in (forward, training)]
    eleven = least_and_most(row["ratio"] for row in measured("converted.json")["rows"])
    fixed = [1e6 * row["a call without its graph, seconds"] for row in forward]
    first = [row["first call, seconds"] for row in every]
    host = [row["microseconds"]["ours"]["p50"] for row in measured("host.json")["rows"]]
    saved = [row["ratio"]["saved"] for row in measured("memory.json")["rows"]]
    ahead = measured("warmup-sm_90.json")
    told = {
        "docs/results.md": (
            "take {:.2f} of the original's time forward and {:.2f} in training".format(*means),
            f"of {len(forward)} networks", "takes {:.2f} to {:.2f}, eager and compiled".format(*eleven),
            "{:.0f} us forward, and {:.0f} us with the backward pass".format(*host),
            "keep {:.3f} (float32) and {:.3f} (bfloat16)".format(*saved[:2]),
            f"{ahead['launches']} launches have {ahead['kernels']} distinct kernels",
            f"two cores compile in {ahead['seconds']:.1f} s",
        ),
        "docs/fusing.md": (
            f"{len(forward)} converted networks",
            "take {:.2f} of the original's time forward (batch 1; {:.2f} to {:.2f})".format(means[0], *spans[0]),
            "{:.2f} in training (batch 2; {:.2f} to {:.2f})".format(means[1], *spans[1]),
            "spends {:.0f} to {:.0f} µs".format(*least_and_most(fixed)), f"(median {statistics.median(fixed):.0f} µs)",
            "takes {:.1f} to {:.1f} s".format(*least_and_most(first)), f"(median {statistics.median(first):.1f} s)",
        ),
    }  # fmt: skip
    for page, sentences in told.items():
        text = " ".join(PAGES[page].split())
        assert [words for words in sentences if words not in text] == [], page


def least_and_most(values):
    """The least and the largest value."""
    values = list(values)
    return min(values), max(values)
