"""A short, reasoned list of backbones to choose from; any other name of the zoo works too.

The figures are constants, so that printing the list imports no network library; a test builds every
entry and compares.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ZooEntry:
    """One recommended backbone.

    Attributes:
        name: what to give as ``--backbone``.
        parameters: of the whole network, the source's head included.
        input_size: height and width in pixels that its source used.
        license: of its published weights; for our own networks of the code.
        note: what it is good for.
    """

    name: str
    parameters: int
    input_size: int
    license: str
    note: str


def catalog() -> tuple[ZooEntry, ...]:
    """Return the list, small networks first.

    >>> catalog()[0].name
    'topwork:small_convnet'
    """
    return ENTRIES


APACHE, BSD = "apache-2.0", "bsd-3-clause"

ENTRIES = (
    ZooEntry(
        "topwork:small_convnet", 24_346, 32, APACHE, "images of 8 to 32 px; no weights, pretrain it"
    ),
    ZooEntry(
        "topwork:cifar_resnet20", 269_722, 32, APACHE, "images of 32 px; give CIFAR weights a file"
    ),
    ZooEntry(
        "torchvision:squeezenet1_1", 1_235_496, 224, BSD, "smallest download; a modest source"
    ),
    ZooEntry(
        "topwork:dense", 1_665_010, 28, APACHE, "vectors; no weights: a deep belief net's layers"
    ),
    ZooEntry("timm:mobilenetv3_small_100", 2_542_856, 224, APACHE, "fastest on a CPU among these"),
    ZooEntry("timm:mobilenetv2_100", 3_504_872, 224, APACHE, "a good first choice on a laptop"),
    ZooEntry(
        "timm:efficientnet_b0", 5_288_548, 224, APACHE, "stronger than MobileNet v2, and slower"
    ),
    ZooEntry(
        "timm:vit_tiny_patch16_224", 5_717_416, 224, APACHE, "smallest ViT; source ImageNet-21k"
    ),
    ZooEntry("timm:resnet18", 11_689_512, 224, APACHE, "the reference of the transfer literature"),
    ZooEntry("timm:convnext_nano", 15_593_560, 224, APACHE, "modern ConvNet; source ImageNet-12k"),
    ZooEntry(
        "timm:vit_small_patch14_dinov2", 22_056_192, 518, APACHE, "no labels in its source; GPU"
    ),
    ZooEntry("timm:resnet50", 25_557_032, 224, APACHE, "the usual baseline; GPU for large data"),
    ZooEntry("timm:convnext_tiny", 28_589_128, 224, APACHE, "strong features; GPU for large data"),
)
