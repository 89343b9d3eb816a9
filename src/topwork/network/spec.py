"""An architecture as plain data, and building it with random weights."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from topwork.errors import BackboneError, PlanError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

CHANNELS = "in_chans"
"""The argument for image channels: timm's name, here of every library; absent where there are 3."""

SEE_ZOO = "; `topwork zoo` lists some"
"""How to go on where a network's name is near to no other."""
LIBRARIES = ("timm", "torchvision", "topwork")
OWN_NAMES = (
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "dense",
    "small_convnet",
)

# Arguments with which a library would load weights by itself, or return something else than the
# network. They could come in with a config.json from elsewhere.
NOT_ARGUMENTS = frozenset(
    (
        "cache_dir",
        "checkpoint_path",
        "device",
        "dtype",
        "features_only",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "progress",
        "weights",
        "weights_backbone",
    )
)


@dataclass(frozen=True)
class BackboneSpec:
    """Plain data that rebuilds an architecture without network access.

    Attributes:
        library: ``"timm"``, ``"torchvision"`` or ``"topwork"``.
        architecture: the library's name for it, without a tag of weights.
        arguments: JSON-able keyword arguments of its builder; ``num_classes`` is among them, and
            ``in_chans`` if its images have other than three channels.
    """

    library: str
    architecture: str
    arguments: dict[str, Any]

    def __post_init__(self) -> None:
        if self.library not in LIBRARIES:
            raise BackboneError(f"library {self.library!r} is none of {', '.join(LIBRARIES)}")
        if refused := sorted(NOT_ARGUMENTS & self.arguments.keys()):
            raise BackboneError(
                f"{self.architecture}: argument {refused[0]!r} does not belong to an architecture;"
                " remove it from model_args"
            )
        # Tuples become the lists that a JSON file would give back.
        object.__setattr__(self, "arguments", json.loads(json.dumps(self.arguments)))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-able data."""
        return {
            "library": self.library,
            "architecture": self.architecture,
            "arguments": json.loads(json.dumps(self.arguments)),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BackboneSpec:
        """Rebuild it from :meth:`to_dict`'s data.

        Raises:
            BackboneError: a key is missing, unknown, or has a value of the wrong type.
        """
        types = {"library": str, "architecture": str, "arguments": dict}
        for key in data.keys() ^ types.keys():
            state = "unknown" if key in data else "missing"
            raise BackboneError(f"backbone: key {key!r} is {state}{did_you_mean(key, types)}")
        for key, kind in types.items():
            if not isinstance(data[key], kind):
                raise BackboneError(f"backbone: {key} must be a {kind.__name__}, not {data[key]!r}")
        return cls(**data)

    @property
    def channels(self) -> int:
        """Channels of the images that it takes."""
        return int(self.arguments.get(CHANNELS, 3))

    @property
    def takes_channels(self) -> bool:
        """Whether the builder itself takes the number of channels."""
        return self.library == "timm" or self.architecture == "dense"

    def build(self) -> nn.Module:
        """Return the network with random weights: float32, on the CPU, in eval mode.

        Raises:
            BackboneError: the library does not know it, cannot build it with these arguments, or
                its forward pass needs more than one input.
        """
        arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in self.arguments.items()}
        if not self.takes_channels:
            arguments.pop(CHANNELS, None)
        construct = {"timm": _build_timm, "torchvision": _build_torchvision, "topwork": _build_own}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                network = construct[self.library](self.architecture, arguments)
        except BackboneError:
            raise
        except Exception as error:  # builders raise anything for arguments that they do not know
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise BackboneError(
                f"{self.library} cannot build {self.architecture} with {self.arguments}: {reason}"
            ) from error
        _check_single_input(network, self.architecture)
        if not self.takes_channels and self.channels != 3:
            from topwork.network.inputs import set_channels  # plain data starts without torch

            set_channels(network, self.channels)
        return network.float().eval()


def spec_for(spec: BackboneSpec, size: tuple[int, int], channels: int) -> BackboneSpec:
    """Return the same architecture for images of another size or channel count.

    The size becomes an argument of the builder where the architecture is made for one size, as
    with learned position embeddings; others take any.

    Raises:
        PlanError: if torchvision's vision transformer is to take what it cannot.
    """
    arguments = dict(spec.arguments)
    if channels != spec.channels:
        arguments[CHANNELS] = channels
    argument = size_argument(spec)
    if argument == "image_size" and spec.library == "torchvision":
        arguments[argument] = _square(spec.architecture, size)
    elif argument:
        arguments[argument] = list(size)
    return replace(spec, arguments=arguments)


def size_argument(spec: BackboneSpec) -> str | None:
    """Return the builder's argument for the size of images; None if it needs not know."""
    if spec.library == "timm":
        import timm

        config = timm.models.get_pretrained_cfg(spec.architecture)
        fixed = config is not None and config.fixed_input_size
        return "img_size" if fixed or "img_size" in spec.arguments else None
    if spec.architecture == "dense":
        return "image_size"
    by_name = {"vit": "image_size", "maxvit": "input_size"}
    family = spec.architecture.partition("_")[0]
    return by_name.get(family) if spec.library == "torchvision" else None


def _square(architecture: str, size: tuple[int, int]) -> int:
    """Return the side of the images that torchvision's vision transformer is to take."""
    height, width = size
    patch = int(architecture.rpartition("_")[2])  # as in vit_b_16
    if height != width or height % patch:
        side = max(1, round(min(size) / patch)) * patch
        raise PlanError(
            f"input_size {height}x{width}: torchvision's {architecture} takes squares whose side is"
            f" a multiple of {patch}; give one, such as {[side, side]}"
        )
    return height


def _build_timm(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    import timm

    return timm.create_model(architecture, pretrained=False, **arguments)


def _build_torchvision(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision.models import get_model

    check_torchvision_classifier(architecture)
    return get_model(architecture, weights=None, **arguments)


def check_torchvision_classifier(name: str) -> None:
    """Raise BackboneError unless torchvision has a plain image classifier of this name."""
    from torchvision import models

    if name in models.list_models(module=models):
        return
    if name in models.list_models():
        raise BackboneError(f"torchvision:{name}: is not a float image classifier; choose another")
    hint = did_you_mean(name, models.list_models(module=models)) or SEE_ZOO
    raise BackboneError(f"torchvision has no network {name!r}{hint}")


def _build_own(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    from topwork.network.cifar_resnet import CifarResNet
    from topwork.network.dense import dense
    from topwork.network.small_convnet import small_convnet

    if architecture not in OWN_NAMES:
        hint = did_you_mean(architecture, OWN_NAMES)
        raise BackboneError(f"topwork has no network {architecture!r}{hint}")
    if architecture == "small_convnet":
        return small_convnet(**arguments)
    if architecture == "dense":
        return dense(**arguments)
    return CifarResNet(int(architecture.removeprefix("cifar_resnet")), **arguments)


def _check_single_input(network: nn.Module, architecture: str) -> None:
    parameters = inspect.signature(network.forward).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = [p.name for p in named if p.default is p.empty]
    if len(required) > 1:
        raise BackboneError(
            f"{architecture}: needs {len(required)} inputs ({', '.join(required)}); choose a"
            " network that takes one batch of images"
        )
