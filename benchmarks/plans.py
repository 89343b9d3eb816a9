"""Every way of reusing layers, each as a plan file, fitted to a real set; one table.

The plans are those of examples/plans/. Sets are cut down and some images seen small, so that all
end within a quarter of an hour on two cores; the table says what each was fitted to. The weights
of the rows that ask for another task come from two fits of their own, to the halves A and B of
cifar10_third.

Frozen means frozen: of the tensors and buffers below the lowest depth that a plan froze at, those
whose bytes differ from the source weights are counted. Wanted: 0 over all plans. Random layers
that are frozen ("control") have no source and are not counted.

    python benchmarks/plans.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import load_file

import sets
from places import options, require
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan

PLANS = Path(__file__).resolve().parents[1] / "examples" / "plans"
HALVES = {
    "A": ("airplane", "automobile", "bird", "cat", "deer"),
    "B": ("dog", "frog", "horse", "ship", "truck"),
}


@dataclass(frozen=True)
class Fit:
    """One row: what it is called, its plan, its data, and where its weights come from."""

    way: str
    plan: str
    data: str
    weights: str


@dataclass(frozen=True)
class Frozen:
    """How many tensors and buffers a run froze, and how many of them it changed all the same."""

    changed: int
    tensors: int
    control: bool

    def __str__(self) -> str:
        return f"{self.changed} of {self.tensors}{' (control)' if self.control else ''}"


FITS = (
    Fit("fixed feature extractor, linear SVM", "features", "hymenoptera", "mobilenetv2_100"),
    Fit("linear classifier on an earlier stage", "earlier_stage", "neu_steel", "mobilenetv2_100"),
    Fit("linear classifier on several stages", "several_stages", "neu_steel", "mobilenetv2_100"),
    Fit("random-feature control", "random_features", "neu_steel", "mobilenetv2_100"),
    Fit("drop the top layers", "drop_top", "neu_steel", "mobilenetv2_100"),
    Fit("replace the top layers, add more", "replace_top", "sign_digits", "mobilenetv2_100"),
    Fit("two adaptation layers", "adaptation_layers", "flowers12", "vit_tiny_patch16_224"),
    Fit("freeze k, train the rest", "freeze_lower", "sign_digits", "mobilenetv2_100"),
    Fit("warm up the head, then fine-tune", "warmup_finetune", "wbc", "mobilenetv2_100"),
    Fit("gradual unfreezing", "gradual", "sign_digits", "mobilenetv2_100"),
    Fit("fine-tune everything", "finetune", "hymenoptera", "vit_tiny_patch16_224"),
    Fit("from scratch: A", "scratch", "cifar_A", ""),
    Fit("from scratch: B", "scratch", "cifar_B", ""),
    Fit("Yosinski AnB", "yosinski_frozen", "cifar_B", "cifar_A"),
    Fit("Yosinski AnB+", "yosinski_tuned", "cifar_B", "cifar_A"),
    Fit("Yosinski BnB", "yosinski_frozen", "cifar_B", "cifar_B"),
    Fit("Yosinski BnB+", "yosinski_tuned", "cifar_B", "cifar_B"),
    Fit("auxiliary task, then supervised", "pretrained_then_supervised", "cifar_B", "cifar_A"),
)


def main() -> int:
    parser = options(__doc__)
    place = Path(tempfile.gettempdir()) / "topwork-plans"
    parser.add_argument(
        "--out", type=Path, default=place, help=f"folder for runs and table; {place}"
    )
    parser.add_argument("--only", help="the plan to fit, by its name")
    args = parser.parse_args()
    require(args.data, args.weights)
    rows, frozen = [], []
    for number, fit in enumerate(FITS, 1):
        if args.only and fit.plan != args.only:
            continue
        run = args.out / f"{number:02}-{fit.plan}-{fit.data}"
        record = fitted(fit, run, args)
        frozen.append(frozen_in(run, record, weights_of(fit, args)))
        rows.append(row_of(fit, record, frozen[-1]))
        print(rows[-1], flush=True)
    header = (
        "| way | plan | data | accuracy | interval | n | seconds | frozen tensors changed |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    (args.out / "table.md").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    changed = sum(found.changed for found in frozen)
    tensors = sum(found.tensors for found in frozen)
    print(f"\nfrozen tensors and buffers changed: {changed} of {tensors}; wanted 0")
    return 1 if changed else 0


def fitted(fit: Fit, run: Path, args: argparse.Namespace) -> dict:
    """Fit one row's plan, unless it has been; return its record."""
    if not (run / "record.json").exists():
        command = [sys.executable, "-m", "topwork", "fit", str(data_of(fit.data, args))]
        command += ["--plan", str(PLANS / f"{fit.plan}.json"), "--out", str(run), "--resume"]
        if weights := weights_of(fit, args):
            command += ["--weights" if weights.suffix else "--backbone", str(weights)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "record.json").read_text(encoding="utf-8"))


def weights_of(fit: Fit, args: argparse.Namespace) -> Path | None:
    """Return a row's weights: a file for the plan's own backbone, a folder with both, or none."""
    if fit.weights.startswith("cifar"):
        (source,) = args.out.glob(f"*-scratch-{fit.weights}")
        return source / "model" / "model.safetensors"
    return args.weights / fit.weights if fit.weights else None


def frozen_in(run: Path, record: dict, weights: Path | None) -> Frozen:
    """Compare what a run froze from beginning to end with its source, byte by byte."""
    plan = Plan.from_dict(record["plan"])
    own = weights if weights and weights.suffix else None
    loaded = load_backbone(find_backbone(plan.backbone, weights=own), plan, record["seed"])
    chain = loaded.chain
    lowest = min(chain.resolve(phase["frozen"]).depth for phase in record["phases"])
    reused = chain.resolve(loaded.plan.reused or 0).depth
    depth_of = chain.depth_of_state()
    names = [name for name, depth in depth_of.items() if depth <= min(lowest, reused)]
    source, shipped = chain.network.state_dict(), load_file(run / "model" / "model.safetensors")
    changed = sum(
        name not in shipped
        or shipped[name].tobytes() != source[name].contiguous().numpy().tobytes()
        for name in names
    )
    return Frozen(changed, len(names), control=lowest > reused)


def data_of(name: str, args: argparse.Namespace) -> Path:
    """Return the data of a row, cut down where it is large."""
    if name.startswith("cifar"):
        return half_of_cifar(args.data / "cifar10_third_jpg.zip", name[-1], args.out / "data")
    caps = {"sign_digits": 40, "wbc": 60}
    return sets.write_set(name, args.data, args.out / "data", train=caps.get(name), test=60)


def half_of_cifar(archive: Path, half: str, out: Path) -> Path:
    """Unpack half of the classes: 600 images each to train on, 200 to test."""
    folder = out / f"cifar_{half}"
    if not folder.exists():
        taken: dict[str, int] = {}
        with zipfile.ZipFile(archive) as opened:
            for member in sorted(opened.namelist()):
                place = Path(member)
                side, name = place.parent.parent.name, place.parent.name
                limit = 600 if side == "train" else 200
                key = f"{side}/{name}"
                if name in HALVES[half] and place.suffix and taken.get(key, 0) < limit:
                    taken[key] = taken.get(key, 0) + 1
                    target = folder / key / place.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(opened.read(member))
    return folder


def row_of(fit: Fit, record: dict, frozen: Frozen) -> str:
    """Return a row of the table."""
    low, high = record["interval"]
    return (
        f"| {fit.way} | {fit.plan} | {fit.data} | {record['value']:.3f} | [{low:.3f}, {high:.3f}]"
        f" | {record['n']} | {record['seconds']:.0f} | {frozen} |"
    )


if __name__ == "__main__":
    sys.exit(main())
