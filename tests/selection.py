"""Which tests a run takes: all, a seeded cover of alike ones or what that leaves, an operator's, a changed file's.

--cover 0.05             of the tests marked `cover` a twentieth, by seed; and all others
--rest 0.05              exactly what `--cover 0.05` leaves out
--operator max_pool2d    the tests that name the operator
--touching FILE          the tests that say whether a file of the package still works
--most 300               of those marked `cover` that are left, so many at most, by seed
"""

import ast
import random
import re
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_left_out = [0]
# Test files of one subject, by its name.
_TILES = ("test_tiles", "test_tile_picks", "test_strips")
_SEMANTICS = ("test_semantics", "test_layouts", "test_dispatch")
_ECOSYSTEM = ("test_ecosystem", "test_torch_func", "test_torch_compile")
_NN = ("test_nn", "test_locally_connected")
_CONVERT = ("test_convert", "test_convert_chains", "test_convert_forward", "test_convert_changes")
_COMPILED = ("test_compiled", "test_compiled_errors", "test_compiled_others")
_CAPTURE = ("test_capture", "test_capture_apart", "test_capture_calls")
_INSPECT = ("test_inspect", "test_inspect_figures", "test_inspect_run", "test_examples")
_SIMULATOR = ("test_simulator_table", "test_simulator_instructions", "test_simulator_faults",
              "test_simulator_faults_by_hand", "test_simulator_kernels", "test_simulator_mutants",
              "test_simulator_operators", "test_counters")  # fmt: skip
_PAGES = ("test_report", "test_anatomy")
_BENCH = ("test_bench", "test_gpu_run", "test_prepared", "test_results")
# The test files in which each test names the operator, or the function, that it is about.
_BY_OPERATOR = ("test_ops", "test_gradients", "test_plan", *_SEMANTICS, *_ECOSYSTEM, "test_conformance",
                "test_simulator_operators")  # fmt: skip
# The packages' own files; the second names everything, on first use.
ENTRANCES = {"kernels/__init__.py", "cnn_triton/__init__.py"}
# Files of the package, and the test files that say whether they work: the first pattern that a file matches.
TOUCHED = {
    "kernels/tiles/*.py": (*_TILES, "test_ops", "test_tune"),
    "kernels/core/replay.py": ("test_plan",),
    "kernels/core/tape.py": ("test_plan",),
    "kernels/base/lang.py": ("test_interpreter", "test_package"),
    "kernels/base/interpreter.py": ("test_interpreter", "test_ops"),
    "kernels/core/chips.py": (*_TILES, "test_aot"),
    "kernels/compiler/aot.py": ("test_aot", "test_compile"),
    "kernels/compiler/figures.py": ("test_aot", "test_compile"),
    "kernels/compiler/sass.py": ("test_aot",),
    "kernels/base/precision.py": (*_TILES, *_SEMANTICS, *_NN, "test_plan", "test_ops"),
    "kernels/window/pooling.py": ("test_geometry", *_BY_OPERATOR, "test_errors"),
    "kernels/window/convolution.py": ("test_geometry", *_BY_OPERATOR, "test_errors", *_TILES),
    "kernels/matrix/tma.py": (*_TILES, *_BY_OPERATOR),
    "kernels/matrix/*.py": ("test_ops", *_TILES, *_BY_OPERATOR[1:], "test_errors"),
    "kernels/pool/*.py": ("test_patches", "test_strips", *_BY_OPERATOR, "test_errors"),
    "kernels/*.py": (*_BY_OPERATOR, "test_errors"),
    "cnn_triton/autograd/*.py": (*_ECOSYSTEM, "test_gradients", *_SEMANTICS),
    "cnn_triton/ops.py": ("test_ops", *_ECOSYSTEM),
    "cnn_triton/dispatch.py": (*_SEMANTICS, "test_package", *_ECOSYSTEM),
    "cnn_triton/functional/*.py": ("test_errors", *_NN, *_SEMANTICS, "test_gradients", "test_conformance"),
    "cnn_triton/nn/*.py": (*_NN, "test_conformance"),
    "cnn_triton/modules.py": (*_NN, "test_conformance"),
    "cnn_triton/fusion/convert.py": (*_CONVERT, *_COMPILED),
    "cnn_triton/fusion/compiled.py": (*_COMPILED, *_CONVERT),
    "cnn_triton/fusion/backend.py": (*_CAPTURE, *_COMPILED),
    "cnn_triton/fusion/fakes.py": ("test_warmup", *_CONVERT),
    "cnn_triton/fusion/*.py": (*_CAPTURE, *_CONVERT, "test_networks"),
    "cnn_triton/tools/warmup.py": ("test_warmup",),
    "cnn_triton/classifier/data.py": ("test_data",),
    "cnn_triton/classifier/models.py": ("test_training", *_NN),
    "cnn_triton/classifier/training.py": ("test_training",),
    "cnn_triton/classifier/runs.py": ("test_runs",),
    "cnn_triton/classifier/distributed.py": ("test_distributed",),
    "cnn_triton/tools/profiling.py": ("test_profile",),
    "cnn_triton/tools/layers.py": ("test_profile",),
    "cnn_triton/tools/clock.py": ("test_profile",),
    "cnn_triton/tools/tensors.py": ("test_profile", "test_warmup"),
    "cnn_triton/tools/bounds.py": ("test_bounds", *_INSPECT),
    "cnn_triton/tools/*.py": _INSPECT,
    "cnn_triton/simulator/*": _SIMULATOR,
    "cnn_triton/cli/inspect_*.py": _INSPECT,
    "cnn_triton/cli/profile_command.py": ("test_profile", *_INSPECT),
    "cnn_triton/cli/train_command.py": ("test_runs", "test_cli", "test_report", "test_distributed"),
    "cnn_triton/cli/main.py": ("test_cli",),
    "cnn_triton/cli/options.py": ("test_cli",),
    "cnn_triton/cli/jobs.py": ("test_cli", "test_runs"),
    "cnn_triton/files.py": ("test_runs", "test_profile", *_PAGES, *_INSPECT),
    "cnn_triton/*.py": (*_PAGES, "test_cli", "test_package"),
    "cnn_triton/pages/*": _PAGES,
    "bench/ledger/*": ("test_ledger",),
    "bench/bounds.py": ("test_bounds",),
    "bench/counters.py": ("test_counters",),
    "bench/tune.py": ("test_tune",),
    "bench/fusing.py": ("test_networks",),
    "bench/zoo.py": ("test_networks",),
    "bench/layers.py": ("test_layers",),
    "bench/publish.py": ("test_results", "test_bench", "test_gpu_run"),
    "bench/*": _BENCH,
    "*.md": ("test_docs", "test_contributing", "test_architecture"),
    "examples/*": _INSPECT,
    "tests/cases.py": ("test_ops",),
    "tests/bad_calls.py": ("test_errors",),
    "tests/capturing.py": _CAPTURE,
    "tests/converted.py": _COMPILED,
    "tests/converting.py": _CONVERT,
    "tests/every_function.py": _ECOSYSTEM,
    "tests/function_pairs.py": ("test_gradients",),
    "tests/inspections.py": _INSPECT,
    "tests/module_pairs.py": _NN,
    "tests/ptx_*.py": _SIMULATOR,
    "tests/semantics.py": _SEMANTICS,
    "tests/simulat*.py": _SIMULATOR,
    "tests/tutorials.py": ("test_simulator_kernels",),
}


def imported(name):
    """The package's own files that a file of it imports, but for those that hold nothing."""
    package = re.sub("^kernels/", "cnn_triton/kernels/", name).removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            found = [base, *([*base, alias.name] for alias in node.names)]
        else:
            continue
        for parts in found:
            place = "/".join(parts).replace("cnn_triton/kernels", "kernels")
            for path in (f"{place}.py", f"{place}/__init__.py"):
                if parts[0] == "cnn_triton" and path not in {*ENTRANCES, name} and (ROOT / path).exists():
                    yield path


@cache
def reached(name):
    """The package's own files that a file of it imports, by way of others too, and itself."""
    return {name}.union(*(reached(other) for other in set(imported(name)) - {name}))


@cache
def _operators():
    """The names of all operators, and the files of kernels/ that they are in."""
    from cnn_triton.kernels.registry import OPS

    return {op.name: op.fake.__module__.removeprefix("cnn_triton.").replace(".", "/") + ".py" for op in OPS}


@cache
def operators_of(file):
    """The names of the operators whose module imports a file of kernels/; none if all do."""
    found = {name for name, home in _operators().items() if file in reached(home)}
    return found if len(found) < len(_operators()) else set()


def homes_of(file):
    """The test files that say whether a file of the repository works, the likeliest to fail first."""
    if file.startswith("tests/test_"):
        return (Path(file).stem,)
    return next((tests for pattern, tests in TOUCHED.items() if fnmatch(file, pattern)), ())


def names(item, operators):
    """True if the test's name has one of the operators' names in it, as a word."""
    words = "|".join(map(re.escape, operators))
    return bool(re.search(rf"(?<![a-z0-9_])(?:{words})(?![a-z0-9_])", item.nodeid.partition("::")[2]))


def touches(item, file):
    """True if the test says whether the file still works."""
    home = item.path.stem
    if home not in homes_of(file):
        return False
    some, every = operators_of(file) if file.startswith("kernels/") and home in _BY_OPERATOR else (), _operators()
    return not some or names(item, some) or not names(item, every)  # what names no operator may be about any


def pytest_addoption(parser):
    parser.addoption("--cover", type=float, help="part of the tests marked `cover` to run, by seed, beside all others")
    parser.addoption("--rest", type=float, help="run exactly what --cover with this part leaves out")
    parser.addoption("--seed", type=int, default=0, help="which part, whose turn it is, and the values that tests draw")
    parser.addoption("--exhaustive", action="store_true", help="every case in every combination of dtype and format")
    parser.addoption("--operator", action="append", default=[], help="only tests that name this operator")
    parser.addoption("--touching", action="append", default=[], help="only tests that say whether this file works")
    parser.addoption("--most", type=int, help="of the tests marked `cover` that are left, so many at most, by seed")


def pytest_configure(config):
    config.addinivalue_line("markers", "cover: one of many alike tests, of which `--cover` takes a seeded part")
    config.addinivalue_line(
        "markers", "rotated(names, rows): parametrized by rows(seed): combinations in turn; of None, all of them"
    )


def pytest_generate_tests(metafunc):
    option = metafunc.config.getoption
    for mark in metafunc.definition.iter_markers("rotated"):
        arguments, rows = mark.args
        metafunc.parametrize(arguments, list(rows(None if option("exhaustive") else option("seed"))))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    option = config.getoption
    seed, cover, rest = option("seed"), option("cover"), option("rest")

    def covered(item, part):
        drawn = random.Random(f"{seed} {item.nodeid}").random()
        return drawn < part if item.get_closest_marker("cover") else True

    kept = [item for item in items if cover is None or covered(item, cover)]
    kept = [item for item in kept if rest is None or not covered(item, rest)]
    if option("operator"):
        kept = [item for item in kept if names(item, option("operator"))]
    if option("touching"):
        kept = [item for item in kept if any(touches(item, file) for file in option("touching"))]
    alike = [item for item in kept if item.get_closest_marker("cover")]
    if option("most") is not None and len(alike) > option("most"):
        some = set(random.Random(f"{seed}").sample(alike, option("most")))
        kept = [item for item in kept if item in some or not item.get_closest_marker("cover")]
    left = set(items) - set(kept)
    _left_out[0] = len(left)
    if left:
        config.hook.pytest_deselected(items=[item for item in items if item in left])
        items[:] = kept


def left_out():
    """How many tests were not taken."""
    return _left_out[0]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left out"] = _left_out[0]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """A worker process has ended: what it left out, every other did too."""
    _left_out[0] = getattr(node, "workeroutput", {}).get("left out", 0)
