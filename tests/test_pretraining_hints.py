"""Hints: which maps are paired, what is read off them, and that a student learns them."""

from dataclasses import replace
from math import log2
from pathlib import Path

import pytest
import torch
from torch import nn

from pretraining import assert_resumes, drawings, tiny_material, trained
from test_pretraining_distill import SHORT, teacher_in
from topwork.learn.objective import Scale
from topwork.network.chain import Chain
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.pretraining.distill import DistillRecipe, Student
from topwork.pretraining.hints import FINEST, Hint, HintReader, hints_between


def chain_of(name: str, size: int) -> Chain:
    phases = (Phase(frozen="input", epochs=1),)
    plan = Plan(name, reused="0", phases=phases, input_size=(size, size))
    return load_backbone(find_backbone(name), plan).chain


@pytest.mark.parametrize("size", [48, 80, 96, 100, 112, 224])
def test_maps_of_like_resolution_are_paired(size: int) -> None:
    student, teacher = chain_of("timm:regnetx_002", size), chain_of("timm:mobilenetv2_100", 224)
    found = hints_between(student, teacher)
    assert [(hint.own.name, hint.theirs.name) for hint in found] == [
        ("s2", "blocks.2.2"),
        ("s3.b4", "blocks.4.2"),
        ("s4.b7", "blocks.6"),
    ]
    for hint in found:
        assert round(log2(size / hint.own.shape[1])) == log2(224 / hint.theirs.shape[1])
        assert hint.rows == hint.columns == min(FINEST, hint.own.shape[1], hint.theirs.shape[1])
        assert hint.theirs.depth < teacher.top.depth


def test_the_tops_meet_whatever_the_sizes() -> None:
    """Not the student's top and a low block of the teacher's, though a position is 4 pixels of
    either."""
    student = chain_of("topwork:cifar_resnet20", 32)
    found = hints_between(student, chain_of("timm:mobilenetv2_100", 224))
    assert [(hint.own.name, hint.theirs.name) for hint in found] == [
        ("layer1.2", "blocks.2.2"),
        ("layer2.2", "blocks.4.2"),
        ("layer3.2", "blocks.6"),
    ]
    assert found[-1].own == student.top


def test_a_hint_teaches_the_layers_below_it() -> None:
    """The gradient is that of the loop over cells, as far as the student's first layer."""
    hint, _, theirs, reader, scale = example()
    below = nn.Conv2d(3, hint.own.shape[0], 1)
    unit = Scale(torch.zeros(1), torch.ones(1))
    student = Student([below], Zeros(), 1, unit, hints=[reader], hint_weight=2.0)
    pixels, codes = torch.randn(3, 3, *hint.own.shape[1:]), torch.zeros(3, 1)
    student(pixels, theirs, codes)[:, 0].mean().backward()
    assert below.weight.grad is not None
    found, below.weight.grad = below.weight.grad, None
    (2.0 * torch.stack(by_loop(hint, below(pixels), theirs, reader, scale)).mean()).backward()
    torch.testing.assert_close(found, below.weight.grad, rtol=1e-4, atol=1e-6)
    assert found.abs().max() > 0


def test_networks_without_maps_have_none() -> None:
    assert hints_between(chain_of("topwork:dense", 28), chain_of("topwork:small_convnet", 28)) == []


def example() -> tuple[Hint, torch.Tensor, torch.Tensor, HintReader, Scale]:
    """Return a hint, maps of either side, of the teacher's pooled, and what reads them."""
    hint = hints_between(chain_of("topwork:small_convnet", 8), chain_of("timm:resnet18", 64))[-1]
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(3, *hint.own.shape, generator=generator)
    channels = hint.theirs.shape[0]
    theirs = torch.randn(3, channels * hint.rows * hint.columns, generator=generator)
    scale = Scale(torch.randn(channels), torch.rand(channels) + 0.5)
    return hint, own, theirs, HintReader(hint, scale), scale


def by_loop(
    hint: Hint, own: torch.Tensor, theirs: torch.Tensor, reader: HintReader, scale: Scale
) -> list[torch.Tensor]:
    """Return the error of each image, cell by cell."""
    cells = hint.rows * hint.columns
    height, width = hint.own.shape[1] // hint.rows, hint.own.shape[2] // hint.columns
    found = []
    for image in range(len(own)):
        errors = []
        for cell in range(cells):
            row, column = divmod(cell, hint.columns)
            part = own[image, :, row * height :, column * width :][:, :height, :width]
            read = reader.reader.weight @ part.mean((1, 2)) + reader.reader.bias
            wanted = theirs[image].view(-1, cells)[:, cell]
            errors.append(((read - (wanted - scale.mean) / scale.deviation) ** 2).mean())
        found.append(torch.stack(errors).mean())
    return found


def test_loss_is_that_of_a_loop_over_cells() -> None:
    hint, own, theirs, reader, scale = example()
    expected = torch.stack(by_loop(hint, own, theirs, reader, scale))
    torch.testing.assert_close(reader(own, theirs), expected, rtol=1e-4, atol=1e-5)


class Zeros(nn.Module):
    """A pooling that leaves nothing to learn."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(values), 1)


def test_hints_add_their_mean_by_their_weight() -> None:
    class Tells(nn.Module):
        def forward(self, values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
            return values.flatten(1).mean(1) + wanted[:, 0]

    layers, scale = [nn.Identity(), nn.ReLU()], Scale(torch.zeros(4), torch.ones(4))
    pixels, codes = torch.randn(5, 3, 2, 2), torch.randn(5, 4)
    maps = torch.randn(2, 5, 6)
    plain = Student(layers, nn.Flatten(), 12, scale)
    both = Student(layers, nn.Flatten(), 12, scale, hints=[Tells(), Tells()], hint_weight=2.0)
    both.load_state_dict(plain.state_dict())
    told = [values.flatten(1).mean(1) for values in (pixels, pixels.relu())]
    expected = plain(pixels, codes)[:, 0] + 2.0 * (sum(told) + maps[:, :, 0].sum(0)) / 2
    torch.testing.assert_close(both(pixels, *maps, codes)[:, 0], expected)


HINTED = DistillRecipe(Phase(epochs=12, batch=8, rate=0.01), views=2, logits=0.0, hints=1.0)


def test_a_student_learns_them(tmp_path: Path) -> None:
    """With hints the loss is more, by what is left of their error; and that falls."""
    how = {"images": drawings(80), "teacher": teacher_in(tmp_path, 16)}
    plain, hinted = (
        trained(tiny_material(tmp_path / str(recipe.hints), recipe, **how), recipe)
        for recipe in (replace(HINTED, hints=0.0), HINTED)
    )
    first, last = hinted[0].loss - plain[0].loss, hinted[-1].loss - plain[-1].loss
    assert last < 0.7 * first


def test_what_is_held_out_is_judged_without_them() -> None:
    layers, scale = [nn.Identity()], Scale(torch.zeros(4), torch.ones(4))
    (hint,) = hints_between(chain_of("topwork:small_convnet", 8), chain_of("timm:resnet18", 64))[:1]
    plain = Student(layers, nn.Flatten(), 12, scale).eval()
    both = Student(
        layers,
        nn.Flatten(),
        12,
        scale,
        hints=[HintReader(hint, Scale(torch.zeros(6), torch.ones(6)))],
        hint_weight=2.0,
    ).eval()
    both.load_state_dict(plain.state_dict(), strict=False)
    pixels, codes = torch.randn(5, 3, 2, 2), torch.randn(5, 4)
    assert torch.equal(both(pixels, torch.randn(5, 24), codes), plain(pixels, codes))


def test_an_interruption_changes_nothing(tmp_path: Path) -> None:
    recipe = replace(SHORT, hints=1.0, mix_strength=0.5)
    assert_resumes(tmp_path, recipe, 7, teacher=teacher_in(tmp_path))
