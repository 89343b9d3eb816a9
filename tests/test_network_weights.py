"""Weights files are read without running code, and every tensor is accounted for."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from topwork.errors import WeightsError
from topwork.network.small_convnet import small_convnet
from topwork.network.weights import assign_weights, match_names, read_state
from topwork.network.zoo import find_backbone

SHARED = Path(__file__).parents[1] / "../shared/weights"
needs_weights = pytest.mark.skipif(not SHARED.is_dir(), reason="real weights are not here")

DEPTHS = ("input", "block1", "pool1", "block2", "pool2", "block3", "flatten")


def fresh(seed: int = 0, num_classes: int = 5) -> nn.Sequential:
    torch.manual_seed(seed)
    network = small_convnet((4, 6, 8), num_classes)
    for name, buffer in network.named_buffers():
        if not name.endswith("num_batches_tracked"):
            buffer.uniform_(0.5, 2.0)
    return network


def depth_of(network: nn.Module) -> dict[str, int]:
    where = {"block1": 1, "block2": 3, "block3": 5, "classifier": len(DEPTHS)}
    return {name: where[name.split(".")[0]] for name in network.state_dict()}


def assign(network, state, reused=6, kept=6):
    return assign_weights(network, state, depth_of(network), DEPTHS, reused, kept, "x.safetensors")


def copy_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_reads_any_precision_as_float32(tmp_path, dtype, kind):
    state = {"a.weight": torch.randn(3, 2).to(dtype), "a.num_batches_tracked": torch.tensor(7)}
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    read = read_state(path)
    assert read.keys() == state.keys()
    assert torch.equal(read["a.weight"], state["a.weight"].to(torch.float32))
    assert read["a.weight"].dtype == torch.float32
    assert read["a.num_batches_tracked"].dtype == torch.int64
    assert read["a.num_batches_tracked"] == 7


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["params"], ["model", "state_dict"]])
def test_takes_the_state_out_of_a_checkpoint(tmp_path, keys):
    content = {"fc.bias": nn.Parameter(torch.ones(2))}
    for key in keys:
        content = {key: content, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "w.pt")
    read = read_state(tmp_path / "w.pt")
    assert list(read) == ["fc.bias"]
    assert not read["fc.bias"].requires_grad


class Trap:
    """Unpickling one makes a folder: the evidence that code from the file has run."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("how", ["protocol 0", "protocol 2", "protocol 4", "zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".th", ".bin", ".safetensors"])
def test_never_runs_code_from_a_file(tmp_path, how, suffix):
    trap = Trap(tmp_path / "sprung")
    content = {"state_dict": {"a": torch.ones(2)}, "extra": trap}
    path = tmp_path / f"w{suffix}"
    if how.startswith("protocol"):
        path.write_bytes(pickle.dumps(trap, protocol=int(how[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(WeightsError) as caught:
        read_state(path)
    assert not (tmp_path / "sprung").exists()
    assert "\n" not in str(caught.value)
    if suffix != ".safetensors" and how != "protocol 0":
        assert "would run code from the file; convert it to safetensors" in str(caught.value)
    path.with_suffix(".check").write_bytes(pickle.dumps(trap))
    pickle.loads(path.with_suffix(".check").read_bytes())  # the trap does work
    assert (tmp_path / "sprung").exists()


def test_refuses_a_whole_pickled_network(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="convert it to safetensors where you trust it"):
        read_state(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_names_a_truncated_file(tmp_path, kind, share, recwarn):
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file({"a": torch.randn(40, 40)}, path)
    else:
        torch.save({"a": torch.randn(40, 40)}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match=r"w\.\w+: truncated, or not a") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pth", b"", "is empty"),
        ("w.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("w.pth", b"<!DOCTYPE html><html>", "not a PyTorch weights file"),
        ("w.safetensors", b"<!DOCTYPE html><html>", "not a safetensors file"),
        ("w.onnx", b"abc", "is not a weights file that topwork reads"),
        ("w.pth", None, "does not exist; check the path"),
    ],
)
def test_names_what_is_not_a_weights_file(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_state(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, not tensors by name"),
        ({}, "holds no tensors"),
        ({"a": torch.ones(1), "lr": 0.1}, "entry 'lr' is not a plain tensor"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "entry 'a' is not a plain tensor"),
        ({"a": torch.eye(2).to_sparse()}, "entry 'a' is not a plain tensor"),
    ],
)
def test_refuses_what_is_not_tensors_by_name(tmp_path, content, message):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message):
        read_state(tmp_path / "w.pth")


def test_a_folder_names_the_file_in_it(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"is a folder; name the weights file .*net\.safetensor"):
        read_state(tmp_path)


# --- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module.", "model.backbone."])
def test_prefixes_come_off_only_where_that_helps(prefix):
    own = fresh().state_dict()
    match = match_names({prefix + name: tensor for name, tensor in own.items()}, own)
    assert match.prefix == prefix
    assert list(match.state) == list(own)


def test_a_network_that_has_the_prefix_itself_keeps_it():
    match = match_names({"encoder.a": torch.ones(1), "b": torch.ones(1)}, ["encoder.a", "b"])
    assert match.prefix == ""
    assert list(match.state) == ["encoder.a", "b"]


def test_names_of_another_network_are_left_as_they_are():
    match = match_names({"module.model.x": torch.ones(1)}, ["a"])
    assert (match.prefix, list(match.state)) == ("", ["module.model.x"])


def test_a_name_that_the_file_holds_twice_is_never_merged():
    state = {"module.a": torch.ones(1), "module.b": torch.ones(1), "a": torch.zeros(1)}
    match = match_names(state, ["a", "b"])
    assert sorted(match.state) == ["a", "b", "module.a"]
    assert match.state["a"] == 0


@pytest.mark.parametrize(
    ("architecture", "old", "new"),
    [
        ("densenet121", r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2."),
        ("vit_b_16", r"\.mlp\.0\.", ".mlp.linear_1."),
        ("vit_b_16", r"\.mlp\.3\.", ".mlp.linear_2."),
    ],
)
def test_names_in_old_torchvision_files_are_brought_up_to_date(architecture, old, new):
    import re

    with torch.device("meta"):
        own = find_backbone(f"torchvision:{architecture}").spec.build().state_dict()
    file = {re.sub(old, new, name): tensor for name, tensor in own.items()}
    assert file.keys() != own.keys()
    match = match_names(file, own)
    assert match.state.keys() == own.keys()
    assert match.renamed == len(file.keys() - own.keys())


# --- accounting ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    kept=st.integers(0, 6),
    share=st.floats(0, 1),
    prefix=st.sampled_from(["", "module.", "model."]),
    counters=st.booleans(),
    head=st.sampled_from(["same", "other", "absent", "deeper"]),
)
def test_every_tensor_is_accounted_for(kept, share, prefix, counters, head):
    reused = round(kept * share)
    source, target = fresh(1), fresh(2, num_classes=5 if head == "same" else 9)
    file = {
        prefix + name: tensor
        for name, tensor in copy_of(source).items()
        if (counters or "tracked" not in name) and (head != "absent" or "classifier" not in name)
    }
    if head == "deeper":
        file[f"{prefix}classifier.3.weight"] = torch.ones(2)
    before, depth = copy_of(target), depth_of(target)
    accounting = assign(target, file, reused, kept)
    after = target.state_dict()

    parts = [
        accounting.reused,
        accounting.reinitialized,
        accounting.dropped,
        accounting.counters,
    ]
    assert sorted(name for part in parts for name in part) == sorted(before)
    translated = [name.removeprefix(prefix) for name in file]
    assert sorted([*accounting.reused, *accounting.unused]) == sorted(translated)
    assert accounting.prefix == prefix
    for name in before:
        if depth[name] <= reused and (counters or "tracked" not in name):
            assert name in accounting.reused
            assert torch.equal(after[name], source.state_dict()[name])
        else:
            assert name not in accounting.reused
            assert torch.equal(after[name], before[name])
        assert (name in accounting.reinitialized) == (reused < depth[name] <= kept)
        assert (name in accounting.dropped) == (depth[name] > kept)


BELOW_HEAD = [n for n in fresh().state_dict() if "classifier" not in n and "tracked" not in n]


@pytest.mark.parametrize("mutation", ["drop", "add", "shape", "rename"])
@settings(max_examples=15, deadline=None)
@given(name=st.sampled_from(BELOW_HEAD))
def test_every_mutation_of_a_file_is_an_error_that_names_it(mutation, name):
    source, target = fresh(1), fresh(2)
    file, before = copy_of(source), copy_of(target)
    tensor = file.pop(name)
    mutated = {
        "drop": {},
        "add": {name: tensor, "block9.conv.weight": tensor},
        "shape": {name: tensor[:-1]},
        "rename": {f"{name}x": tensor},
    }
    file |= mutated[mutation]
    with pytest.raises(WeightsError) as caught:
        assign(target, file)
    message = str(caught.value)
    named = {"add": "block9.conv.weight", "rename": f"{name}x"}.get(mutation, name)
    assert named in message
    assert name in message or mutation == "add"
    assert message.startswith("x.safetensors does not fit the network: 1 ")
    assert "\n" not in message
    if mutation == "shape":
        assert f"{[tensor.shape[0] - 1, *tensor.shape[1:]]} in the file" in message
        assert f"{list(tensor.shape)} in the network" in message
    for own, value in target.state_dict().items():
        assert torch.equal(value, before[own])  # nothing was copied


def test_a_file_of_lower_layers_says_how_much_it_covers():
    file = {n: t for n, t in copy_of(fresh(1)).items() if n.startswith(("block1", "block2"))}
    message = (
        "x.safetensors holds weights only up to pool2; keep that much with --kept pool2"
        " or reuse that much with --reused pool2"
    )
    with pytest.raises(WeightsError) as caught:
        assign(fresh(2), file)
    assert str(caught.value) == message
    assert len(assign(fresh(2), file, reused=4, kept=4).reused) == 12
    assert len(assign(fresh(2), file, reused=4, kept=6).reinitialized) == 6


def test_a_file_with_a_hole_is_damaged_not_partial():
    file = {n: t for n, t in copy_of(fresh(1)).items() if not n.startswith("block2")}
    with pytest.raises(WeightsError, match=r"5 missing \(block2\.conv\.weight, .* and 2 more\)"):
        assign(fresh(2), file)


def test_the_head_is_held_to_its_shape_where_it_is_asked_for():
    with pytest.raises(WeightsError, match=r"2 of another shape \(classifier\.weight is \[9, 8\]"):
        assign(fresh(2), copy_of(fresh(1, num_classes=9)), reused=7, kept=7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_numbers_that_are_none(bad):
    file = copy_of(fresh(1))
    file["block2.conv.weight"][0, 0, 0, 0] = bad
    with pytest.raises(WeightsError, match=r"block2\.conv\.weight holds infinities or NaN"):
        assign(fresh(2), file)


def test_buffers_that_a_network_computes_itself_are_not_unknown():
    network = fresh(2)
    network.block1.register_buffer("index", torch.arange(3), persistent=False)
    accounting = assign(network, {**copy_of(fresh(1)), "block1.index": torch.arange(4)})
    assert accounting.unused == ("classifier.weight", "classifier.bias", "block1.index")
    assert torch.equal(network.block1.index, torch.arange(3))


def test_describe_counts_in_one_line():
    file = {f"module.{n}": t for n, t in copy_of(fresh(1)).items() if "tracked" not in n}
    assert assign(fresh(2), file, reused=3, kept=5).describe() == (
        "10 tensors reused, 6 re-initialized, 2 dropped, 2 batch counters absent from the file,"
        " 7 in the file not needed, prefix 'module.' taken off"
    )


# --- real files ---------------------------------------------------------------------------------


@needs_weights
@pytest.mark.parametrize(
    ("name", "file", "head", "copied"),
    [
        ("torchvision:squeezenet1_1", "squeezenet1_1.safetensors", "classifier.1", 52),
        ("topwork:cifar_resnet20", "cifar10_resnet20-12fca82f.th", "linear", 97),
        (str(SHARED / "mobilenetv2_100"), None, "classifier", 314),
        (str(SHARED / "vit_tiny_patch16_224"), None, "head", 152),
    ],
)
def test_real_files_load_whole_with_their_heads(name, file, head, copied):
    backbone = find_backbone(name, weights=SHARED / file if file else None)
    network = backbone.spec.build()
    state = read_state(backbone.weights.location)
    depth = {n: 2 if n.startswith(f"{head}.") else 1 for n in network.state_dict()}
    accounting = assign_weights(network, state, depth, ("input", "top"), 2, 2, "file")
    assert len(accounting.reused) == copied == len(state)
    assert not accounting.unused
    for own, tensor in network.state_dict().items():
        if own not in accounting.counters:
            given = state[accounting.prefix + own]
            assert tensor.dtype == given.dtype
            assert torch.equal(tensor, given)


@needs_weights
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_resnet18_up_to_layer3_fits_both_libraries(library):
    path = SHARED / "resnet18_to_layer3.safetensors"
    depths = ("input", "stem", "layer1.1", "layer2.1", "layer3.1", "layer4.1")
    stages = {"layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5, "fc": 6}
    network = find_backbone(f"{library}:resnet18", weights=path).spec.build()
    depth = {name: stages.get(name.split(".")[0], 1) for name in network.state_dict()}
    state = read_state(path)
    with pytest.raises(WeightsError, match=r"only up to layer3\.1; keep that much with --kept lay"):
        assign_weights(network, state, depth, depths, 5, 5, path.name)
    accounting = assign_weights(network, state, depth, depths, 4, 4, path.name)
    assert accounting.describe() == "90 tensors reused, 0 re-initialized, 32 dropped"
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
