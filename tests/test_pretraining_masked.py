"""Masked prediction: losses of hidden pixels against loops, what blocks see, resuming."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pretraining import assert_resumes, drawings, tiny_material, trained, weights_of
from topwork.errors import PlanError
from topwork.network.chain import Chain
from topwork.network.layout import Layout
from topwork.network.loading import build_chain
from topwork.network.spec import BackboneSpec
from topwork.phase import Phase
from topwork.pretraining.decoders import draw_hidden, patched
from topwork.pretraining.masked import MaskedRecipe, make_module
from topwork.pretraining.masked_maps import MaskedMap
from topwork.pretraining.masked_tokens import MaskedTokens
from topwork.pretraining.methods import recipe_of

PHASE = Phase(epochs=2, batch=10, optimizer="adamw", rate=1e-3)
SMALL = {"img_size": [16, 16], "patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 3}
VIT = {"backbone": "timm:vit_tiny_patch16_224", "arguments": SMALL}


def vit(architecture: str = "vit_tiny_patch16_224", **changes: object) -> Chain:
    return build_chain(BackboneSpec("timm", architecture, {**SMALL, **changes}), (16, 16))


def images_of(count: int, side: int) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


def test_losses_of_maps_are_those_of_a_loop_over_hidden_pixels() -> None:
    class Told(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return 2 * images + 1  # of hidden pixels, which are 0, it tells 1

    module = MaskedMap([nn.Identity()], [Layout("map")], Told(), 2, 0.4)
    images = images_of(3, 6)
    torch.manual_seed(7)
    found = module(images)
    torch.manual_seed(7)
    hidden = draw_hidden(3, (6, 6), 2, 0.4)
    for number in range(3):
        errors = [
            abs(1 - float(images[number, channel, row, column]))
            for channel in range(3)
            for row in range(6)
            for column in range(6)
            if hidden[number, 0, row, column]
        ]
        assert len(errors) == 3 * 4 * round(0.4 * 9)
        assert found[number].tolist() == pytest.approx([np.mean(errors), 0], rel=1e-5)


def test_losses_of_patches_are_those_of_a_loop_over_hidden_patches() -> None:
    module = make_module(vit(), MaskedRecipe(mask_share=0.5), 0).eval()
    images = images_of(2, 16)
    torch.manual_seed(7)
    found = module(images)[:, 0].detach()
    torch.manual_seed(7)
    hidden = draw_hidden(2, (16, 16), 4, 0.5)
    with torch.no_grad():
        told = module.predicted(images, hidden).numpy()
    for number in range(2):
        errors = []
        for patch in range(16):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            if not hidden[number, 0, top, left]:
                continue
            pixels = images[number, :, top : top + 4, left : left + 4].flatten().numpy()
            wanted = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append(((told[number, patch] - wanted) ** 2).mean())
        assert len(errors) == 8
        assert float(found[number]) == pytest.approx(np.mean(errors), rel=1e-4)


def test_patches_are_shown_about_their_own_mean_and_deviation() -> None:
    module = make_module(vit(), MaskedRecipe(), 0).eval()
    images = images_of(2, 16)
    hidden = draw_hidden(2, (16, 16), 4, 0.75)
    squares = patched(images, 4)
    with torch.no_grad():
        module.predicted = lambda images, hidden: torch.full(squares.shape, 2.0)
        shown = patched(module.pixels(images, hidden), 4)
    wanted = squares.mean(2) + 2 * squares.std(2)
    np.testing.assert_allclose(shown, wanted.unsqueeze(2).expand_as(shown), atol=1e-4)


def test_blocks_are_given_the_seen_patches_and_the_class_token_alone() -> None:
    module = make_module(vit(), MaskedRecipe(mask_share=0.75), 0).eval()
    given = []
    module.blocks.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    images = images_of(2, 16)
    hidden = draw_hidden(2, (16, 16), 4, 0.75)
    with torch.no_grad():
        first = module.predicted(images, hidden)
        tokens = module.embedding(images)
        seen = [
            [0, *(1 + p for p in range(16) if not h[p])] for h in hidden[:, 0, ::4, ::4].flatten(1)
        ]
        assert given[0].shape == (2, 1 + 4, 24)
        for number in range(2):
            assert torch.equal(given[0][number], tokens[number, seen[number]])
        assert torch.equal(first, module.predicted(images.masked_fill(hidden, 99), hidden))
        other = module.predicted(images.masked_fill(~hidden, 99), hidden)
    assert not torch.allclose(first, other)


def test_maps_do_not_depend_on_hidden_pixels() -> None:
    chain = build_chain(BackboneSpec("topwork", "small_convnet", {}), (16, 16))
    module = make_module(chain, MaskedRecipe(patch=4), 0).eval()
    images = images_of(2, 16)
    hidden = draw_hidden(2, (16, 16), 4, 0.6)
    with torch.no_grad():
        first = module.pixels(images, hidden)
        assert first.shape == images.shape
        assert torch.equal(first, module.pixels(images.masked_fill(hidden, 99), hidden))


def test_what_is_hidden_stays_so_from_layer_to_layer() -> None:
    chain = build_chain(BackboneSpec("topwork", "small_convnet", {}), (16, 16))
    module = make_module(chain, MaskedRecipe(patch=4), 0).eval()
    given = []
    for layer in [*list(module.layers)[1:], module.decoder]:
        layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    hidden = draw_hidden(2, (16, 16), 4, 0.6)
    with torch.no_grad():
        module.pixels(images_of(2, 16), hidden)
    assert len(given) == len(module.layers) == 3
    assert {maps.shape[2] for maps in given} >= {4, 16}
    for maps in given:
        factor = 16 // maps.shape[2]
        for number in range(2):
            for row in range(maps.shape[2]):
                for column in range(maps.shape[3]):
                    rows = slice(factor * row, factor * (row + 1))
                    columns = slice(factor * column, factor * (column + 1))
                    unseen = bool(hidden[number, 0, rows, columns].all())
                    assert unseen == (not maps[number, :, row, column].any())


def test_maps_whose_channels_come_last() -> None:
    spec = BackboneSpec("timm", "swin_s3_tiny_224", {"img_size": [64, 64], "depths": [1, 1, 1, 1]})
    chain = build_chain(spec, (64, 64))
    module = make_module(chain, MaskedRecipe(patch=32), 0)
    assert isinstance(module, MaskedMap)
    assert module.layouts[-1].channels_last
    losses = module(images_of(2, 64))
    assert losses.shape == (2, 2)
    losses.sum().backward()


def test_where_a_code_goes_is_where_its_patch_is() -> None:
    """With blocks and decoder that pass everything on, the seen patches come back in place."""
    module = make_module(vit(), MaskedRecipe(), 0).eval()
    module.blocks, module.narrow = nn.Identity(), nn.Identity()
    module.decoder = nn.Identity()
    module.hidden_token = nn.Parameter(torch.full((24,), 5.0))
    module.positions = nn.Parameter(torch.zeros(17, 24))
    images = images_of(3, 16)
    hidden = draw_hidden(3, (16, 16), 4, 0.6)
    with torch.no_grad():
        found = module.predicted(images, hidden)
        tokens = module.embedding(images)[:, 1:]
    flags = hidden[:, 0, ::4, ::4].flatten(1)
    assert torch.equal(found[~flags], tokens[~flags])
    assert bool((found[flags] == 5).all())


@pytest.mark.parametrize(
    "how",
    [
        VIT,
        {**VIT, "arguments": {**SMALL, "class_token": False, "global_pool": "avg"}},
        {},
    ],
    ids=["transformer", "no class token", "convolutional"],
)
def test_an_interrupted_training_ends_the_same(how: dict, tmp_path: Path) -> None:
    recipe = MaskedRecipe(phase=PHASE)
    assert_resumes(tmp_path, recipe, 5, images=drawings(side=16), **how)


@pytest.mark.parametrize("how", [VIT, {}], ids=["transformer", "convolutional"])
def test_it_learns_and_shows_what_it_learned(how: dict, tmp_path: Path) -> None:
    recipe = MaskedRecipe(phase=replace(PHASE, epochs=16, rate=3e-3))
    material = tiny_material(tmp_path, recipe, images=drawings(side=16), **how)
    started = weights_of(material)
    told = trained(material, recipe)
    assert told[-1].loss < 0.85 * told[0].loss
    assert told[-1].held_out < told[0].held_out
    learned = weights_of(material)
    same = {name for name in started if torch.equal(started[name], learned[name])}
    assert same == {name for name in started if name.startswith(("head.", "classifier."))}
    pictures = material.stages.pictures
    assert {name: p.shape for name, p in pictures.items()} == dict.fromkeys(
        ("images", "masked", "predicted"), (2, 16, 16, 3)
    )
    seen = (pictures["images"] == pictures["masked"]).all(-1)
    np.testing.assert_allclose(pictures["predicted"][seen], pictures["images"][seen], atol=1e-6)
    assert not np.allclose(pictures["predicted"][~seen], pictures["masked"][~seen])


def test_the_kind_of_network_decides() -> None:
    assert isinstance(make_module(vit(), MaskedRecipe(), 0), MaskedTokens)
    registers = make_module(vit("vit_small_patch14_reg4_dinov2"), MaskedRecipe(patch=8), 0)
    assert isinstance(registers, MaskedTokens)
    assert (registers.prefix, registers.own, registers.patch) == (5, 4, 8)
    spec = BackboneSpec("timm", "test_convnext", {})
    found = make_module(build_chain(spec, (64, 64)), MaskedRecipe(), 0)  # ends in a map of 1x1
    assert isinstance(found, MaskedMap)
    assert found.patch == 8


@pytest.mark.parametrize(
    ("architecture", "arguments", "size"),
    [
        ("topwork:dense", {"widths": [8], "image_size": [28, 28], "in_chans": 1}, 28),
        # its attention turns queries and keys by their positions, in every block
        ("timm:eva02_tiny_patch14_224", {"img_size": [28, 28], "depth": 1}, 28),
    ],
)
def test_networks_that_it_does_not_take(architecture: str, arguments: dict, size: int) -> None:
    library, name = architecture.split(":")
    spec = BackboneSpec(library, name, arguments)
    chain = build_chain(spec, (size, size))
    with pytest.raises(PlanError, match="--method masked takes ConvNets, and vision transformers"):
        make_module(chain, MaskedRecipe(), 0)


def test_blocks_that_know_positions_are_not_taken() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, stride=4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.conv(images).flatten(2).transpose(1, 2)

    class Block(nn.Linear):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            rank = torch.arange(tokens.shape[1]).unsqueeze(1) if self.counts else 0
            return super().forward(tokens + rank)

    class Head(nn.Linear):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens.mean(1))

    for counts in (False, True):
        block = Block(8, 8)
        block.counts = counts
        parts = [("patches", Patches()), ("block", block), ("head", Head(8, 2))]
        chain = Chain.of(parts, torch.randn(1, 3, 16, 16))
        if counts:
            with pytest.raises(PlanError, match="--method masked takes"):
                make_module(chain, MaskedRecipe(), 0)
        else:
            assert isinstance(make_module(chain, MaskedRecipe(), 0), MaskedTokens)


def test_squares_that_do_not_suit(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="patch is 6; give a multiple of the network's own, 4"):
        make_module(vit(), MaskedRecipe(patch=6), 0)
    for patch in (5, 16):
        recipe = MaskedRecipe(phase=PHASE, patch=patch)
        message = f"patch is {patch}, but images have 16x16 pixels; give a divisor of both"
        with pytest.raises(PlanError, match=message):
            tiny_material(tmp_path / str(patch), recipe, images=drawings(side=16))


@pytest.mark.parametrize("changes", [{"mask_share": 1.0}, {"mask_share": -0.1}, {"patch": -1}])
def test_recipes_that_make_no_sense(changes: dict) -> None:
    with pytest.raises(PlanError, match="mask_share lies between 0 and 1, and patch is not neg"):
        recipe_of("masked").changed(changes)


def test_how_much_is_hidden_goes_by_the_network() -> None:
    convnet = build_chain(BackboneSpec("topwork", "small_convnet", {}), (16, 16))
    for chain, own in ((vit(), 0.75), (convnet, 0.6)):
        assert make_module(chain, MaskedRecipe(), 0).share == own
        assert make_module(chain, MaskedRecipe(mask_share=0.5), 0).share == 0.5


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("pit_ti_224", "--method masked takes"),  # fewer tokens above
        ("xcit_nano_12_p16_224", "--method masked takes"),  # a token comes late
        ("vit_tiny_r_s16_p8_224", "patches see each other before"),  # by a convolutional stem
    ],
)
def test_transformers_that_would_see_what_is_hidden(architecture: str, said: str) -> None:
    chain = build_chain(BackboneSpec("timm", architecture, {}), (224, 224))
    with pytest.raises(PlanError, match=said):
        make_module(chain, MaskedRecipe(), 0)


def test_it_tells_what_its_codes_are_worth(tmp_path: Path) -> None:
    labels = [0] * 20 + [1] * 20
    recipe = MaskedRecipe(phase=PHASE)
    material = tiny_material(tmp_path, recipe, images=drawings(side=16), labels=labels)
    told = trained(material, recipe)
    assert [sorted(epoch.found) for epoch in told] == [
        ["probe", "probe_high", "probe_low", "probe_n"]
    ] * 2
