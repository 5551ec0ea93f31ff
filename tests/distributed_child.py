"""What test_distributed.py has torchrun's processes do: short trainings, whose results the first process writes."""

import sys
from pathlib import Path

import torch

from cnn_triton import launches
from cnn_triton.classifier import data, runs, training
from cnn_triton.classifier.distributed import joined
from small import config, few

DEVICE = torch.device("cpu")
KINDS = {"DDP": False, "FSDP2": True}
STEPS = {"ragged": 5, "an empty share": 1}  # images in the only batch of an epoch


def trainer(images, processes, **changes):
    settings = config(images, **changes)
    return training.Trainer(training.build(settings, DEVICE), images, settings, DEVICE, processes)


def gradients(processes, count):
    """Of one step, on a batch of so many images."""
    one = trainer(few(count, 3), processes, batch_size=count, epochs=1)
    one.run_epoch()
    return {name: processes.gather(weight.grad.detach()) for name, weight in one.model.named_parameters()}


def trained(processes, **changes):
    """Weights, state and figures after two epochs of batches of 16, 16 and 1 images."""
    one = trainer(few(33, 5), processes, batch_size=16, **changes)
    figures = [vars(one.run_epoch()) for _ in range(2)]
    return {"weights": one.model_weights(), "state": one.state_dict(), "figures": figures}


def results(processes):
    """What one process and several are to agree in."""
    return {
        **{name: gradients(processes, count) for name, count in STEPS.items()},
        "float32": trained(processes),
        "bfloat16": trained(processes, dtype="bfloat16"),
    }


def begin(folder, images, settings, processes):
    """The first epoch of a run, by all processes together."""
    one = training.Trainer(training.build(settings, DEVICE), images, settings, DEVICE, processes)
    run = runs.Run.create(folder, one) if processes.first else runs.Onlooker(one, going_on=False)
    run.add(one.run_epoch(), one)
    if processes.first:
        run.close()


def begun(source):
    """The images in a folder, and the settings of a short training on them: the last batch has an image."""
    images = data.read(str(source), 3, (8, 8))
    settings = {"epochs": 2, "batch_size": len(images.train_labels) - 1, "seed": 3}
    return images, training.Config.of("lenet5", str(source), images, **settings)


def main(kind, folder, source):
    with joined(DEVICE, KINDS[kind]) as processes:
        before = launches()
        found = results(processes)
        ran = {name: count - before.get(name, 0) for name, count in launches().items()}
        torch.save(ran, folder / f"launches {processes.rank}.pt")
        begin(folder / "run", *begun(source), processes)
        if processes.first:
            torch.save(found, folder / "found.pt")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
