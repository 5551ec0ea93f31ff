"""`cnn-triton train`, `demo` and `compare`: train a network, or go on with a training, and write its report."""

import contextlib
import math
import signal
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .jobs import device_for_kernels, fail, free_folder, launched, open_data, open_run, parse_size, write_report

if TYPE_CHECKING:
    import torch

    from ..classifier.distributed import Processes
    from ..classifier.runs import Onlooker, Run
    from ..classifier.training import Config, Trainer

__all__ = ["compare_runs", "train_run"]


def train_run(
    out: Path | None,
    device_name: str,
    resume: bool = False,
    fsdp: bool = False,
    given: Set[str] = frozenset(),
    resume_folder: Path | None = None,
    **options: Any,
) -> Path:
    """Train, or go on with a training, and write its report; return the run's folder.

    options: data, model, size, epochs, batch_size, lr, seed, dtype
    given: the names of options given on the command line; a run that is resumed must have been begun with their values
    resume_folder: the folder that messages name for --resume, if it isn't the run's own but that of a comparison

    All processes that torchrun started train; the first one writes, and only there does this function return.
    """
    if not (options["lr"] > 0 and math.isfinite(options["lr"])):
        fail(f"--lr must be a positive number, but got {options['lr']}")
    options["size"] = parse_size(options["size"])
    if options["data"] != "digits":
        options["data"] = str(Path(options["data"]).resolve())
    if resume and out is None:
        fail("--resume needs --out, the folder of the run to go on with")
    if fsdp and not launched():
        fail(
            "--fsdp splits a training among processes, but this one is alone; torchrun --no-python cnn-triton train ..."
        )
    out = out or free_folder(f"{Path(options['data']).name}-{options['model']}")
    if Path(options["data"]) in out.resolve().parents:
        fail(f"--out {out}: it is inside --data, where every folder is a class; name one elsewhere")
    device = device_for_kernels(device_name)
    from ..classifier import runs
    from ..classifier.distributed import Processes, joined

    with joined(device, fsdp) if launched() else contextlib.nullcontext(Processes()) as processes:
        out, going_on = processes.broadcast((out, resume and runs.is_run(out)))
        run, trainer = open_training(out, device, processes, going_on, given, options)
        train_on(run, trainer, out, going_on, resume_folder or out)
    if not isinstance(run, runs.Run):
        raise typer.Exit
    counts = runs.launch_counts(run.epochs)
    by_operator = ", ".join(f"{name} {number}" for name, number in counts.items() if number)
    print(f"Kernel launches: {sum(counts.values())} ({by_operator})")
    write_report(out, open_run(out, device), trainer.data, device)
    run.close()
    print(f"test accuracy: {float(run.epochs[-1]['test_accuracy']):.3f}")
    return out


COMPARED = ("lenet5", "lenet5-local", "lenet5-full")


def compare_runs(out: Path | None, device_name: str, resume: bool, given: Set[str], **options: Any) -> Path:
    """Train the networks that differ in their first layer, and write the page that compares them; return its path.

    A comparison that is resumed takes its options from the runs that were begun. options, given: see `train_run`
    """
    if launched():
        fail("compare trains one network after the other, in one process; start it without torchrun")
    if resume and out is None:
        fail("--resume needs --out, the folder of the comparison to go on with")
    folder = out or free_folder("compare")
    if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"--out {folder}: it is there already, and nothing is overwritten; name a new folder, or --resume one")
    device = device_for_kernels(device_name)
    from ..classifier import report, runs

    trained = [folder / model for model in COMPARED]
    for number, run in enumerate(reversed(trained), 1):  # the largest first: too little memory shows early
        begun = next((each for each in trained if runs.is_run(each)), None)
        if begun and not runs.is_run(run):  # like the begun one, which was checked against the options
            config = vars(open_run(begun, device).config)
            kept = {"size", *(given & {"data"})}  # the images may have moved
            options |= {name: config[name] for name in options.keys() - kept}
            options["size"] = f"{config['height']}x{config['width']}"
        print(f"\nNetwork {number} of {len(trained)}: {run.name}")
        train_run(run, device_name, resume, given=given, resume_folder=folder, **options | {"model": run.name})
    try:
        return report.write_comparison(folder, {run: open_run(run, device) for run in trained})
    except (OSError, ValueError) as error:
        fail(error)


def train_on(run: "Run | Onlooker", trainer: "Trainer", out: Path, going_on: bool, resume_folder: Path) -> None:
    """Train the remaining epochs, and save each; messages name `resume_folder` for --resume."""
    import cnn_triton

    from ..classifier.training import Diverged
    from .terminal import TrainingProgress

    epochs, images = trainer.config.epochs, len(trainer.data.train_labels)
    print(f"Layers run as {cnn_triton.where(trainer.device)}.")
    if going_on:
        print(f"Going on after epoch {trainer.epoch} of {epochs}.")
    shared = f", shared by {trainer.processes.description}" if trainer.processes.size > 1 else ""
    print(f"Training on {images} images for {epochs} epochs, batches of {trainer.config.batch_size}{shared}.")
    with TrainingProgress(epochs, trainer.epoch, images) as progress:
        while trainer.epoch < epochs:
            try:
                epoch = trainer.run_epoch(progress.on_batch)
                run.add(epoch, trainer)
            except (Diverged, OSError) as error:
                fail(f"{error}; {out} keeps the state after epoch {run.saved}")
            except KeyboardInterrupt:
                if launched():  # torchrun passes on an interrupt that the terminal has sent already
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
                fail(f"interrupted; go on with --out {resume_folder} --resume, after epoch {run.saved}")
            progress.on_epoch(epoch)


def open_training(
    out: Path, device: "torch.device", processes: "Processes", going_on: bool, given: Set[str], options: dict[str, Any]
) -> tuple["Run | Onlooker", "Trainer"]:
    """Return a new run, or the one to go on with, and its trainer. Only the first process opens the folder."""
    from ..classifier import runs
    from ..classifier.training import Config, Trainer, build

    writes = processes.first
    if writes and not going_on and out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"--out {out}: it is there already, and nothing is overwritten; name a new folder, or --resume a run")
    try:
        begun = processes.broadcast(runs.read_config(out) if writes and going_on else None)
        if begun:
            config = begun
            refuse_changes(config, {name: options[name] for name in given & options.keys() - {"data"}}, out)
            source = options["data"] if "data" in given else config.data  # the images may have moved
            data = open_data(source, config.seed, (config.height, config.width))
            if data.digest != config.digest:
                fail(f"--data {source}: these are not the images that the run in {out} was begun with")
        else:
            data = open_data(options["data"], options["seed"], options["size"])
            settings = {name: value for name, value in options.items() if name not in ("data", "model", "size")}
            config = processes.broadcast(Config.of(options["model"], options["data"], data, **settings))
            if data.digest != config.digest:
                fail(f"--data {options['data']}: these are not the images that the first process has")
        trainer = Trainer(build(config, device), data, config, device, processes)
        if not writes:
            return runs.Onlooker(trainer, going_on), trainer
        return runs.Run.resume(out, trainer) if going_on else runs.Run.create(out, trainer), trainer
    except (OSError, ValueError) as error:
        fail(f"--out {out}: {error}")


def refuse_changes(config: "Config", given: dict[str, Any], out: Path) -> None:
    """Fail if a given option contradicts the run to go on with."""
    begun = {**vars(config), "size": (config.height, config.width)}
    for name, value in given.items():
        if value != begun[name]:
            fail(
                f"--{name.replace('_', '-')}: the run in {out} was begun with {begun[name]}, not {value}; "
                "leave the option out, or begin another run"
            )
