"""Backbones by name: what to build, how to feed it, and where its pretrained weights are.

Nothing here downloads weights, and nothing here loads them: see :mod:`topwork.network.fetch` and
:mod:`topwork.network.weights`. Only the name ``hf-hub:...`` may fetch a small ``config.json``.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from topwork.data.views import Preprocessing
from topwork.errors import BackboneError, PlanError, UsageError, did_you_mean
from topwork.network.catalog import ZooEntry, catalog
from topwork.network.fetch import WeightsSource, fetch_from_hub
from topwork.network.shipped import SHIPPED, SHIPPED_FOLDER
from topwork.network.spec import (
    LIBRARIES,
    OWN_NAMES,
    SEE_ZOO,
    BackboneSpec,
    check_torchvision_classifier,
)
from topwork.plan import Plan

__all__ = ["Backbone", "BackboneSpec", "WeightsSource", "ZooEntry", "catalog", "find_backbone"]

FORMS = "timm:NAME, torchvision:NAME, topwork:NAME, hf-hub:ORG/NAME or a folder"
FOLDERS = "a folder in timm's format, one that `topwork pretrain` made, or a model of `topwork fit`"
BACKBONE_FACTS, BACKBONE_FORMAT = "backbone.json", 1
REACHES = "reaches"
"""In a card: up to where weights were learned, those above being left out; null for all."""
MODEL_FACTS = "topwork.json"
OF_PUBLISHED_WEIGHTS = (
    *("license", "description", "origin_url", "paper_ids", "paper_name", "notes", "tag"),
)
"""What timm's facts say of its weights, and not of the architecture."""
ROOTSTOCK = SHIPPED.removeprefix("topwork:")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A named pretrained network.

    Attributes:
        name: what to type for it again.
        spec: what it is built from.
        preprocessing: how its source fed it with images.
        weights: where its pretrained weights are; None where none are known.
        about: license, source and further facts, as far as known; JSON-able.
        fitted: the plan that its weights were fitted by, where they are those of a model folder.
    """

    name: str
    spec: BackboneSpec
    preprocessing: Preprocessing
    weights: WeightsSource | None
    about: dict[str, Any]
    fitted: Plan | None = None

    @property
    def reaches(self) -> str | None:
        """Up to where it has weights, where that is known; None for L.

        Of a fitted model's layers none above the highest code is written.
        """
        if self.fitted:
            return self.fitted.codes[-1] if self.fitted.codes else self.fitted.kept
        return self.about.get(REACHES)


def find_backbone(name: str | Path | Backbone, *, weights: str | Path | None = None) -> Backbone:
    """Return the backbone of this name; what is no name but a backbone comes back as it is.

    Args:
        name: ``timm:NAME`` (also ``NAME.TAG``), ``torchvision:NAME``, ``topwork:NAME``,
            ``hf-hub:ORG/NAME``, a folder (in timm's format, of `topwork.pretrain`, or a model
            folder of `topwork.fit`), or a bare name, which is looked for in timm, then torchvision,
            then topwork.
        weights: a local weights file to use in place of the published weights.

    Raises:
        BackboneError: there is no such network, or it is not an image classifier.
        UsageError: weights are given with what is a backbone already.
    """
    if isinstance(name, Backbone):
        if weights is not None:
            raise UsageError(f"weights: {name.name} was found already; give them to find_backbone")
        return name
    backbone = _find(str(name))
    if weights is None:
        return backbone
    # The published weights' license and origin say nothing about another file.
    config = backbone.about.get("pretrained_cfg", {})
    facts = {"pretrained_cfg": {k: v for k, v in config.items() if k not in OF_PUBLISHED_WEIGHTS}}
    own = WeightsSource("file", str(weights))
    return replace(backbone, weights=own, about=facts if config else {}, fitted=None)


def _find(name: str) -> Backbone:
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "hf-hub":
        return _from_hub(rest)
    if colon and prefix in LIBRARIES:
        find = {"timm": _from_timm, "torchvision": _from_torchvision, "topwork": _from_topwork}
        return find[prefix](rest)
    if any((Path(name) / file).is_file() for file in ("config.json", BACKBONE_FACTS, MODEL_FACTS)):
        return _from_folder(Path(name))
    if colon and not Path(name).exists():
        raise BackboneError(f"{name}: unknown kind of name {prefix!r}; write {FORMS}")
    if "/" in name or os.sep in name:
        raise BackboneError(f"{name}: {_why_not_a_folder(Path(name))}")
    return _from_bare_name(name)


def _from_bare_name(name: str) -> Backbone:
    import timm
    from torchvision.models import list_models

    if timm.is_model(name):
        return _from_timm(name)
    if name in list_models():
        return _from_torchvision(name)
    if name in (ROOTSTOCK, *OWN_NAMES):
        return _from_topwork(name)
    if Path(name).exists():
        raise BackboneError(f"{name}: {_why_not_a_folder(Path(name))}")
    hint = did_you_mean(name, [*timm.list_models(), *list_models(), ROOTSTOCK, *OWN_NAMES])
    raise BackboneError(f"no network is called {name!r}{hint or f'; write {FORMS}'}")


def _why_not_a_folder(path: Path) -> str:
    if path.is_file():
        return "is a file; name the network with --backbone and give the file with --weights"
    if (path / "model" / MODEL_FACTS).is_file():
        return f"is a run folder; the model in it is {path / 'model'}"
    if path.is_dir():
        return f"has no config.json and no {BACKBONE_FACTS}; give {FOLDERS}"
    return "no such folder; a repository of the Hugging Face hub is written hf-hub:ORG/NAME"


# --- timm: by name, from a repository, from a folder --------------------------------------------


def _from_timm(name: str) -> Backbone:
    import timm

    current = timm.models.get_deprecated_models().get(name) or name
    architecture, _, tag = current.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(name, timm.list_models()) or SEE_ZOO
        raise BackboneError(f"timm has no network {name!r}{hint}")
    try:
        config = timm.models.get_pretrained_cfg(current)
    except RuntimeError as error:
        tagged = timm.list_models(f"{architecture}.*", include_tags=True)
        hint = did_you_mean(current, tagged) or f"; it has {', '.join(tagged)}"
        raise BackboneError(f"timm has no weights {tag!r} for {architecture}{hint}") from error
    facts = json.loads(json.dumps(config.to_dict(remove_source=True) if config else {}))
    return _in_timm_format(f"timm:{current}", architecture, facts, {}, _published(config))


def _published(config: Any) -> WeightsSource | None:
    if config is not None and config.hf_hub_id:
        return WeightsSource("hub", config.hf_hub_id)
    if config is not None and config.url:
        return WeightsSource("url", config.url if isinstance(config.url, str) else config.url[0])
    return None


def _from_hub(repository: str) -> Backbone:
    config = fetch_from_hub(repository, "config.json")
    source = WeightsSource("hub", repository)
    return _in_timm_format(f"hf-hub:{repository}", *_read_timm_config(config), source)


def _from_folder(folder: Path) -> Backbone:
    for facts in (BACKBONE_FACTS, MODEL_FACTS):
        if (folder / facts).is_file():
            return _from_own_folder(folder, facts)
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    weights = next((WeightsSource("file", str(file)) for file in files if file.is_file()), None)
    return _in_timm_format(str(folder), *_read_timm_config(folder / "config.json"), weights)


def _from_own_folder(folder: Path, name: str) -> Backbone:
    """Return the backbone of a folder that pretraining made, or of a fitted model's."""
    file = folder / name
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["format"] != BACKBONE_FORMAT:
            raise BackboneError(
                f"{file}: has format {facts['format']}, this topwork reads {BACKBONE_FORMAT}; use"
                " the version that wrote it"
            )
        spec = {key: facts["backbone"][key] for key in ("library", "architecture", "arguments")}
        weights = WeightsSource("file", str(folder / "model.safetensors"), facts["weights_sha256"])
        return Backbone(
            str(folder),
            BackboneSpec.from_dict(spec),
            Preprocessing.from_dict(facts["preprocessing"]),
            weights,
            dict(facts.get("card") or {"license": facts.get("license")}),
            Plan.from_dict(facts["plan"]) if name == MODEL_FACTS else None,
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BackboneError(f"{file} is damaged ({error!r}); make the folder again") from error
    except (UsageError, PlanError) as error:
        raise BackboneError(f"{file}: {error}") from error


def _read_timm_config(file: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return architecture, pretrained_cfg and model_args of a timm config.json."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{file}: is not readable JSON; fetch the folder again") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise BackboneError(f"{file}: names no 'architecture', so it is not in timm's format")
    facts = config.get("pretrained_cfg", config)  # old exports are flat
    arguments = config.get("model_args", {})
    if not isinstance(facts, dict) or not isinstance(arguments, dict):
        raise BackboneError(f"{file}: pretrained_cfg and model_args must be objects; correct it")
    above = {k: config[k] for k in ("num_classes", "label_names") if k in config}
    return config["architecture"], {**facts, **above}, arguments


def _in_timm_format(
    name: str,
    architecture: str,
    facts: dict[str, Any],
    model_args: dict[str, Any],
    weights: WeightsSource | None,
) -> Backbone:
    import timm

    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise BackboneError(f"{name}: timm has no network {architecture!r}{hint}")
    try:
        channels, preprocessing = _timm_view(facts, model_args)
    except (TypeError, ValueError, UsageError) as error:
        raise BackboneError(f"{name}: its pretrained_cfg is not timm's ({error})") from error
    if channels != 3:
        raise BackboneError(f"{name}: takes {channels} channels, not 3; choose another network")
    arguments = {"num_classes": facts.get("num_classes", 1000)}
    if facts.get("fixed_input_size"):
        arguments["img_size"] = list(preprocessing.size)
    spec = BackboneSpec("timm", architecture, {**arguments, **model_args})
    about = {"license": facts.get("license"), "pretrained_cfg": facts}
    return Backbone(name, spec, preprocessing, weights, about)


def _timm_view(facts: dict[str, Any], model_args: dict[str, Any]) -> tuple[int, Preprocessing]:
    """Return channels and plain view by timm's own rules: its `input_size`, not its test size."""
    from timm.data.config import resolve_data_config

    view = resolve_data_config(pretrained_cfg=facts)
    channels, *size = view["input_size"]
    asked = model_args.get("img_size", size)
    height, width = (asked, asked) if isinstance(asked, int) else asked
    preprocessing = Preprocessing(
        size=(int(height), int(width)),
        crop=float(view["crop_pct"]),
        interpolation=view["interpolation"],
        mean=tuple(view["mean"]),
        std=tuple(view["std"]),
    )
    return model_args.get("in_chans", channels), preprocessing


# --- torchvision --------------------------------------------------------------------------------


def _from_torchvision(name: str) -> Backbone:
    from torchvision.models import get_model_weights

    check_torchvision_classifier(name)
    weights = get_model_weights(name).DEFAULT
    view = weights.transforms()
    size, resized = view.crop_size[0], view.resize_size[0]
    preprocessing = Preprocessing(
        size=(size, size),
        crop=_crop_fraction(size, resized),
        interpolation=view.interpolation.value,
        mean=tuple(view.mean),
        std=tuple(view.std),
    )
    arguments: dict[str, Any] = {"num_classes": len(weights.meta["categories"])}
    if name in ("googlenet", "inception_v3"):  # as their pretrained weights expect it
        arguments |= {"transform_input": True, "aux_logits": True, "init_weights": False}
    if name.startswith("vit_"):
        arguments["image_size"] = size
    about = {
        "license": weights.meta.get("license", "bsd-3-clause"),
        "source": "ImageNet-1K",
        "recipe": weights.meta.get("recipe"),
        "weights": str(weights),
    }
    spec = BackboneSpec("torchvision", name, arguments)
    return Backbone(
        f"torchvision:{name}", spec, preprocessing, WeightsSource("url", weights.url), about
    )


def _crop_fraction(size: int, resized: int) -> float:
    """Return the crop such that ``floor(size / crop) == resized``, in spite of rounding.

    >>> math.floor(160 / (160 / 212)), math.floor(160 / _crop_fraction(160, 212))
    (211, 212)
    """
    crop = size / resized
    return crop if math.floor(size / crop) == resized else math.nextafter(crop, 0.0)


# --- our own ------------------------------------------------------------------------------------


def _from_topwork(name: str) -> Backbone:
    if name == ROOTSTOCK:
        return replace(_from_own_folder(SHIPPED_FOLDER, BACKBONE_FACTS), name=SHIPPED)
    if name not in OWN_NAMES:
        hint = did_you_mean(name, [ROOTSTOCK, *OWN_NAMES]) or SEE_ZOO
        raise BackboneError(f"topwork has no network {name!r}{hint}")
    arguments: dict[str, Any] = {"num_classes": 10}
    if name == "small_convnet":
        arguments["channels"] = [16, 32, 64]
    if name == "dense":
        return _dense()
    preprocessing = Preprocessing(
        size=(32, 32), crop=1.0, interpolation="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    spec = BackboneSpec("topwork", name, arguments)
    return Backbone(f"topwork:{name}", spec, preprocessing, None, {"license": "apache-2.0"})


def _dense() -> Backbone:
    """Return the stack of dense layers, which takes gray values from 0 to 1 as they are."""
    size = (28, 28)
    arguments = {
        "widths": [500, 500, 2000],
        "activation": "sigmoid",
        "dropout": 0.0,
        "input_dropout": 0.0,
        "image_size": list(size),
        "in_chans": 1,
        "num_classes": 10,
    }
    preprocessing = Preprocessing(size, 1.0, "bicubic", (0.0,), (1.0,))
    spec = BackboneSpec("topwork", "dense", arguments)
    return Backbone("topwork:dense", spec, preprocessing, None, {"license": "apache-2.0"})
