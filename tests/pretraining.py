"""What the tests of pretraining share: a tiny material, and the trial of an interruption."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from topwork.data.arrays import images_from_arrays
from topwork.data.audit import Audit
from topwork.data.image_set import ImageSet
from topwork.data.loading import untracked
from topwork.data.unlabeled import audit_photos
from topwork.learn.checkpoints import Checkpoints
from topwork.network.zoo import Backbone, find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.material import Material
from topwork.pretraining.methods import RECIPES, run
from topwork.pretraining.preparing import load_networks, make_material
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.request import Request
from topwork.pretraining.stages import Progress
from topwork.trunk.execution import Execution


def drawings(count: int = 40, side: int = 8, *, gray: bool = False, seed: int = 0) -> np.ndarray:
    """Return images of bright bars on a dark ground, uint8 [n, side, side(, 3)]; the first half
    of them lie, the others stand."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 80, (count, side, side, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        first = rng.integers(0, side - 1)
        color = rng.integers(150, 256, 3)
        if number < count // 2:
            image[first : first + 2] = color
        else:
            image[:, first : first + 2] = color
    return images[..., 0] if gray else images


def tiny_material(
    folder: Path,
    recipe: Recipe,
    *,
    images: np.ndarray | None = None,
    labels: Sequence[int] | None = None,
    backbone: str = "topwork:small_convnet",
    arguments: Mapping[str, Any] | None = None,
    runtime: str = "eager",
    cache: str = "auto",
    seed: int = 0,
    teacher: Backbone | None = None,
) -> Material:
    """Return a material whose checkpoints lie in a folder; the same arguments give the same.

    Args:
        folder: for checkpoints; those of other materials in it are taken up by ``restore``.
        recipe: its type says which method it is for.
        images: uint8 [n, H, W] for ``topwork:dense``, [n, H, W, 3] for others; the drawings if
            left out.
        labels: of the images, by number.
        backbone: its name.
        arguments: of the builder, such as {"widths": [12, 8]}; others are the defaults.
        runtime: of frozen layers.
        cache: of them.
        seed: of everything.
        teacher: to learn from.
    """
    images = drawings(gray=backbone == "topwork:dense") if images is None else images
    found = find_backbone(backbone)
    if arguments:
        spec = replace(found.spec, arguments={**found.spec.arguments, **arguments})
        found = replace(found, spec=spec)
    height, width = images.shape[1:3]
    plan = Plan(
        found.name,
        reused="0",
        phases=(Phase(frozen="input", epochs=1),),
        input_size=(int(height), int(width)),
    )
    pictured, audited = opened(images, labels)
    execution = Execution(torch.device("cpu"), runtime, "exact", cache)
    method = next(name for name, kind in RECIPES.items() if type(recipe) is kind)
    request = Request(method, recipe, plan, found, pictured, execution, seed, teacher)
    return make_material(request, load_networks(request), audited, Checkpoints(folder), untracked)


def opened(images: np.ndarray, labels: Sequence[int] | None) -> tuple[ImageSet, Audit]:
    """Return images as a set, and what the audit finds; of labeled ones it keeps some for tests."""
    count = len(images)
    found = images_from_arrays(images, labels or [0] * count, split=["train"] * count)
    if labels is None:
        items = tuple(replace(item, labels=(), split=None) for item in found.items)
        found = replace(found, items=items)
    return found, audit_photos(found, untracked)


def trained(material: Material, recipe: Recipe) -> list[Progress]:
    """Run a method to its end as `topwork.making.work` does; return what it told."""
    told = []
    for progress in run(material, recipe):
        if progress:
            material.stages.keep(progress)
            told.append(progress)
    material.stages.close()
    return told


def weights_of(material: Material) -> dict[str, torch.Tensor]:
    """Return copies of all tensors of the network, buffers included."""
    state = material.chain.network.state_dict()
    return {name: value.detach().clone() for name, value in state.items()}


def assert_equal_weights(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Hold tensors against others, bit for bit."""
    assert list(found) == list(expected)
    unequal = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not unequal


def assert_resumes(folder: Path, recipe: Recipe, steps: int, **how: Any) -> None:
    """Break a method off after some steps, go on in a new material, and compare with a whole run.

    Args:
        folder: empty.
        recipe: of few epochs.
        steps: of the optimizer after which it is broken off; there must be more.
        how: what `tiny_material` takes.
    """
    torch.manual_seed(1)  # the state of torch's own generator, as chance has it, must not matter
    whole = tiny_material(folder / "whole", recipe, **how)
    started = weights_of(whole)
    trained(whole, recipe)
    expected = weights_of(whole)
    assert any(not torch.equal(started[name], expected[name]) for name in started)

    torch.manual_seed(2)
    broken = tiny_material(folder / "broken", recipe, **how)
    for step, progress in enumerate(run(broken, recipe), start=1):
        if progress:
            broken.stages.keep(progress)
        if step == steps:
            broken.stages.save()
            break
    else:
        raise AssertionError(f"the whole takes no more than {step} steps; break it off earlier")

    torch.manual_seed(3)
    again = tiny_material(folder / "broken", recipe, **how)
    again.stages.restore()
    trained(again, recipe)
    assert_equal_weights(weights_of(again), expected)
    assert timeless(again.stages.records) == timeless(whole.stages.records)
    assert sorted(again.stages.pictures) == sorted(whole.stages.pictures)
    for name, pictures in whole.stages.pictures.items():
        np.testing.assert_array_equal(again.stages.pictures[name], pictures, err_msg=name)

    again.stages.save()
    after = tiny_material(folder / "broken", recipe, **how)
    after.stages.restore()
    assert not trained(after, recipe)
    assert_equal_weights(weights_of(after), expected)


def timeless(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records of epochs without their seconds."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]
