"""Networks with random weights for tests, by name."""

import timm
import torch
import torchvision
from torch import nn

ARCHITECTURES: dict[str, dict] = {
    "timm:resnet18": {},
    "timm:mobilenetv2_100": {},
    "timm:mobilenetv4_conv_small": {},
    "timm:efficientnet_b0": {},
    "timm:convnext_atto": {},
    "timm:regnety_002": {},
    "timm:densenet121": {},
    "timm:resnetv2_50": {},
    "timm:vit_tiny_patch16_224": {"img_size": 64},
    "timm:deit_tiny_patch16_224": {"img_size": 64},
    "timm:vit_small_patch14_dinov2": {"img_size": 56},
    "timm:test_mambaout": {},
    "torchvision:swin_t": {},
    "torchvision:alexnet": {},
    "torchvision:squeezenet1_1": {},
    "torchvision:mobilenet_v3_small": {},
    "torchvision:vgg11": {},
    "torchvision:vit_b_32": {"image_size": 64},
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a network, its batch norms no longer at their defaults, and two images for it."""
    library, architecture = name.split(":")
    settings = ARCHITECTURES[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            network = timm.create_model(architecture, **settings)
        else:
            network = torchvision.models.get_model(architecture, **settings)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    size = settings.get("img_size", settings.get("image_size", 64))
    return network.eval(), torch.randn(2, 3, size, size, generator=generator)


def snapshot(network: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every tensor of a network, and the mode of every module."""
    tensors = {name: value.numpy().tobytes() for name, value in network.state_dict().items()}
    modes = {f"mode of {name}": bytes([m.training]) for name, m in network.named_modules()}
    return tensors | modes
