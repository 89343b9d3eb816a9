"""Kill a fit at random moments and resume it: the weights are those of a fit left alone, by bytes.

A small fit (head first, then the upper half of MobileNetV2) runs to its end twice; then again and
again it is begun with an empty cache, gets SIGKILL or SIGTERM at a moment drawn evenly from those
after the imports, in half of the trials a second time after it was resumed, and is resumed to its
end. A trial whose fit has ended before its first signal is drawn again. Exit codes are looked at
too: that of SIGTERM is 143.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import sets
from places import options, require
from topwork.phase import Phase
from topwork.plan import Plan

IMAGES = 40  # per class and side
SIZE = (96, 96)
PHASES = (Phase(), Phase(frozen="blocks.3", epochs=6, batch=16, rate=1e-3, average=0.9))
EXIT_CODES = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143}


@dataclass(frozen=True)
class Fit:
    """What every trial runs, the weights that it should give, and when it can be interrupted."""

    data: Path
    plan: Path
    folder: Path
    weights: bytes
    imports: float
    seconds: float


@dataclass(frozen=True)
class Stop:
    """One interruption: its moment, the newest checkpoint then, and the exit code."""

    seconds: float
    checkpoint: str
    code: int


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=30, help="trials with SIGKILL")
    parser.add_argument("--terms", type=int, default=10, help="trials with SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    model = args.weights / "mobilenetv2_100"
    require(args.data, model)
    with tempfile.TemporaryDirectory() as folder:
        fit = prepared(args.data, model, Path(folder))
        print(
            f"a fit left alone: {fit.seconds:.1f} s, {fit.imports:.1f} s of it imports; moments in"
        )
        print("seconds since the start, with the newest checkpoint then and the exit code\n")
        chance = random.Random(args.seed)
        signals = [signal.SIGKILL] * args.kills + [signal.SIGTERM] * args.terms
        passed = [trial(fit, number, sent, chance) for number, sent in enumerate(signals, 1)]
    print(f"\nas a fit left alone: {sum(passed)} of {len(passed)}")
    return 0 if all(passed) else 1


def prepared(data: Path, model: Path, folder: Path) -> Fit:
    """Fit twice without interruption; leave if the two differ, for then nothing can be compared."""
    manifest = sets.write_set("hymenoptera", data, folder, train=IMAGES, test=IMAGES)
    plan = folder / "plan.json"
    Plan(str(model), input_size=SIZE, phases=PHASES).save(plan)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import topwork.api"], check=True)
    imports = time.perf_counter() - start
    seconds, weights = 0.0, []
    for name in ("first", "second"):
        start = time.perf_counter()
        process = begin(manifest, plan, folder / name)
        if process.wait():
            sys.exit(f"the fit fails without interruption:\n{errors(folder / name)}")
        seconds = time.perf_counter() - start
        weights.append(weights_of(folder / name))
    if weights[0] != weights[1]:
        sys.exit("two fits left alone differ in their weights, so that nothing can be compared")
    return Fit(manifest, plan, folder, weights[0], imports, seconds)


def trial(fit: Fit, number: int, sent: signal.Signals, chance: random.Random) -> bool:
    """Interrupt and resume a fit, print what came of it, and say whether it is as it should be."""
    run = fit.folder / "run"
    stops: list[Stop] = []
    while not stops:
        clear(run)
        stops = interrupted(fit, run, sent, chance)
    ended = finished(run) or begin(fit.data, fit.plan, run, "--resume").wait() == 0
    same = ended and weights_of(run) == fit.weights
    moments = ", ".join(f"{s.seconds:.2f} ({s.checkpoint}, {s.code})" for s in stops)
    verdict = "equal" if same else "DIFFERENT" if ended else f"none: {errors(run)}"
    print(f"{number:3} {sent.name} at {moments:32} weights {verdict}", flush=True)
    clear(run)
    return same and all(stop.code == EXIT_CODES[sent] for stop in stops)


def interrupted(fit: Fit, run: Path, sent: signal.Signals, chance: random.Random) -> list[Stop]:
    """Begin a fit and stop it once or twice; the stops that came before its end are returned."""
    stops: list[Stop] = []
    seconds_left = fit.seconds
    for resume in ((), ("--resume",))[: chance.choice((1, 2))]:
        moment = chance.uniform(fit.imports, seconds_left)
        process = begin(fit.data, fit.plan, run, *resume)
        try:
            if process.wait(timeout=moment):
                sys.exit(f"the fit fails before it is interrupted:\n{errors(run)}")
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
        code = process.wait()
        if finished(run):
            break
        stops.append(Stop(moment, newest_checkpoint(run), code))
        seconds_left = fit.imports + fit.seconds - moment
    return stops


def begin(data: Path, plan: Path, run: Path, *more: str | Path) -> subprocess.Popen[bytes]:
    """Begin a fit, or go on with it, in a process of its own."""
    fit: list[str | Path] = [sys.executable, "-m", "topwork", "fit"]
    command = [*fit, data, "--plan", plan, "--out", run, *more]
    environment = os.environ | {"TOPWORK_CACHE": str(beside(run, ".cache"))}
    with beside(run, ".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)


def beside(run: Path, what: str) -> Path:
    """Return the path of what lies beside a run folder."""
    return run.with_name(run.name + what)


def errors(run: Path) -> str:
    """Return the last line that the latest process of a run has logged."""
    lines = beside(run, ".log").read_text(encoding="utf-8").splitlines()
    return lines[-1] if lines else "(nothing was logged)"


def newest_checkpoint(run: Path) -> str:
    """Return the number of the newest checkpoint of a fit under way; "-" where there is none."""
    files = beside(run, ".unfinished").glob("checkpoints/*.safetensors")
    number = max((int(file.name.partition("-")[0]) for file in files), default=0)
    return f"#{number}" if number else "-"


def finished(run: Path) -> bool:
    """Say whether a fit has ended; its run folder is there as a whole or not at all."""
    return run.exists()


def weights_of(run: Path) -> bytes:
    """Return the bytes of a run's weights."""
    return (run / "model" / "model.safetensors").read_bytes()


def clear(run: Path) -> None:
    """Remove a run, its cache, and what an interruption left."""
    for what in ("", ".cache", ".unfinished"):
        shutil.rmtree(beside(run, what), ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
