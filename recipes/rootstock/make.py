"""Make the backbone that comes with topwork, `topwork:rootstock`.

MobileNetV2 at 224 pixels teaches timm's regnetx_002 at 96 on 15,844 photos whose labels are not
looked at: its codes, its logits and its maps on twelve views of each. Stopped, it goes on where it
was.

    python recipes/rootstock/make.py --pack src/topwork/network/rootstock
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import topwork
from topwork.data.image_set import ImageSet
from topwork.data.items import images_from_paths
from topwork.report.record import write_json

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
PHOTOS = ("tiny_imagenet_200x75", "imagenet_1000_photos_160px")
TEACHER = "mobilenetv2_100"
STUDENT, SIZE = "timm:regnetx_002", (96, 96)
LEFT_OUT = {
    "n02206856": "bee: hymenoptera",
    "n02219486": "ant: hymenoptera",
    "n02106662": "German shepherd: pacs",
    "n02109525": "Saint Bernard: pacs",
    "n02676566": "acoustic guitar: pacs",
    "n03272010": "electric guitar: pacs",
}
"""WordNet ids of classes whose photos are in sets that topwork is measured on: 156 photos.

Eleven of these bees and a dog are the very photos (`overlap.py`).
"""
LOCAL = ("source", "command", "started_from")
"""What a card says of the machine that made it."""


def main() -> None:
    """Make the backbone, as far as it has not been made, and pack it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED / "data", help="folder of archives")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights", help="of the teacher")
    parser.add_argument("--out", type=Path, default=Path("runs/rootstock"), help="to work in")
    parser.add_argument("--pack", type=Path, help="folder to put into what the package needs")
    parser.add_argument("--seed", type=int, default=0, help="another one tells what is luck")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    made = args.out / "made"
    if not made.exists():
        images = images_from_paths(photos_in(unpack(args.data, args.out / "photos")))
        recipe = json.loads((HERE / "recipe.json").read_text(encoding="utf-8"))
        make(images, args.weights / TEACHER, made, recipe, args.seed)
    if args.pack:
        pack(made, args.pack)


def make(
    images: ImageSet, teacher: Path, out: Path, recipe: dict[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Pretrain, or go on with that; return the record."""
    return topwork.pretrain(
        images,
        out,
        method="distill",
        backbone=STUDENT,
        teacher=str(teacher),
        size=SIZE,
        recipe=recipe,
        half=True,
        seed=seed,
        resume=True,
    )


def photos_in(folder: Path) -> list[Path]:
    """Return the photos to learn from, in the order of their paths."""
    found = (path for path in folder.rglob("*") if path.suffix in (".jpg", ".JPEG"))
    return sorted(path for path in found if path.name[:9] not in LEFT_OUT)


def unpack(data: Path, folder: Path) -> Path:
    """Unpack the archives of photos, unless that has been done; return where."""
    for name in PHOTOS:
        whole, part = folder / name, folder / f"{name}.part"
        if not whole.exists():
            with zipfile.ZipFile(data / f"{name}.zip") as archive:
                archive.extractall(part)
            part.rename(whole)
    return folder


def pack(made: Path, folder: Path) -> None:
    """Copy what is needed to use the backbone, with a card that says what a user must know."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", "source_statistics.safetensors"):
        shutil.copyfile(made / name, folder / name)
    facts = json.loads((made / "backbone.json").read_text(encoding="utf-8"))
    card = {key: value for key, value in facts["card"].items() if key not in LOCAL}
    card["teacher"] = {k: v for k, v in card["teacher"].items() if k != "name"}  # a folder
    facts["card"] = {**json.loads((HERE / "card.json").read_text(encoding="utf-8")), **card}
    write_json(folder / "backbone.json", facts)
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["license"] = facts["card"]["license"]
    write_json(folder / "config.json", config)
    (folder / "README.md").write_text(card_in_words(facts), encoding="utf-8")


def card_in_words(facts: dict[str, Any]) -> str:
    """Return the card as Markdown."""
    card = facts["card"]
    found = card["results"]["distillation"]
    return (
        (HERE / "card.md")
        .read_text(encoding="utf-8")
        .format(
            **{key: card[key] for key in ("held_out", "date", "terms", "limits")},
            photos=card["images"] + card["held_out"],
            epochs=card["recipe"]["phase"]["epochs"],
            results=results_of(facts["weights_sha256"]),
            minutes=round(card["training_seconds"] / 60),
            agreement=f"{found['agreement']:.3f} ({found['agreement_low']:.3f} to"
            f" {found['agreement_high']:.3f})",
            sha256=facts["weights_sha256"],
        )
    )


def results_of(weights: str) -> str:
    """Return what was measured of weights by their SHA-256; what was of others is left out."""
    measured = (HERE / "results.md").read_text(encoding="utf-8").rstrip()
    return measured if weights in measured else "Not measured yet: `benchmarks/rootstock.py`."


if __name__ == "__main__":
    main()
