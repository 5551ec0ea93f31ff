"""Models that others have written, small and with random weights: what `convert` must not change."""

import pytest
import torch


def _transformers():
    """Hugging Face's library; its models are built from configurations, nothing is fetched."""
    return pytest.importorskip("transformers", reason="transformers is not installed here")


def resnet():
    """ResNet with bottlenecks."""
    lib = _transformers()
    config = lib.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24], depths=[1, 2, 1], num_labels=5)
    return lib.ResNetForImageClassification(config), 32


def resnet_basic():
    """ResNet with pairs of 3 x 3 convolutions."""
    lib = _transformers()
    config = lib.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    return lib.ResNetForImageClassification(config), 32


def mobilenet_v2(tf_padding=False):
    """MobileNetV2: depthwise convolutions, ReLU6."""
    lib = _transformers()
    config = lib.MobileNetV2Config(
        image_size=48, depth_multiplier=0.05, min_depth=4, depth_divisible_by=2, expand_ratio=1, num_labels=5,
        tf_padding=tf_padding, classifier_dropout_prob=0.0,
    )  # fmt: skip
    return lib.MobileNetV2ForImageClassification(config), 48


def mobilenet_v2_tf():
    """MobileNetV2 with padding that depends on the image's size, which can't be traced."""
    return mobilenet_v2(tf_padding=True)


def convnext():
    """ConvNeXt: 7 x 7 depthwise convolutions, linear layers at every pixel."""
    lib = _transformers()
    config = lib.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5)
    return lib.ConvNextForImageClassification(config), 32


SMALL = (resnet, resnet_basic, mobilenet_v2, mobilenet_v2_tf, convnext)


def _large(library, name, **options):
    def build():
        if not torch.cuda.is_available():
            pytest.skip(f"{library}'s {name} at full size needs a CUDA GPU")
        lib = pytest.importorskip(library, reason=f"{library} is not installed here")
        make = lib.create_model if library == "timm" else None
        return (make(name, num_classes=10) if make else getattr(lib.models, name)(num_classes=10, **options)), 224

    build.__name__ = name
    return build


LARGE = (
    _large("torchvision", "resnet50"), _large("torchvision", "vgg16"), _large("torchvision", "mobilenet_v3_small"),
    _large("torchvision", "googlenet", init_weights=True), _large("timm", "convnext_tiny"),
)  # fmt: skip


def tensor(output):
    """The logits in what a model returns."""
    return output if isinstance(output, torch.Tensor) else output.logits
