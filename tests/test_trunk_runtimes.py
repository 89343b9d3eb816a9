"""Runtimes of the trunk: they agree with eager, one that fails or is wrong is never used."""

import ast
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st

from topwork.data.views import Preprocessing, to_tensor
from topwork.errors import UsageError
from topwork.network.chain import Chain, trace_chain
from topwork.network.device import batch_size
from topwork.report.terminal import print_runtimes
from topwork.trunk.execution import Execution
from topwork.trunk.extraction import Extractor, prepare, program_facts
from topwork.trunk.runtimes import (
    available,
    choice,
    compiled,
    cost,
    machine,
    onnx_program,
    ready,
    table,
    timing,
    trials,
)
from topwork.trunk.runtimes.eager import half_run
from topwork.trunk.runtimes.onnx_runs import open_onnx
from topwork.trunk.runtimes.runtime import Run, Runtime
from topwork.trunk.runtimes.trials import Trial

CPU = torch.device("cpu")
SIZE = (64, 48)
SHAPE = (batch_size(CPU, SIZE), *SIZE, 3)
PREPROCESSING = Preprocessing(SIZE, 1.0, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SETTINGS = {
    "vit_tiny_patch16_224": {"img_size": SIZE, "depth": 2},
    "test_vit": {"img_size": (64, 64), "dynamic_img_size": True},
}
LONG = 1_000_000  # images: for so many everything repays itself

needs_onnx = pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="needs onnx")
RUNTIMES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(machine.version_of(name) is None, reason=f"needs {name}"),
    )
    for name in available.ONNX_RUNTIMES
]
pytestmark = needs_onnx


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.02)


@cache
def chain_of(architecture: str) -> Chain:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = timm.create_model(architecture, **SETTINGS.get(architecture, {})).eval()
    return trace_chain(network, torch.zeros(1, 3, *SIZE))


def extractor_of(
    architecture: str = "test_resnet", depths: tuple[str, ...] = (), pools: tuple[str, ...] = ()
) -> Extractor:
    chain = chain_of(architecture)
    depths = depths or (chain.top.name,)
    return prepare(chain, depths, pools or ("avg",), PREPROCESSING, Execution(CPU))


def ready_trunk(extractor: Extractor) -> ready.ReadyTrunk:
    return ready.ReadyTrunk(extractor.program, extractor.eager.run, program_facts(extractor))


def choose(
    extractor: Extractor, images: int = LONG, wanted: str = "auto", seconds: float = 0.01
) -> tuple[Runtime, Run]:
    facts = program_facts(extractor)
    return choice.faster_run(extractor.program, extractor.eager.run, facts, images, seconds, wanted)


def pixels_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def outputs_by_hand(extractor: Extractor, pixels: np.ndarray) -> list[np.ndarray]:
    """What the layers and poolings make of normalized pixels, contiguous, one after the other."""
    values = dict(extractor.trunk.outputs(to_tensor(pixels, PREPROCESSING)))
    return [
        output.module(values[extractor.trunk.cuts[output.number]]).numpy()
        for output in extractor.outputs
    ]


def assert_close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for part, expected in zip(found, wanted, strict=True):
        assert part.dtype == np.float32
        assert part.flags.c_contiguous
        assert part.shape == expected.shape
        assert np.abs(part - expected).max() <= 1e-5 * np.abs(expected).max()


NETWORKS = {
    "test_resnet": (("layer1", "layer3", "layer4"), ("none", "avg", "flatten")),
    "vit_tiny_patch16_224": (("blocks.0", "norm", "norm"), ("none", "token+avg", "token")),
    "test_efficientnet": (("blocks.1", "blocks.4"), ("avg", "none")),
    "test_convnext": (("stages.0", "stages.3"), ("avg", "none")),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("architecture", NETWORKS)
def test_all_outputs_are_those_of_the_layers(
    architecture: str, runtime: str, tmp_path: Path
) -> None:
    extractor = extractor_of(architecture, *NETWORKS[architecture])
    onnx_program.write_onnx(extractor.program, SHAPE, tmp_path / "trunk.onnx")
    run = open_onnx(runtime, tmp_path / "trunk.onnx", 2)
    for seed in (0, 1):
        pixels = pixels_of(seed)
        wanted = outputs_by_hand(extractor, pixels)
        assert_close(run(pixels), wanted)
        assert_close(extractor.eager.run(pixels), wanted)


def test_exporting_changes_nothing_of_the_trunk(tmp_path: Path) -> None:
    extractor = extractor_of()
    before = {name: value.clone() for name, value in extractor.program.state_dict().items()}
    found = extractor.eager.run(pixels_of(0))
    onnx_program.write_onnx(extractor.program, SHAPE, tmp_path / "trunk.onnx")
    assert not any(module.training for module in extractor.program.modules())
    after = extractor.program.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert np.array_equal(extractor.eager.run(pixels_of(0))[0], found[0])


def test_the_newer_exporter_steps_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, calls = torch.onnx.export, []

    def export(*arguments: object, dynamo: bool, **settings: object) -> None:
        calls.append(dynamo)
        if not dynamo:
            raise RuntimeError("gone")
        whole(*arguments, dynamo=False, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", export)
    onnx_program.write_onnx(extractor_of().program, SHAPE, tmp_path / "trunk.onnx")
    assert calls == [False, True]
    assert (tmp_path / "trunk.onnx").stat().st_size > 1000


@pytest.mark.slow
def test_what_only_the_newer_exporter_can_write(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    # It resizes its position embedding as it runs.
    extractor = extractor_of("test_vit", ("body", "body"), ("none", "avg"))
    onnx_program.write_onnx(extractor.program, SHAPE, tmp_path / "trunk.onnx")
    run = open_onnx("onnxruntime", tmp_path / "trunk.onnx", 2)
    assert_close(run(pixels_of(0)), outputs_by_hand(extractor, pixels_of(0)))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_threads_get_what_one_gets(runtime: str, tmp_path: Path) -> None:
    extractor = extractor_of("test_resnet", ("layer1", "layer4"), ("none", "avg"))
    onnx_program.write_onnx(extractor.program, SHAPE, tmp_path / "trunk.onnx")
    run = open_onnx(runtime, tmp_path / "trunk.onnx", 2)
    batches = [pixels_of(seed) for seed in range(40)]
    alone = [run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, batches))
    for one, other in zip(alone, together, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_asked_for_by_name_tried_and_kept(
    runtime: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor = extractor_of()
    with caplog.at_level(logging.INFO, "topwork"):
        found, run = choose(extractor, images=1, wanted=runtime)
    assert found == Runtime(runtime, CPU, SHAPE[0], machine.version_of(runtime) or "")
    assert found.facts()["version"]
    assert_close(run(pixels_of(3)), outputs_by_hand(extractor, pixels_of(3)))
    (line,) = caplog.messages
    assert line.startswith(f"runtime: {runtime}, ")
    assert "eager (largest difference " in line
    assert line.endswith(" s and kept")
    monkeypatch.setattr(ready, "compile_trunk", None)  # not again
    again, _ = choose(extractor, images=1, wanted=runtime)
    assert again == found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_trial_imports_that_runtime_only(runtime: str, tmp_path: Path) -> None:
    onnx_program.write_onnx(extractor_of().program, SHAPE, tmp_path / "trunk.onnx")
    code = (
        "import sys; from topwork.trunk.runtimes import child; child.main(*sys.argv[1:])\n"
        "print({module.partition('.')[0] for module in sys.modules})"
    )
    shape = "x".join(map(str, SHAPE))
    arguments = (runtime, tmp_path / "trunk.onnx", tmp_path / "outputs.npz", shape, "2")
    command = [sys.executable, "-c", code, *map(str, arguments)]
    said, modules = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert json.loads(said)["seconds_per_image"] > 0
    imported = set(ast.literal_eval(modules))
    assert imported & {"torch", *available.ONNX_RUNTIMES} == {runtime}
    assert "openvino_telemetry" not in imported  # it would report the import to its makers


# --- trials that go wrong -----------------------------------------------------------------------


def stub(code: str) -> Callable[..., list[str]]:
    """Return what stands for `child_command`: a child that runs this code instead.

    It finds numpy as np, the runtime's name, and the files ``outputs`` and ``expected``.
    """
    start = (
        "import os, signal, sys, time, numpy as np; runtime, outputs, expected = sys.argv[1:]\n"
        "def answer(change, seconds=1e-9):\n"
        "    parts = [change(part) for part in np.load(expected).values()]\n"
        "    np.savez(outputs, *parts)\n"
        '    print(\'{"setup": 0.1, "seconds_per_image": %g}\' % seconds)\n'
    )

    def command(
        runtime: str, model: Path, outputs: Path, shape: tuple[int, ...], threads: int
    ) -> list[str]:
        expected = model.with_name("expected.npz")
        np.savez(expected, *extractor_of().eager.run(timing.fixed_pixels(shape)))
        return [sys.executable, "-c", start + code, runtime, str(outputs), str(expected)]

    return command


WRONG = {
    "killed by SIGILL": "os.kill(os.getpid(), signal.SIGILL)",
    "killed by SIGKILL": "os.kill(os.getpid(), signal.SIGKILL)",
    "ValueError: no kernel": "raise ValueError('no kernel')",
    "ended with code 3": "sys.exit(3)",
    "ended without a result": "pass",
    "did not end within 1 s": "time.sleep(60)",
    "differs from eager by 1e-03, more than 1e-04": "answer(lambda x: x + 1e-3 * abs(x).max())",
    "gives numbers that are not finite": "answer(lambda x: x * np.nan)",
    "gives outputs of other shapes than eager": "answer(lambda x: x[:1])",
}


def test_one_wrong_output_of_several_is_enough() -> None:
    right = np.ones((2, 3), np.float32)
    for place in range(3):
        found = [right.copy() for _ in range(3)]
        found[place][1, 1] = np.nan
        trial = trials.judged("onnxruntime", found, [right] * 3, 0.1, 0.1)
        assert trial.problem == "gives numbers that are not finite"
        found[place][1, 1] = 1.01
        assert "differs" in str(trials.judged("x", found, [right] * 3, 0.1, 0.1).problem)


@pytest.mark.parametrize("problem", WRONG)
def test_what_fails_or_is_wrong_is_never_used(
    problem: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trials, "child_command", stub(WRONG[problem]))
    monkeypatch.setattr(trials, "TIMEOUT", 1)
    monkeypatch.setattr(available, "ONNX_RUNTIMES", ("onnxruntime",))
    monkeypatch.setattr(compiled, "ONNX_RUNTIMES", ("onnxruntime",))
    monkeypatch.setattr(compiled, "write_onnx", lambda program, shape, path: path.touch())
    monkeypatch.setattr(choice, "COMPILING", 1e9)
    extractor = extractor_of()
    with caplog.at_level(logging.INFO, "topwork"):
        runtime, run = choose(extractor)
    assert runtime.name == "eager"
    assert run is extractor.eager.run
    assert f"onnxruntime, {problem}; found out in" in caplog.text
    with pytest.raises(UsageError, match=f"--runtime onnxruntime: {problem}"):
        choose(extractor, wanted="onnxruntime")


def test_what_failed_once_may_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(trials, "child_command", stub("os.kill(os.getpid(), signal.SIGKILL)"))
    extractor = extractor_of()
    with pytest.raises(UsageError, match="killed by SIGKILL"):
        choose(extractor, wanted="onnxruntime")
    monkeypatch.setattr(trials, "child_command", stub("answer(lambda x: x)"))
    assert choose(extractor, wanted="onnxruntime")[0].name == "onnxruntime"


def test_a_file_that_no_runtime_opens(tmp_path: Path) -> None:
    model = tmp_path / "trunk.onnx"
    model.write_bytes(b"no model")
    for name in available.ONNX_RUNTIMES:
        if machine.version_of(name):
            trial = trials.try_onnx(name, model, [np.zeros((2, 3))], SHAPE, 2)
            assert trial.problem


@pytest.mark.parametrize(
    ("seconds", "chosen"), [(1e-9, "onnxruntime"), (1e9, "eager")], ids=["fast", "slow"]
)
def test_the_fastest_is_chosen(
    seconds: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(trials, "child_command", stub(f"answer(lambda x: x, {seconds})"))
    monkeypatch.setattr(choice, "COMPILING", 1e9)
    extractor = extractor_of()
    runtime, run = choose(extractor)
    assert runtime.name == chosen
    assert_close(run(pixels_of(0)), outputs_by_hand(extractor, pixels_of(0)))
    assert choose(extractor)[0] == runtime  # remembered
    assert choose(extractor, images=1)[0].name == "eager"  # opening it takes longer


def test_what_opens_otherwise_than_it_was_tried_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(trials, "child_command", stub("answer(lambda x: x)"))
    monkeypatch.setattr(choice, "COMPILING", 1e9)
    extractor = extractor_of()

    def shifted(name: str, model: Path, threads: int) -> Run:
        return lambda pixels: [part * 1.001 for part in extractor.eager.run(pixels)]

    monkeypatch.setattr(choice, "open_onnx", shifted)
    assert choose(extractor)[0].name == "eager"
    assert "differs from eager by 1e-03" in caplog.text


def test_no_onnx_form(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(*arguments: object, **settings: object) -> None:
        calls.append(settings["dynamo"])
        raise RuntimeError("no such operation\nand a page of details")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setattr(choice, "COMPILING", 1e9)
    extractor = extractor_of()
    for _ in range(2):
        assert choose(extractor)[0].name == "eager"
    assert calls == [False, True]  # and remembered
    kept = compiled.remembered(ready_trunk(extractor).key)
    assert kept is not None
    assert kept.trials[1].problem == "has no ONNX form: no such operation"


# --- what is kept -------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    """Keep a trunk, exporting and trying nothing; return its key and folder."""
    monkeypatch.setattr(
        compiled, "write_onnx", lambda program, shape, path: path.write_bytes(bytes(5000))
    )
    monkeypatch.setattr(compiled, "try_onnx", lambda name, *_: Trial(name, 1e-9, 0.0, 0.1))
    trunk = ready_trunk(extractor_of())
    made = ready.compiled_now(trunk)
    assert compiled.remembered(trunk.key) == compiled.CompiledTrunk(
        made.model, made.trials, pytest.approx(made.seconds, abs=1)
    )
    return trunk.key, made.model.parent


def test_only_the_same_trunk_is_remembered(kept: tuple[str, Path]) -> None:
    key, _ = kept
    assert ready_trunk(extractor_of()).key == key
    others = [
        extractor_of(pools=("flatten",)),
        extractor_of(depths=("layer3",)),
        extractor_of("test_efficientnet"),
    ]
    keys = {key, *(ready_trunk(other).key for other in others)}
    facts = program_facts(extractor_of())
    keys |= {
        compiled.trunk_key(facts, (4, *SIZE, 3), 2),
        compiled.trunk_key(facts, (2, 32, 32, 3), 2),
        compiled.trunk_key(facts, SHAPE, 3),
    }
    assert len(keys) == 7
    assert compiled.remembered("0" * 64) is None


def test_another_machine_or_release_tries_anew(
    kept: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = kept
    trunk = ready_trunk(extractor_of())
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "versions", lambda: {"torch": "9", "onnxruntime": None})
        assert compiled.trunk_key(trunk.facts, SHAPE, 2) != key
    here = machine.machine_facts()
    monkeypatch.setattr(compiled, "machine_facts", lambda: here | {"instructions": ["avx"]})
    assert compiled.trunk_key(trunk.facts, SHAPE, 2) != key


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a bit of the model": lambda folder: flip(folder / "trunk.onnx"),
    "a cut model": lambda folder: os.truncate(folder / "trunk.onnx", 1000),
    "no model": lambda folder: (folder / "trunk.onnx").unlink(),
    "no trials": lambda folder: (folder / "trials.json").unlink(),
    "cut trials": lambda folder: os.truncate(folder / "trials.json", 100),
    "other trials": lambda folder: (folder / "trials.json").write_text('{"trials": [{"a": 1}]}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_set_aside(
    damage: str, kept: tuple[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    key, folder = kept
    DAMAGE[damage](folder)
    assert compiled.remembered(key) is None
    assert f"{folder} is damaged; set aside" in caplog.text
    assert not folder.exists()
    assert folder.with_suffix(".damaged").is_dir()
    ready.compiled_now(ready_trunk(extractor_of()))
    assert compiled.remembered(key) is not None


def test_compiling_again_replaces_and_leaves_nothing_behind(kept: tuple[str, Path]) -> None:
    _, folder = kept
    old, begun = folder.with_name("old.tmp"), folder.with_name("begun.tmp")
    for path in (old, begun):
        path.mkdir()
    os.utime(old, (0, 0))
    before = (folder / "trials.json").stat().st_mtime_ns
    ready.compiled_now(ready_trunk(extractor_of()))
    assert (folder / "trials.json").stat().st_mtime_ns > before
    assert sorted(folder.parent.iterdir()) == sorted([folder, begun])


@pytest.mark.parametrize("failure", ["a runtime", "the export"])
def test_what_failed_once_is_replaced_by_what_did_not(
    kept: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    key, folder = kept

    def failing(*given: object) -> Trial:
        return Trial(str(given[0]), problem="did not end")

    def no_form(*given: object) -> None:
        raise compiled.NoOnnxForm("out of memory")

    trunk = ready_trunk(extractor_of())
    compiled.set_aside(folder)
    with monkeypatch.context() as patch:
        if failure == "a runtime":
            patch.setattr(compiled, "try_onnx", failing)
        else:
            patch.setattr(compiled, "write_onnx", no_form)
        ready.compiled_now(trunk)
    assert all(trial.problem for trial in compiled.remembered(key).trials[1:])
    made = ready.compiled_now(trunk)
    assert made.model.exists()
    found = compiled.remembered(key)
    assert found is not None
    assert not any(trial.problem for trial in found.trials)
    # Where nothing failed, what is there stays, whatever came of trying again.
    monkeypatch.setattr(compiled, "try_onnx", failing)
    ready.compiled_now(trunk)
    assert compiled.remembered(key) == found


def test_a_cache_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOPWORK_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(choice, "COMPILING", 1e9)
    assert choose(extractor_of())[0].name == "eager"
    assert "cannot be kept" in caplog.text


# --- whether, and which -------------------------------------------------------------------------

counts = st.integers(0, 10**7)
durations = st.floats(1e-4, 10)
sizes = st.floats(0, 4000)


@given(counts, counts, durations, sizes, sizes)
def test_worth_compiling_is_monotone(
    images: int, more: int, seconds: float, megabytes: float, larger: float
) -> None:
    worth = cost.worth_compiling(images, seconds, 2, megabytes)
    if worth:
        assert cost.worth_compiling(images + more, seconds, 2, megabytes)
    else:
        assert not cost.worth_compiling(images, seconds, 2, megabytes + larger)


def test_worth_compiling_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2.5 s + 0.01 s for a MB + ten batches of 2 images on each core, against a fifth saved.
    monkeypatch.setattr(cost, "workers", lambda: 2)
    for images, worth in ((1650, False), (1750, True)):  # 3.4 s of 17
        assert cost.worth_compiling(images, 0.01, 2, 50) == worth
    assert not cost.worth_compiling(0, 1.0, 2, 0)


def test_what_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [runtime.name for runtime in choice.runtimes_for(Execution(CPU), SIZE)]
    assert names[0] == "eager"
    assert "half" not in names
    on_gpu = choice.runtimes_for(Execution(torch.device("cuda")), SIZE)
    assert [(runtime.name, runtime.batch) for runtime in on_gpu] == [("eager", 64), ("compile", 64)]
    only = choice.runtimes_for(Execution(CPU, runtime="compile"), SIZE)
    assert [runtime.name for runtime in only] == ["compile"]
    with pytest.raises(UsageError, match="--runtime half: needs a CUDA device"):
        choice.runtimes_for(Execution(CPU, runtime="half"), SIZE)
    with pytest.raises(UsageError, match="--runtime openvino: runs on a CPU; add --device cpu"):
        choice.runtimes_for(Execution(torch.device("cuda"), runtime="openvino"), SIZE)
    monkeypatch.setattr(available, "version_of", lambda name: None)
    with pytest.raises(UsageError, match=r"openvino: not installed; pip install 'topwork\[open"):
        choose(extractor_of(), wanted="openvino")
    assert [r.name for r in choice.runtimes_for(Execution(CPU), SIZE)] == ["eager", "compile"]


def test_eager_by_name_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "remembered", None)
    assert choose(extractor_of(), wanted="eager")[0].name == "eager"


def test_compile_is_tried_where_the_work_is_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = extractor_of()
    eager = extractor.eager.run
    monkeypatch.setattr(choice, "ONNX_RUNTIMES", ())
    monkeypatch.setattr(ready, "seconds_per_image", lambda *_: 1e-9)
    monkeypatch.setattr(ready, "compiled_run", lambda program, device: lambda p: eager(p))
    assert choose(extractor, images=1000)[0].name == "eager"
    assert choose(extractor)[0].name == "compile"
    assert choose(extractor, images=1, wanted="compile")[0].name == "compile"

    def broken(program: object, device: object) -> Run:
        raise RuntimeError("no compiler\nand a page of details")

    monkeypatch.setattr(ready, "compiled_run", broken)
    with caplog.at_level(logging.INFO, "topwork"):
        assert choose(extractor)[0].name == "eager"
    assert "eager; compile, no compiler" in caplog.messages[-1]
    with pytest.raises(UsageError, match="--runtime compile: no compiler; choose auto or eager"):
        choose(extractor, wanted="compile")


@pytest.mark.slow
def test_compile_for_real() -> None:
    extractor = extractor_of("test_resnet", ("layer1", "layer4"), ("none", "avg"))
    runtime, run = choose(extractor, wanted="compile")
    assert runtime.name == "compile"
    with ThreadPoolExecutor(2) as pool:
        for pixels, found in zip(range(4), pool.map(run, map(pixels_of, range(4))), strict=True):
            assert_close(found, outputs_by_hand(extractor, pixels_of(pixels)))


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_half_precision(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    execution = Execution(torch.device(name))
    extractor = prepare(
        chain_of("test_resnet"), ("layer1", "layer4"), ("none", "avg"), PREPROCESSING, execution
    )
    wanted = extractor.eager.run(pixels_of(0))
    found = half_run(extractor.program, execution.device)(pixels_of(0))
    for part, expected in zip(found, wanted, strict=True):
        assert part.dtype == np.float32
        assert 1e-5 < trials.relative_difference(part, expected) < trials.HALF_TOLERANCE


def test_differences_are_relative_to_the_largest_value() -> None:
    expected = np.array([[0.0, -8.0, 1.0]], np.float32)
    for shift, wrong in ((7e-4, False), (9e-4, True)):
        trial = trials.judged("onnxruntime", [expected + shift], [expected], 0.1, 0.0)
        assert (trial.problem is not None) == wrong
        assert trial.difference == pytest.approx(shift / 8, rel=1e-3)
    assert trials.judged("half", [expected + 9e-4], [expected], 0.1, 0.0).problem is None
    zeros = np.zeros(3, np.float32)
    assert trials.judged("x", [zeros + 1e-3], [zeros], 0.1, 0.0).problem
    assert trials.judged("x", [zeros], [zeros], 0.1, 0.0).difference == 0


class Clock(threading.local):
    """Goes on by a second whenever its thread looks at it."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_seconds_are_those_of_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "time", Clock())
    for threads in (1, 4):
        seconds = timing.seconds_per_image(lambda pixels: [], pixels_of(0), threads)
        assert seconds == 1 / (SHAPE[0] * threads)


def test_a_small_gain_is_none() -> None:
    eager = Trial("eager", 1.0)
    for seconds, chosen in ((1.2, "eager"), (0.97, "eager"), (0.94, "x")):
        assert trials.fastest([eager, Trial("x", seconds)]).runtime == chosen


# --- the table ----------------------------------------------------------------------------------


def test_table_of_runtimes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    extractor = extractor_of()
    eager = extractor.eager.run
    monkeypatch.setattr(trials, "child_command", stub("answer(lambda x: x, 1e-9)"))
    monkeypatch.setattr(ready, "compiled_run", lambda program, device: lambda p: eager(p))
    monkeypatch.setattr(available, "version_of", lambda name: None if name == "openvino" else "1.0")
    monkeypatch.setattr(compiled, "version_of", lambda name: None if name == "openvino" else "1.0")
    rows = table.runtime_table(extractor.program, eager, program_facts(extractor))
    json.dumps(rows)
    by_name = {row["runtime"]: row for row in rows}
    assert [row["runtime"] for row in rows][:2] == ["eager", "onnxruntime"]
    assert set(by_name) == {"eager", "onnxruntime", "openvino", "compile", "half"}
    assert [row["runtime"] for row in rows if row["chosen"]] == ["onnxruntime"]
    assert by_name["eager"]["ratio"] == 1
    assert by_name["onnxruntime"]["difference"] == 0
    assert by_name["openvino"]["problem"] == "not installed; pip install 'topwork[openvino]'"
    assert by_name["half"]["images_per_second"] is None
    print_runtimes(rows)
    lines = capsys.readouterr().out.splitlines()
    assert "onnxruntime" in next(line for line in lines if "chosen" in line)
    assert "not installed" in next(line for line in lines if "openvino" in line)


def test_machine_facts_are_plain_and_the_same() -> None:
    facts = machine.machine_facts()
    assert json.loads(json.dumps(facts)) == facts == machine.machine_facts()
    assert facts["cores"] == os.cpu_count()
    if sys.platform == "linux":
        assert facts["instructions"]


def test_trials_survive_the_file() -> None:
    trial = Trial("onnxruntime", 0.01, 1e-7, 0.2)
    assert trials.gain(trial, Trial("eager", 0.02)) == 2
    assert trials.gain(Trial("x", problem="!"), Trial("eager", 0.02)) == 0
