"""A few images per class of data sets of ../shared, and their profiles, for the benchmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import numpy as np
import torch

from sets import IMAGES, SETS, drawn, write_set
from topwork.advice.depth_codes import collect
from topwork.advice.profile import HEADS_FOR, Profile, make_profile
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet, Item
from topwork.data.items import open_images
from topwork.learn.fit import groups_of
from topwork.learn.targets import targets_of
from topwork.network.loading import Loaded, load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

NEAR = ("hymenoptera", "flowers12", "pacs_photo")  # photos of animals, plants and things
FAR = ("wbc", "neu_steel", "sign_digits", "medical", "mnist")
PLACES = {
    "pacs_photo": "pacs/photo",
    "neu_steel": "neu_steel",
    "medical": "medical_mnist_64_tenth.zip",
    "mnist": "mnist.npz",
    "fashion": "fashion_mnist_tenth.zip",
    "cifar10": "cifar10_third_jpg.zip",
}
NETWORKS = {
    "mobilenetv2_100": "mobilenetv2_100",
    "vit_tiny": "vit_tiny_patch16_224",
    "squeezenet1_1": "torchvision:squeezenet1_1",
    "resnet18_to_layer3": "torchvision:resnet18",
}


def few_images(name: str, data: Path, per_class: int, seed: int = 0) -> ImageSet:
    """Return so many images of each class of a data set, none of them from its test part."""
    if name in PLACES:
        images = open_images(data / PLACES[name])
    else:
        assert name in SETS
        with TemporaryDirectory() as folder:
            images = open_images(write_set(name, data, Path(folder), seed))
    offered = [item for item in images.items if item.split in (None, "train")]
    index_of = {item.name: index for index, item in enumerate(images.items)}
    label_of = {item.name: item.labels[0] for item in offered}
    taken: Counter[str] = Counter()
    chosen = []
    for item_name in drawn(label_of, seed):
        taken[label_of[item_name]] += 1
        if taken[label_of[item_name]] <= per_class:
            chosen.append(index_of[item_name])
    few = images.subset(sorted(chosen))
    return replace(few, items=tuple(replace(item, split=None) for item in few.items))


def photos(data: Path, count: int) -> ImageSet:
    """Return so many of the photos of ImageNet, which have no labels here."""
    path = data / "imagenet_1000_photos_160px.zip"
    with ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith(IMAGES)]
        content = {name: archive.read(name) for name in drawn(names, 0)[:count]}
    return ImageSet(str(path), tuple(map(Item, content)), content.__getitem__)


def load_network(name: str, weights: Path) -> Loaded:
    """Return one of `NETWORKS`; of the network that ends at layer3 no more is kept."""
    if (weights / NETWORKS[name]).is_dir():
        backbone = find_backbone(str(weights / NETWORKS[name]))
    else:
        backbone = find_backbone(NETWORKS[name], weights=weights / f"{name}.safetensors")
    kept = "layer3" if name.endswith("layer3") else None
    return load_backbone(backbone, Plan(backbone.name, kept=kept))


def profile_of(loaded: Loaded, images: ImageSet, seed: int = 0) -> Profile:
    """Return the profile on all of the images."""
    audited = audit(images)
    execution = Execution(torch.device("cpu"), runtime="eager")
    codes = collect(loaded, images, audited, range(len(images)), execution)
    targets = targets_of(images, codes.indices, HEADS_FOR["classes"][0])
    groups = np.array(groups_of(images, audited, codes.indices))
    return make_profile(loaded, targets, groups, codes, seed=seed)
