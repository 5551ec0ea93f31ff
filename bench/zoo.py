"""Networks that others wrote, transformers' and timm's, with random weights: nothing is fetched."""

from collections.abc import Callable

import torch
from torch import nn

# What torchvision asks for when it is imported, where it was built for another PyTorch; no network here calls it.
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in (
        "nms", "qnms", "roi_align", "_roi_align_backward", "qroi_align", "ps_roi_align", "_ps_roi_align_backward",
        "roi_pool", "_roi_pool_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
        "_deform_conv2d_backward",
    ):  # fmt: skip
        _DECLARED.define(f"{_name}(Tensor x) -> Tensor")

import timm  # noqa: E402
import transformers as hf  # noqa: E402

from cnn_triton.fusion.backend import Captures  # noqa: E402

_HIDDEN = {"hidden_sizes": [8, 16], "depths": [1, 1]}
_FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
SMALL: dict[str, Callable[[], nn.Module]] = {
    "ResNet, bottleneck": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1])
    ),
    "ResNet, basic": lambda: hf.ResNetModel(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type="basic")
    ),
    "RegNet-Y": lambda: hf.RegNetModel(hf.RegNetConfig(embedding_size=8, **_HIDDEN, groups_width=4)),
    "MobileNetV1": lambda: hf.MobileNetV1Model(hf.MobileNetV1Config(depth_multiplier=0.25, image_size=32)),
    "MobileNetV2": lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32)),
    "MobileViT": lambda: hf.MobileViTModel(
        hf.MobileViTConfig(
            image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
            num_attention_heads=2,
        )
    ),
    "ConvNeXt": lambda: hf.ConvNextModel(hf.ConvNextConfig(**_HIDDEN, num_stages=2)),
    "ConvNeXt V2": lambda: hf.ConvNextV2Model(hf.ConvNextV2Config(**_HIDDEN, num_stages=2)),
    "BiT": lambda: hf.BitModel(hf.BitConfig(embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], num_groups=4)),
    "LeViT": lambda: hf.LevitModel(
        hf.LevitConfig(
            image_size=64, hidden_sizes=[16, 32, 48], num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[4] * 3
        )
    ),
    "PoolFormer": lambda: hf.PoolFormerModel(hf.PoolFormerConfig(**_FOUR)),
    "SegFormer": lambda: hf.SegformerModel(hf.SegformerConfig(**_FOUR, num_attention_heads=[1, 1, 2, 2])),
}  # fmt: skip
USUAL: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": lambda: hf.ResNetModel(hf.ResNetConfig()),
    "RegNet-Y 4GF": lambda: hf.RegNetModel(hf.RegNetConfig()),
    "MobileNetV2": lambda: hf.MobileNetV2Model(hf.MobileNetV2Config(image_size=64)),
    "ConvNeXt-T": lambda: hf.ConvNextModel(hf.ConvNextConfig()),
    "MobileViT-S": lambda: hf.MobileViTModel(hf.MobileViTConfig(image_size=64)),
}

# Of timm, by their names: some of each kind.
TIMM = (
    "resnet18", "resnetv2_50", "mobilenetv3_small_100", "efficientnet_b0", "tf_efficientnet_b0", "convnext_atto",
    "regnety_002", "repvgg_a0", "mobileone_s0", "densenet121", "vgg11_bn", "inception_v3", "ghostnet_100",
    "hrnet_w18_small", "dla46_c", "nfnet_l0", "mixnet_s", "xception41", "skresnet18", "legacy_seresnet18",
    "res2net50_26w_4s", "edgenext_xx_small", "fastvit_t8", "rexnet_100", "coatnet_nano_rw_224",
)  # fmt: skip
_SIZES = {"LeViT": 64, "SegFormer": 64, "inception_v3": 80, "coatnet_nano_rw_224": 224}


class Images(nn.Module):
    """A network as a function of images alone, without the randomness of its training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        for module in network.modules():
            for name in ("p", "drop_prob", "drop_rate"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's last feature maps, or its logits."""
        y = self.network(x)
        return y if isinstance(y, torch.Tensor) else y.last_hidden_state  # type: ignore[no-any-return]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network, and images for it that are as small as it takes."""
    torch.manual_seed(0)
    model = SMALL[name]() if name in SMALL else _timm(name)
    size = _SIZES.get(name, 32)
    return Images(model), torch.randn(2, 3, size, size)


def usual(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network of its usual size, and an image of 64 x 64 pixels, or of what it takes."""
    torch.manual_seed(0)
    model, size = USUAL[name]() if name in USUAL else _timm(name), max(64, _SIZES.get(name, 64))
    return Images(model), torch.randn(1, 3, size, size)


def _timm(name: str) -> nn.Module:
    return timm.create_model(name, num_classes=10)  # type: ignore[no-any-return]


def said(captures: Captures) -> tuple[str, str]:
    """What was captured, as the table has it: the patterns; and what was left apart, and why."""
    reasons = [reason for reason, _ in captures.apart]
    left = "; ".join(f"{reason} ({reasons.count(reason)})" for reason in dict.fromkeys(reasons))
    return ", ".join(f"{pattern} {count}" for pattern, count in captures.patterns.most_common()), left
