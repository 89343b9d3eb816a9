"""Which statistics batch norms use, learn and keep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topwork.learn.batch_norm import batch_norms, choose_statistics, estimate_statistics
from topwork.learn.loop import TensorInputs, Training, own_randomness, steps
from topwork.learn.optimizers import group_parameters
from topwork.network.chain import trace_chain
from topwork.network.model import Model, Top, code_width
from topwork.network.small_convnet import small_convnet
from topwork.phase import Phase
from topwork.plan import Hidden

CPU = torch.device("cpu")
ENOUGH = 5_000


@pytest.mark.parametrize(
    ("policy", "batch", "images", "kept"),
    [
        ("source", 64, 1_000_000, True),
        ("batch", 2, 10, False),
        ("auto", 32, ENOUGH, False),
        ("auto", 31, ENOUGH, True),
        ("auto", 32, ENOUGH - 1, True),
        ("auto", 256, 300, True),
        ("auto", 1, 1, True),
    ],
)
def test_reused_norms_keep_their_statistics_by_policy_batch_and_images(
    policy: str, batch: int, images: int, kept: bool
):
    reused, new = nn.BatchNorm2d(3), nn.BatchNorm1d(3)
    phase = Phase(epochs=1, batch=batch, batch_norm=policy)
    found = choose_statistics([(reused, True), (new, False)], phase, images)
    assert found.kept == ({reused} if kept else set())
    assert found.learned == ({new} if kept else {reused, new})
    counts = (len(found.kept), len(found.learned))
    assert found.record().startswith(
        f"{counts[0]} keep the source's statistics, {counts[1]} learn the target's: "
    )


@pytest.mark.parametrize(
    ("settings", "images", "reason"),
    [
        ({"batch_norm": "source"}, 9, "the plan says so"),
        ({"batch": 8}, 9_000, "reused ones are kept at batches below 32"),
        ({"batch": 64}, 4_999, "reused ones are kept below 5,000 images (4,999 here)"),
        ({"batch": 64}, 60_000, "60,000 images in batches of 64 are enough"),
    ],
)
def test_the_record_gives_the_reason(settings: dict, images: int, reason: str):
    found = choose_statistics([(nn.BatchNorm2d(3), True)], Phase(epochs=1, **settings), images)
    assert found.record().endswith(reason)


def test_a_top_without_batch_norms_is_recorded_as_such():
    assert choose_statistics([], Phase(epochs=1), 9).record() == "no batch norms above the cut"


def test_only_norms_with_running_statistics_are_found():
    network = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.LayerNorm(3)
    )
    network.append(nn.Sequential(nn.SyncBatchNorm(3), nn.GroupNorm(1, 3), nn.InstanceNorm2d(3)))
    assert [name for name, _ in batch_norms(network)] == ["0", "3.0"]


def make_top(frozen: str) -> tuple[Model, Top]:
    """Return a model of three blocks with an added layer, and its top above a cut."""
    with own_randomness(0, CPU):
        network = small_convnet((4, 5, 6), num_classes=2).eval()
        for _, norm in batch_norms(network):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
        chain = trace_chain(network, torch.zeros(1, 3, 8, 8))
        codes = [chain.top.name]
        width = code_width(chain, codes, "avg")
        model = Model(chain, codes, "avg", width, 2, [Hidden(4, norm="batch")]).eval()
    return model, Top(chain, model, codes, chain.resolve(frozen))


def statistics(top: Top) -> dict[str, bytes]:
    return {
        f"{name}.{kind}": buffer.numpy().tobytes()
        for name, norm in batch_norms(top)
        for kind, buffer in norm.named_buffers()
    }


@pytest.mark.parametrize("policy", ["source", "batch"])
def test_in_training_kept_statistics_stay_to_the_byte_and_learned_ones_move(policy: str):
    model, top = make_top("block1")
    own = dict(top.layers())
    norms = [(module, "block" in name) for name, module in own.items() if "norm" in name]
    norms.append((own["added.1"], False))
    phase = Phase(epochs=2, batch=4, batch_norm=policy, rate=0.01)
    chosen = choose_statistics(norms, phase, 10)
    assert len(chosen.kept) == (2 if policy == "source" else 0)
    assert chosen.kept | chosen.learned == {norm for _, norm in batch_norms(top)}
    groups = group_parameters(top.layer_parameters(), {}, phase)
    training = Training(top, phase, 0.01, groups, keep_statistics=chosen.kept)
    before = statistics(top)
    everything = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    inputs = torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in steps(training, TensorInputs(inputs), torch.arange(10) % 2):
        assert not any(module.training for module in top.modules())
    after = statistics(top)
    kept_names = {name for name, norm in batch_norms(top) if norm in chosen.kept}
    for name, value in after.items():
        is_kept = name.rpartition(".")[0] in kept_names
        assert (value == before[name]) == is_kept, name
    for name, value in model.state_dict().items():
        if "block1" in name:
            assert value.numpy().tobytes() == everything[name]
    learned = next(iter(norm for _, norm in batch_norms(top) if norm in chosen.learned))
    assert int(learned.num_batches_tracked) == 6


@pytest.mark.parametrize("batch_sizes", [(8,), (5, 5, 5), (6, 3, 2)])
def test_estimated_statistics_are_the_mean_over_batches(batch_sizes: tuple[int, ...]):
    with own_randomness(1, CPU):
        network = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 2)
        )
        other = nn.BatchNorm1d(2)
        network.append(other)
        batches = [3 + 2 * torch.randn(n, 3, 5, 5) for n in batch_sizes]
    norm = network[1]
    norm.running_mean.fill_(9.0)
    norm.num_batches_tracked.fill_(7)
    norm.momentum = 0.3
    before = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("1.run")}
    estimate_statistics(network, [norm], iter(batches))
    with torch.no_grad():
        maps = [network[0](batch).double() for batch in batches]
    mean = sum(value.mean((0, 2, 3)) for value in maps) / len(maps)
    variance = sum(value.transpose(0, 1).flatten(1).var(1) for value in maps) / len(maps)
    torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=1e-5)
    assert norm.num_batches_tracked == len(batches)
    assert (norm.momentum, other.momentum) == (0.3, 0.1)
    assert not any(module.training for module in network.modules())
    for name, value in before.items():
        assert name.endswith("tracked") or torch.equal(network.state_dict()[name], value)


def test_estimating_lower_norms_reaches_the_upper_ones_in_the_same_pass():
    with own_randomness(2, CPU):
        network = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU(), nn.BatchNorm1d(3))
        batch = 5 + 3 * torch.randn(50, 3)
    estimate_statistics(network, [norm for _, norm in batch_norms(network)], [batch])
    normalized = torch.relu((batch - batch.mean(0)) / (batch.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(network[2].running_mean, normalized.mean(0), rtol=1e-4, atol=1e-5)


def test_an_error_in_a_batch_leaves_momentum_and_mode_in_order():
    norm = nn.BatchNorm1d(3, momentum=0.2)
    with pytest.raises(RuntimeError):
        estimate_statistics(nn.Sequential(norm), [norm], [torch.zeros(2, 3), torch.zeros(2, 4)])
    assert norm.momentum == 0.2
    assert not norm.training
