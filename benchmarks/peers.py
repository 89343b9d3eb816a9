"""topwork beside what users have: the PyTorch tutorial, fastai, a hand-written timm loop.

Same weights, same data (hymenoptera), same machine, one process after another. Three jobs: a fixed
extractor, fine-tuning the top blocks only, fine-tuning all; with living batch norm (MobileNetV2)
and without (ViT-Tiny). Each peer is a script of its own in peers/, with none of topwork in it; a
fit of topwork's has an empty cache. Seconds in total are those of the whole process, imports,
cached outputs and scores on val/ included; of the tutorial's 25 epochs 3 are run (fine-tuning: 2),
its total is extrapolated and its accuracy the best of these. Seconds of an epoch are those of
training alone.
The peers draw a new crop of each image in each epoch; topwork sees plain images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from places import options, require
from topwork.phase import Phase
from topwork.plan import Plan

SCRIPTS = Path(__file__).with_name("peers")
TOPWORK, TUTORIAL, FASTAI, TIMM = "topwork", "tutorial", "fastai", "timm"
FIXED, TOP, FINETUNE = "fixed", "top", "finetune"
JOBS = {
    FIXED: (TOPWORK, TUTORIAL, FASTAI, TIMM),
    TOP: (TOPWORK, TIMM),
    FINETUNE: (TOPWORK, TUTORIAL, FASTAI, TIMM),
}
EPOCHS = 3  # of topwork's training and of the timm loop's
FASTAI_EPOCHS = {FIXED: 3, FINETUNE: 4}
TUTORIAL_RUN = {FIXED: 3, FINETUNE: 2}  # of its 25
WANTED_TOTAL, WANTED_EPOCH = 30, 3  # the fixed extractor to the tutorial's, top blocks to timm's


@dataclass(frozen=True)
class Network:
    """A pretrained network, the depth up to which the job `TOP` freezes it, and what is above."""

    name: str
    frozen: str
    top: tuple[str, ...]


NETWORKS = (
    Network("mobilenetv2_100", "blocks.4", ("blocks.5", "blocks.6", "conv_head", "bn2")),
    Network("vit_tiny_patch16_224", "blocks.8", ("blocks.9", "blocks.10", "blocks.11", "norm")),
)


@dataclass(frozen=True)
class Row:
    """One measured job; ``seconds_per_epoch`` is None where no epoch is run."""

    network: str
    job: str
    who: str
    epochs: int
    seconds: float
    seconds_per_epoch: float | None
    accuracy: float
    load: float
    when: str

    @property
    def name(self) -> str:
        """What ``--only`` looks into."""
        return f"{self.network}/{self.job}/{self.who}"


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--only", help="run these only: a part of NETWORK/JOB/WHO, such as timm")
    parser.add_argument("--python", default=sys.executable, help="the Python that has fastai")
    parser.add_argument("--json", type=Path, help="file of rows; those run are replaced in it")
    args = parser.parse_args()
    require(args.data / "hymenoptera", *(args.weights / network.name for network in NETWORKS))
    rows = read_rows(args.json) if args.json else {}
    for network, job, who in asked(args.only or ""):
        if who == FASTAI and not has_fastai(args.python):
            print(f"{args.python} has no fastai; install topwork[bench], or give --python")
            continue
        row = measured(network, job, who, args.data, args.weights, args.python)
        print(shown(row), f"(load {row.load:.1f})", flush=True)
        rows[row.name] = row
        if args.json:
            text = json.dumps([asdict(row) for row in rows.values()], indent=2)
            args.json.write_text(text + "\n", encoding="utf-8")
    return summary(rows)


def asked(only: str) -> list[tuple[Network, str, str]]:
    """Return network, job and who of the rows whose names hold a text."""
    every = [(network, job, who) for network in NETWORKS for job in JOBS for who in JOBS[job]]
    return [
        (network, job, who) for network, job, who in every if only in f"{network.name}/{job}/{who}"
    ]


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of an earlier run, by name."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {row.name: row for row in (Row(**values) for values in found)}


def has_fastai(python: str) -> bool:
    """Look whether a Python has fastai, without importing it."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('fastai') is None)"
    return subprocess.run([python, "-c", code]).returncode == 0


def measured(network: Network, job: str, who: str, data: Path, weights: Path, python: str) -> Row:
    """Run one job in a process of its own."""
    load = os.getloadavg()[0]
    images, model = str(data / "hymenoptera"), str(weights / network.name)
    with tempfile.TemporaryDirectory() as folder:
        if who == TOPWORK:
            command = topwork_command(network, job, images, model, Path(folder))
        else:
            command = peer_command(network, job, who, images, model, python)
        start = time.perf_counter()
        result = output_of(command, cache=f"{folder}/cache")
        seconds = time.perf_counter() - start
    facts = facts_of_record(result) if who == TOPWORK else result
    if facts["epochs"] > facts["epochs_run"]:
        each = facts["seconds_per_epoch"] + facts["seconds_per_evaluation"]
        seconds += (facts["epochs"] - facts["epochs_run"]) * each
    return Row(
        network=network.name,
        job=job,
        who=who,
        epochs=facts["epochs"],
        seconds=seconds,
        seconds_per_epoch=facts["seconds_per_epoch"],
        accuracy=facts["accuracy"],
        load=load,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def peer_command(
    network: Network, job: str, who: str, images: str, model: str, python: str
) -> list[str]:
    """Return the command of a peer's script."""
    if who == TUTORIAL:
        run = str(TUTORIAL_RUN[job])
        script = str(SCRIPTS / "pytorch_tutorial.py")
        return [sys.executable, script, images, model, "--job", job, "--run", run]
    if who == FASTAI:
        epochs = str(FASTAI_EPOCHS[job])
        script = str(SCRIPTS / "fastai_learner.py")
        return [python, script, images, model, "--job", job, "--epochs", epochs]
    command = [sys.executable, str(SCRIPTS / "timm_loop.py"), images, model, "--job", job]
    return [*command, "--epochs", str(EPOCHS), "--top", *network.top]


def topwork_command(network: Network, job: str, images: str, model: str, folder: Path) -> list[str]:
    """Return the command of a fit; a plan file that it needs is put into a folder."""
    command = [sys.executable, "-m", "topwork", "fit", images, "--json", "--out", f"{folder}/run"]
    if job == FIXED:
        return [*command, "--backbone", model, "--plan", "features"]
    frozen = network.frozen if job == TOP else "input"
    trained = Phase(frozen=frozen, epochs=EPOCHS, rate=1e-3)
    Plan(model, phases=(Phase(), trained)).save(folder / "plan.json")
    return [*command, "--plan", f"{folder}/plan.json"]


def output_of(command: list[str], cache: str) -> dict[str, Any]:
    """Return the JSON that a command prints; leave if it fails."""
    threads = {name for name in os.environ if name.endswith("_NUM_THREADS")}
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    environment["TOPWORK_CACHE"] = cache
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def facts_of_record(record: dict[str, Any]) -> dict[str, Any]:
    """Return of a fit's record what the peers' scripts print."""
    epochs = [epoch["seconds"] for phase in record["phases"] for epoch in phase["epochs"]]
    return {
        "epochs": len(epochs),
        "epochs_run": len(epochs),
        "seconds_per_epoch": sum(epochs) / len(epochs) if epochs else None,
        "accuracy": record["accuracy"],
    }


def summary(rows: dict[str, Row]) -> int:
    """Print all rows with their ratios; return 0 if those wanted are there, else 1."""
    print(
        f"\n{'network/job/who':42}{'epochs':>7}{'s/epoch':>9}{'total s':>9}{'accuracy':>10}", end=""
    )
    print("   topwork is as fast: in total, per epoch")
    passed = True
    for row in sorted(rows.values(), key=lambda row: (row.network, list(JOBS).index(row.job))):
        own = rows.get(f"{row.network}/{row.job}/{TOPWORK}")
        line = shown(row)
        if own and own is not row:
            total, epoch = ratios(row, own)
            line += f"   {total:6.1f}x" + (f" {epoch:6.1f}x" if epoch else "")
            verdict = as_wanted(row, own)
            if verdict is not None:
                line += f"   {'PASS' if verdict else 'FAIL'}"
                passed = passed and verdict
        print(line)
    print(
        f"wanted, at an accuracy not below the peer's: fixed extractor {WANTED_TOTAL}x the tutorial"
        f" in total, top blocks {WANTED_EPOCH}x the timm loop per epoch"
    )
    return 0 if passed else 1


def shown(row: Row) -> str:
    """Return a row of the table."""
    epoch = f"{row.seconds_per_epoch:9.2f}" if row.seconds_per_epoch is not None else f"{'-':>9}"
    return f"{row.name:42}{row.epochs:7}{epoch}{row.seconds:9.1f}{row.accuracy:10.3f}"


def ratios(peer: Row, own: Row) -> tuple[float, float | None]:
    """Return how many times as long a peer takes: in total, and for an epoch where both have."""
    total = peer.seconds / own.seconds
    if peer.seconds_per_epoch is None or own.seconds_per_epoch is None:
        return total, None
    return total, peer.seconds_per_epoch / own.seconds_per_epoch


def as_wanted(peer: Row, own: Row) -> bool | None:
    """Say whether topwork's lead is the one claimed; None where nothing is claimed."""
    total, epoch = ratios(peer, own)
    if (peer.job, peer.who) == (FIXED, TUTORIAL):
        return total >= WANTED_TOTAL and own.accuracy >= peer.accuracy
    if (peer.job, peer.who) == (TOP, TIMM):
        return epoch is not None and epoch >= WANTED_EPOCH and own.accuracy >= peer.accuracy
    return None


if __name__ == "__main__":
    sys.exit(main())
