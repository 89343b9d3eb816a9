"""The model folder: ``topwork.json`` and ``model.safetensors``, for timm ``config.json`` too.

Nothing in it is code. ``topwork.json`` holds all that is needed to build the architecture again;
the weights have the names that they have in the source network. Where the architecture is whole
and its head is one that timm can express, ``config.json`` makes the same folder open with
``timm.create_model("local-dir:FOLDER", pretrained=True)``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from topwork.data.views import Preprocessing
from topwork.errors import ModelError, TopworkError
from topwork.network.codes import source_pool
from topwork.network.loading import Loaded, build_chain, sha256
from topwork.network.model import Model, code_width
from topwork.network.spec import BackboneSpec
from topwork.plan import Plan

FORMAT = 1
FACTS, WEIGHTS, TIMM = "topwork.json", "model.safetensors", "config.json"


@dataclass(frozen=True)
class Opened:
    """A model folder's content.

    Attributes:
        folder: where it lies.
        model: in eval mode, float32, on the CPU.
        plan: the settled plan that it was fitted by.
        labels: the class names, in the order of the scores.
        preprocessing: what an image goes through.
        why_not_timm: why timm cannot open the folder; None if it can.
    """

    folder: Path
    model: Model
    plan: Plan
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    why_not_timm: str | None


def save_model(folder: Path, model: Model, loaded: Loaded, labels: tuple[str, ...]) -> None:
    """Write a model folder; the folder must not exist yet."""
    folder.mkdir(parents=True)
    state = {name: value.contiguous() for name, value in model.layer_state().items()}
    safetensors.torch.save_file(state, folder / WEIGHTS, {"format": "pt"})
    facts = {
        "format": FORMAT,
        "topwork": version("topwork"),
        "plan": loaded.plan.to_dict(),
        "backbone": {"name": loaded.backbone.name, **loaded.backbone.spec.to_dict()},
        "license": loaded.backbone.about.get("license") if loaded.weights else None,
        "preprocessing": loaded.backbone.preprocessing.to_dict(),
        "labels": list(labels),
        "outputs": model.head.out_features,
        "weights_sha256": sha256(folder / WEIGHTS),
        "why_not_timm": why_not_timm(model, loaded),
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    if facts["why_not_timm"] is None:
        config = timm_config(loaded, labels)
        (folder / TIMM).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def why_not_timm(model: Model, loaded: Loaded) -> str | None:
    """Say why a model cannot be opened by timm; None if it can."""
    chain, plan = loaded.chain, loaded.plan
    if loaded.backbone.spec.library != "timm":
        return f"{loaded.backbone.name} is no timm architecture"
    if chain.head is None or not isinstance(chain.network.get_submodule(chain.head), nn.Linear):
        return "the architecture does not end in a linear layer"
    if plan.added:
        return "hidden layers were added"
    if plan.head in ("sigmoid", "regression"):
        return f"a {plan.head} head gives no scores of classes"
    if plan.codes != (chain.top.name,):
        return f"the head reads {', '.join(plan.codes)}, not L ({chain.top.name}) alone"
    if plan.pool != source_pool(chain):
        return f"the head reads codes pooled by {plan.pool}, unlike the source's own"
    if chain.network.state_dict().keys() != model.layer_state().keys():
        return "the architecture has layers that the model does not use"
    return None


def timm_config(loaded: Loaded, labels: tuple[str, ...]) -> dict[str, Any]:
    """Return timm's config.json for a model whose head has the given classes.

    Without labels it is for a network whose classifier tells nothing apart yet.
    """
    spec, preprocessing = loaded.backbone.spec, loaded.backbone.preprocessing
    source = dict(loaded.backbone.about.get("pretrained_cfg", {}))
    arguments = {k: v for k, v in spec.arguments.items() if k != "num_classes"}
    of_the_source = (
        *("label_names", "label_descriptions", "hf_hub_id", "url", "file", "tag"),
        *("test_input_size", "test_crop_pct", "pool_size", "test_pool_size"),
        *(("first_conv",) if spec.channels != 3 else ()),  # or timm would adapt it once more
    )
    classes = len(labels) or spec.arguments["num_classes"]
    return {
        "architecture": spec.architecture,
        "num_classes": classes,
        **({"label_names": list(labels)} if labels else {}),
        "pretrained_cfg": {
            **{key: value for key, value in source.items() if key not in of_the_source},
            "num_classes": classes,
            "input_size": [spec.channels, *preprocessing.size],
            "crop_pct": preprocessing.crop,
            "crop_mode": "center",
            "interpolation": preprocessing.interpolation,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "classifier": loaded.chain.head,
        },
        "model_args": arguments,
    }


def open_model(location: str | Path) -> Opened:
    """Open a model folder, or the run folder that holds one.

    Raises:
        ModelError: if it is none, or its files are damaged or do not belong together.
    """
    folder = find_model(Path(location))
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ModelError(
                f"{folder}: has format {facts['format']}, this topwork reads {FORMAT};"
                " use the version that wrote it"
            )
        plan = Plan.from_dict(facts["plan"])
        backbone = {k: facts["backbone"][k] for k in ("library", "architecture", "arguments")}
        spec = BackboneSpec.from_dict(backbone)
        preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        labels, digest = tuple(map(str, facts["labels"])), facts["weights_sha256"]
        outputs = int(facts.get("outputs", len(labels)))
        if outputs != len(labels) and (outputs, len(labels)) != (1, 2):
            raise ModelError(
                f"{folder / FACTS} has {len(labels)} labels for {outputs} outputs; copy the whole"
                " folder again"
            )
        why_not = facts["why_not_timm"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / FACTS} is damaged ({error!r}); fit the model again") from error
    except ModelError:
        raise
    except TopworkError as error:
        raise ModelError(f"{folder / FACTS}: {error}") from error

    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; copy the whole folder")
    if sha256(weights) != digest:
        raise ModelError(f"{weights} is damaged: its bytes are not those written; copy it again")
    chain = build_chain(spec, preprocessing.size)
    pool = plan.pool or "flatten"
    width = code_width(chain, plan.codes, pool)
    model = Model(chain, plan.codes, pool, width, outputs, plan.added)
    try:
        model.load_layer_state(safetensors.torch.load_file(weights), str(weights))
    except SafetensorError as error:
        raise ModelError(f"{weights} is no safetensors file: {error}") from error
    return Opened(folder, model.eval(), plan, labels, preprocessing, why_not)


def find_model(location: Path) -> Path:
    """Return the model folder at a location: itself, or ``model/`` in it.

    Raises:
        ModelError: if there is none.
    """
    for folder in (location, location / "model"):
        if (folder / FACTS).is_file():
            return folder
    what = "holds no topwork.json" if location.exists() else "does not exist"
    raise ModelError(f"{location} {what}; give a run folder, or the model/ in one")
