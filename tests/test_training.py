"""Training: it learns, in every dtype, the same by the same seed, and goes on from its state bit for bit."""

import io

import pytest
import torch

import cnn_triton
from cnn_triton.classifier import training
from cnn_triton.classifier.models import MODELS, VGG, LeNet5
from small import config, few, same, trainer


@pytest.fixture(scope="module")
def data():
    return few()


def weights(trained):
    return {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}


@pytest.mark.parametrize(("model", "lr"), [("lenet5", 0.01), pytest.param("vgg", 0.005, marks=pytest.mark.cover)])
def test_training_learns(data, device, model, lr):
    before = cnn_triton.launches()
    training_of = trainer(data, device, model=model, epochs=6, lr=lr)
    epochs = [training_of.run_epoch() for _ in range(6)]
    ran = cnn_triton.launches()
    for name in ("conv2d", "conv2d_weight_grad", "conv2d_input_grad", "max_pool2d_input_grad", "linear_weight_grad"):
        assert ran[name] > before.get(name, 0), f"no kernel of {name} ran"
        assert sum(epoch.launches[name] for epoch in epochs) == ran[name] - before.get(name, 0)
    assert epochs[-1].train_loss < 0.85 * epochs[0].train_loss
    assert [epoch.epoch for epoch in epochs] == list(range(1, 7))
    for epoch in epochs:
        assert (epoch.train_images, epoch.test_images) == (96, 20)
        assert 0 <= epoch.train_accuracy <= 1
        assert epoch.images_per_second == pytest.approx(96 / epoch.seconds)
    assert (epochs[-1].test_loss, epochs[-1].test_accuracy) == training.evaluate(
        training_of.model, data, training_of.config, device
    )


def test_same_seed_same_weights(data, device):
    found = []
    for seed in (1, 1, 2):
        one = trainer(data, device, epochs=1, seed=seed)
        one.run_epoch()
        found.append(weights(one))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.cover
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_learn(data, device, dtype):
    one = trainer(data, device, dtype=dtype, epochs=4)
    epochs = [one.run_epoch() for _ in range(4)]
    assert epochs[-1].train_loss < epochs[0].train_loss
    assert all(p.dtype == training.DTYPES[dtype] and p.isfinite().all() for p in one.model.parameters())


@pytest.mark.cover
@pytest.mark.parametrize(("stop", "dtype"), [(0, "float32"), (1, "float32"), (2, "float32"), (1, "bfloat16")])
def test_a_state_goes_on_bit_for_bit(data, device, dtype, stop):
    """Saved after `stop` epochs and loaded into another trainer, the rest gives the unbroken training's weights."""
    unbroken, broken = (trainer(data, device, dtype=dtype, epochs=3) for _ in range(2))
    figures = [unbroken.run_epoch() for _ in range(3)]
    for _ in range(stop):
        broken.run_epoch()
    file = io.BytesIO()
    torch.save(broken.state_dict(), file)
    resumed = trainer(data, device, dtype=dtype, epochs=3)
    resumed.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert resumed.epoch == stop
    rest = [resumed.run_epoch() for _ in range(3 - stop)]
    assert same(weights(unbroken), weights(resumed))
    for ours, theirs in zip(rest, figures[stop:], strict=True):
        assert (ours.epoch, ours.train_loss, ours.test_loss) == (theirs.epoch, theirs.train_loss, theirs.test_loss)


def test_a_loss_that_is_not_finite_ends_the_run(data, device):
    one = trainer(data, device, lr=1e30, epochs=4)
    with pytest.raises(RuntimeError, match=r"the loss became (nan|inf) in epoch \d; try a lower learning rate"):
        [one.run_epoch() for _ in range(4)]


@pytest.mark.cover
@pytest.mark.parametrize("size", [(28, 28), (32, 20), (4, 5), (3, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_any_image(name, channels, size, device):
    model = MODELS[name](channels, size, 7).to(device)
    assert model(torch.randn(2, channels, *size, device=device)).shape == (2, 7)
    assert [child for child, _ in model.named_children()] == ["features", "classifier"]


@pytest.mark.parametrize("sizes", [(0, (8, 8), 10), (1, (0, 8), 10), (1, (8, 8), 0)], ids=str)
@pytest.mark.parametrize("model", [LeNet5, VGG])
def test_bad_sizes(model, sizes):
    with pytest.raises(ValueError, match="must be at least 1"):
        model(*sizes)


def test_probabilities(data, device):
    one = trainer(data, device)
    shares = training.probabilities(one.model, data.test_images, config(data), device)
    assert shares.shape == (20, 10)
    torch.testing.assert_close(shares.sum(1), torch.ones(20))
