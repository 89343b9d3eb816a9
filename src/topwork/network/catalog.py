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
        name: what to give as ``--backbone``; of timm's with the tag of the weights, as timm may
            come to mean others without one.
        parameters: of the whole network, the source's head included.
        multiply_adds: of one image at ``input_size``, the source's head left out.
        input_size: height and width in pixels that its source used.
        license: of its published weights; for our own networks of the code.
        note: what it is good for.
    """

    name: str
    parameters: int
    multiply_adds: int
    input_size: int
    license: str
    note: str


def catalog() -> tuple[ZooEntry, ...]:
    """Return the list, small networks first.

    >>> catalog()[0].name
    'topwork:rootstock'
    """
    return ENTRIES


APACHE, BSD = "apache-2.0", "bsd-3-clause"

ENTRIES = (
    ZooEntry(
        "topwork:rootstock",
        *(2_684_792, 36_490_752, 96),
        APACHE,
        "comes with topwork, the default: nothing to fetch; a weak source",
    ),
    ZooEntry(
        "topwork:small_convnet",
        *(24_346, 2_801_664, 32),
        APACHE,
        "images of 8 to 32 px; no weights, pretrain it",
    ),
    ZooEntry(
        "topwork:cifar_resnet20",
        *(269_722, 40_550_400, 32),
        APACHE,
        "images of 32 px; give CIFAR weights a file",
    ),
    ZooEntry(
        "torchvision:squeezenet1_1",
        *(1_235_496, 262_623_936, 224),
        BSD,
        "smallest download; a modest source",
    ),
    ZooEntry(
        "topwork:dense",
        *(1_665_010, 1_642_000, 28),
        APACHE,
        "vectors; no weights: a deep belief net's layers",
    ),
    ZooEntry(
        "timm:mobilenetv3_small_100.lamb_in1k",
        *(2_542_856, 55_486_400, 224),
        APACHE,
        "fastest on a CPU of those at 224 px",
    ),
    ZooEntry(
        "timm:mobilenetv2_100.ra_in1k",
        *(3_504_872, 299_494_272, 224),
        APACHE,
        "a good first choice on a laptop",
    ),
    ZooEntry(
        "timm:efficientnet_b0.ra_in1k",
        *(5_288_548, 384_534_752, 224),
        APACHE,
        "stronger than MobileNet v2, and slower",
    ),
    ZooEntry(
        "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        *(5_717_416, 1_253_491_200, 224),
        APACHE,
        "smallest ViT; source ImageNet-21k",
    ),
    ZooEntry(
        "timm:resnet18.a1_in1k",
        *(11_689_512, 1_813_561_344, 224),
        APACHE,
        "the reference of the transfer literature",
    ),
    ZooEntry(
        "timm:convnext_nano.in12k_ft_in1k",
        *(15_593_560, 2_444_888_320, 224),
        APACHE,
        "modern ConvNet; source ImageNet-12k",
    ),
    ZooEntry(
        "timm:vit_small_patch14_dinov2.lvd142m",
        *(22_056_192, 46_696_739_328, 518),
        APACHE,
        "no labels in its source; GPU",
    ),
    ZooEntry(
        "timm:resnet50.a1_in1k",
        *(25_557_032, 4_087_136_256, 224),
        APACHE,
        "the usual baseline; GPU for large data",
    ),
    ZooEntry(
        "timm:convnext_tiny.in12k_ft_in1k",
        *(28_589_128, 4_454_763_264, 224),
        APACHE,
        "strong features; GPU for large data",
    ),
)
