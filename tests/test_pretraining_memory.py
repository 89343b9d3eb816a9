"""What a step keeps for the backward pass, and the refusal of what does not fit."""

from pathlib import Path

import pytest
import torch
from torch import nn

from pretraining import drawings, tiny_material, trained
from topwork.errors import PlanError
from topwork.learn.loop import TensorInputs
from topwork.phase import Phase
from topwork.pretraining import memory
from topwork.pretraining.memory import free_memory, kept_bytes, require_memory
from topwork.pretraining.recipe import Recipe
from topwork.pretraining.rotation import RotationRecipe


def test_what_is_kept_grows_with_the_images_and_not_with_the_weights() -> None:
    for width in (16, 64):
        layers = nn.Sequential(nn.Linear(100, width), nn.Sigmoid(), nn.Linear(width, 3))
        # the inputs, and what the sigmoid gives
        assert kept_bytes(layers, [torch.ones(2, 100)], "float32") == 2 * 4 * (100 + width)


def test_looking_changes_nothing() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()).eval()
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    state = torch.get_rng_state()
    assert kept_bytes(layers, [torch.randn(2, 3, 8, 8)], "float32")
    state_after = torch.get_rng_state()
    assert not layers.training
    assert all(torch.equal(value, before[name]) for name, value in layers.state_dict().items())
    torch.manual_seed(0)
    torch.set_rng_state(state)
    torch.randn(2, 3, 8, 8)
    assert torch.equal(torch.get_rng_state(), state_after)


def test_batches_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, phase = nn.Sequential(nn.Linear(100, 16), nn.Sigmoid()), Phase(epochs=1, batch=50)
    each = 4 * (100 + 16)
    images = TensorInputs(torch.ones(100, 100))

    def room_for(count: float) -> None:
        monkeypatch.setattr(memory, "free_memory", lambda device: count * each)

    room_for(50)
    require_memory("stage", layers, phase, images)
    room_for(49)
    with pytest.raises(PlanError, match=r'50 images keeps .* such as {"phase": {"batch": 24}}'):
        require_memory("stage", layers, phase, images)
    require_memory("stage", layers, phase, TensorInputs(torch.ones(60, 100)))  # 30 and 30
    at_once = Phase(epochs=1, batch=50, at_once=20)
    require_memory("stage", layers, at_once, images)
    require_memory("stage", layers, Phase(epochs=1, batch=40, at_once=100), images)
    room_for(19)
    with pytest.raises(PlanError, match=r'20 images keeps .* such as {"phase": {"at_once": 9}}'):
        require_memory("stage", layers, at_once, images)
    room_for(0)
    require_memory("stage", layers, phase, TensorInputs(torch.ones(0, 100)))  # told of elsewhere
    room_for(0.1)
    with pytest.raises(PlanError, match="a smaller network, or a smaller --size"):
        require_memory("stage", layers, phase, images)


def test_what_does_not_grow_with_the_images_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.Sequential(nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 1000))
    phase = Phase(epochs=1, batch=100, precision="bfloat16")
    copied = 2 * 1000 * 1000  # the weights in half precision
    assert kept_bytes(layers, [torch.ones(2, 10)], "bfloat16") > copied
    monkeypatch.setattr(memory, "free_memory", lambda device: 2.0 * copied)
    require_memory("stage", layers, phase, TensorInputs(torch.ones(100, 10)))
    monkeypatch.setattr(memory, "free_memory", lambda device: 1.0 * copied)
    with pytest.raises(PlanError, match=r"100 images keeps .* a smaller network"):
        require_memory("stage", layers, phase, TensorInputs(torch.ones(100, 10)))


def test_a_method_is_refused_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: Recipe = RotationRecipe(phase=Phase(epochs=1, batch=20, rate=0.01))
    material = tiny_material(tmp_path, recipe, images=drawings())
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e5)
    with pytest.raises(PlanError, match="quarter turns: a step with 19 images keeps"):
        trained(material, recipe)


def test_free_memory_is_what_the_group_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    free = free_memory(torch.device("cpu"))
    assert 1e7 < free < float("inf")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1e7
    (tmp_path / "memory.max").write_text("1000000\n")
    assert free_memory(torch.device("cpu")) == 500_000
