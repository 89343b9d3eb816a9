"""From a plan to a chain that holds the right weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from topwork.errors import BackboneError, ChainError, PlanError, WeightsError
from topwork.network.chain import Chain, trace_chain
from topwork.network.codes import choose_pool
from topwork.network.fetch import weights_file
from topwork.network.inputs import COLORS, InputChange, check_patches, shown
from topwork.network.model import ADDED, HEAD
from topwork.network.spec import BackboneSpec, spec_for
from topwork.network.state import read_state
from topwork.network.weights import Accounting, assign_weights
from topwork.network.zoo import Backbone
from topwork.plan import Plan


@dataclass(frozen=True)
class Loaded:
    """A backbone ready to be cut.

    Attributes:
        backbone: what it was made from; spec and preprocessing are those of the plan's image
            size and channels.
        chain: its depth axis; layers up to the plan's ``reused`` hold pretrained weights.
        plan: the plan, settled on this axis, its pooling included.
        accounting: where every tensor went; None if all layers are random.
        weights: file and SHA-256 of the pretrained weights; None if all layers are random.
    """

    backbone: Backbone
    chain: Chain
    plan: Plan
    accounting: Accounting | None
    weights: dict[str, str] | None


def build_chain(spec: BackboneSpec, size: tuple[int, int], seed: int = 0) -> Chain:
    """Build an architecture with random weights and find its cut points.

    The caller's random state is neither used nor changed.

    Raises:
        BackboneError: if the architecture cannot take images of this size.
    """
    return chain_of(build_network(spec, seed), spec, size)


def build_network(spec: BackboneSpec, seed: int) -> nn.Module:
    """Build an architecture with the random weights of a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return spec.build()


def chain_of(network: nn.Module, spec: BackboneSpec, size: tuple[int, int]) -> Chain:
    """Find the cut points of a network that was built from a spec; raise as `build_chain` does."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, spec.channels, *size, generator=generator)
    try:
        return trace_chain(network, example)
    except ChainError as error:
        if error.__cause__ is None:
            raise
        count = "" if spec.channels == COLORS else f", channels: {spec.channels}"
        reason = (str(error.__cause__).strip() or type(error.__cause__).__name__).splitlines()[0]
        raise BackboneError(
            f"{spec.architecture} cannot take images of {shown(size)} pixels{count} ({reason});"
            f" choose another {'network' if count else 'size'}"
        ) from error


def fit_input(backbone: Backbone, size: tuple[int, int] | None, channels: int | None) -> Backbone:
    """Return a backbone for images of another size or channel count; None leaves its own.

    Raises:
        PlanError: if its architecture cannot take this size.
    """
    view = backbone.preprocessing.adapted(size, channels)
    if view == backbone.preprocessing:
        return backbone
    spec = spec_for(backbone.spec, view.size, view.channels)
    return replace(backbone, spec=spec, preprocessing=view)


def load_backbone(backbone: Backbone, plan: Plan, seed: int = 0) -> Loaded:
    """Build a backbone, settle a plan on it and give it the weights that the plan reuses.

    A plan that says neither what is kept nor what is reused keeps what the backbone has weights of.

    Raises:
        PlanError: if the plan makes no sense on this network, its image size included.
        BackboneError: if weights are needed and none are known or can be had; if the network
            cannot take images of the plan's size or channels.
        WeightsError: if the weights do not fit, or do not reach up to ``reused``.
    """
    name, limit = backbone.name, None
    if plan.kept is None and plan.reused is None:
        limit = backbone.reaches
        plan = replace(plan, kept=limit)
    source = backbone.preprocessing
    backbone = fit_input(backbone, plan.input_size, plan.channels)
    view = backbone.preprocessing
    network = build_network(backbone.spec, seed)
    if view.size != source.size:
        check_patches(network, view.size, backbone.name)
    chain = chain_of(network, backbone.spec, view.size)
    try:
        plan = plan.settle(chain)
    except PlanError as error:
        if limit in (None, chain.top.name):
            raise
        raise PlanError(f"{error} ({name} has weights up to {limit} only)") from error
    cuts = [chain.resolve(code) for code in plan.codes]
    plan = replace(plan, pool=choose_pool(chain, cuts, plan.pool))
    reused = chain.resolve(plan.reused or 0).depth
    if reused == 0:
        return Loaded(backbone, chain, plan, None, None)
    if backbone.weights is None:
        raise BackboneError(
            f"{backbone.name}: no pretrained weights are known for it; give a file with --weights"
        )
    file = weights_file(backbone.weights)
    state = read_state(file)
    digest = sha256(file)
    if backbone.weights.sha256 not in (None, digest):
        raise WeightsError(
            f"{file} is damaged: its bytes are not those that were written; copy it again"
        )
    change = InputChange(source.size, view.size, view.channels, source.channels)
    accounting = assign_weights(
        chain.network,
        state,
        depth_of=chain.depth_of_state(),
        depths=[cut.name for cut in chain.cuts],
        reused=reused,
        kept=chain.resolve(plan.kept or 0).depth,
        file=str(file),
        change=None if view == source else change,
        beside=(f"{ADDED}.", f"{HEAD}.") if backbone.fitted else (),
    )
    return Loaded(backbone, chain, plan, accounting, {"file": str(file), "sha256": digest})


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
