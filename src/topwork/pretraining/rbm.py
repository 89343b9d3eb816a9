"""Restricted Boltzmann machines, stacked layer by layer, the lowest first.

Hinton, Osindero and Teh 2006 ("A fast learning algorithm for deep belief nets"), with the settings
of Hinton's practical guide (2010). Each layer of a stack of dense sigmoid layers is one machine's
hidden units: p(h_j = 1 | v) = sigmoid(W_j v + b_j) is what the layer computes anyway, so what the
machine learns is the layer's weights. It learns from the cached outputs of the layers below it.

The free energy of visible units is

    F(v) = -a.v - sum_j log(1 + exp(W_j v + b_j))           binary units, 0 to 1
    F(v) = |v - a|^2 / 2 - sum_j log(1 + exp(W_j v + b_j))  Gaussian units of variance 1

Gaussian units stand for values less their mean, in units of the data's deviation. Else the steps of
gradient descent would depend on how bright images are and how much they vary; so a machine learns
the same from a dark copy of them. The layer gets weights W / s and biases b - W m / s.

and the gradient of the log-likelihood of data is that of the model's mean free energy less the
data's. Contrastive divergence (CD-k) takes the model's from k steps of Gibbs sampling that begin at
the data, persistent contrastive divergence (Tieleman 2008) from chains that are never reset. So the
loss is F(data) - F(sample), the sample held fixed, and automatic differentiation gives just that.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from topwork.errors import PlanError
from topwork.learn.loop import Inputs
from topwork.network.chain import Chain
from topwork.network.dense import DenseLayer
from topwork.phase import Phase
from topwork.pretraining.material import Material, drawn_rows, pictured_weights
from topwork.pretraining.recipe import Recipe, require_positive
from topwork.pretraining.stages import Progress, progress_of

log = logging.getLogger("topwork")

PAPER = "Hinton, Osindero and Teh 2006; Hinton 2010 (practical guide); Tieleman 2008 (persistent)"
UNITS = ("auto", "binary", "gaussian")
SHOWN = 64
LEAST_DEVIATION = 1e-3
GAUSSIAN_RATE = 0.1
"""Of the rate, for Gaussian units: nothing bounds what they are driven to (the guide, 13.2)."""
COMPARED = 2000
"""Images whose free energy is compared with that of held-out ones."""
STUCK, MANY_STUCK = 0.01, 0.5
"""Deviation over images below which a unit is stuck, and a share of such that is warned of."""


@dataclass(frozen=True)
class RbmRecipe(Recipe):
    """How machines are trained.

    Attributes:
        phase: of each layer's machine; momentum and decay among it. One with Gaussian units takes
            a tenth of the rate. Precision does not count: machines compute in float32.
        steps: of Gibbs sampling for a gradient, the k of CD-k.
        persistent: whether its chains go on from step to step. Momentum does not count then: with
            it the weights move faster than the chains can follow, and most units die.
        visible: units of the lowest machine: "binary" for values from 0 to 1, "gaussian" for
            others; "auto" by the values that there are.
        sparsity: how often a hidden unit is meant to be on; counts where its cost does.
        sparsity_cost: weight of the cross-entropy between that and how often it is (Hinton 2010).
    """

    phase: Phase = field(
        default=Phase(
            epochs=20, batch=100, optimizer="sgd", rate=0.1, momentum=0.9, weight_decay=2e-4,
            warmup=1.0,
        )
    )  # fmt: skip
    steps: int = 1
    persistent: bool = False
    visible: str = "auto"
    sparsity: float = 0.1
    sparsity_cost: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "steps", "sparsity")
        if self.persistent and self.phase.at_once is not None:
            raise PlanError("recipe: persistent chains belong to whole batches; leave out at_once")
        if self.visible not in UNITS:
            raise PlanError(f"recipe: visible is {self.visible!r}; known are {', '.join(UNITS)}")
        if self.sparsity >= 1 or self.sparsity_cost < 0:
            raise PlanError("recipe: sparsity lies between 0 and 1, and its cost is not negative")


class BoltzmannMachine(nn.Module):
    """A restricted Boltzmann machine whose hidden units are a linear layer's, sigmoid applied.

    In training it returns F(data) - F(sample), whose gradient is that of contrastive divergence;
    in eval mode the reconstruction's error, which a machine does not minimize but which shows how
    it does: the cross-entropy of binary units, half the squared error of Gaussian ones in units of
    their deviation, summed over the units.

    Args:
        hidden: hidden units: weight W [hidden, visible] and bias b, shared.
        gaussian: whether visible units are Gaussian; they are binary else.
        steps: of Gibbs sampling.
        chains: persistent ones; 0 for chains that begin at the data.
        sparsity: share of the time that a hidden unit should be on.
        sparsity_cost: what it costs otherwise.

    Attributes:
        visible_bias: a, [visible].
        mean: m, what Gaussian units take from values, [visible]; 0 for binary ones.
        deviation: s, by which Gaussian units divide them, one number; 1 for binary ones.
        chains: states of the visible units [chains, visible].
    """

    mean: Tensor
    deviation: Tensor
    chains: Tensor

    def __init__(
        self,
        hidden: nn.Linear,
        *,
        gaussian: bool = False,
        steps: int = 1,
        chains: int = 0,
        sparsity: float = 0.1,
        sparsity_cost: float = 0.0,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.gaussian, self.steps = gaussian, steps
        self.sparsity, self.sparsity_cost = sparsity, sparsity_cost
        weight = hidden.weight
        self.visible_bias = nn.Parameter(torch.zeros(weight.shape[1], device=weight.device))
        self.register_buffer("mean", torch.zeros_like(self.visible_bias))
        self.register_buffer("deviation", torch.ones((), device=weight.device))
        states = torch.zeros(chains, weight.shape[1], device=weight.device)
        self.register_buffer("chains", states)

    def states(self, values: Tensor) -> Tensor:
        """Return visible states [n, visible] that stand for values [n, ...]."""
        return (values.flatten(1).to(self.mean.dtype) - self.mean) / self.deviation

    def values(self, states: Tensor) -> Tensor:
        """Return the values that states stand for, both [n, visible]."""
        return states * self.deviation + self.mean

    @torch.no_grad()
    def read_layer(self, layer: nn.Linear) -> None:
        """Take hidden units that compute of states what a layer computes of values."""
        self.hidden.weight.copy_(layer.weight * self.deviation)
        self.hidden.bias.copy_(layer.bias + layer.weight @ self.mean)

    @torch.no_grad()
    def write_layer(self, layer: nn.Linear) -> None:
        """Give a layer weights by which it computes of values what hidden units do of states."""
        layer.weight.copy_(self.hidden.weight / self.deviation)
        layer.bias.copy_(self.hidden.bias - layer.weight @ self.mean)

    def free_energy(self, visible: Tensor) -> Tensor:
        """Return F of visible states [n, visible], [n]."""
        return self._free_energy(visible, self.hidden(visible))

    def _free_energy(self, visible: Tensor, inputs: Tensor) -> Tensor:
        on = functional.softplus(inputs).sum(1)
        if self.gaussian:
            return (visible - self.visible_bias).square().sum(1) / 2 - on
        return -visible @ self.visible_bias - on

    def expected(self, hidden: Tensor) -> Tensor:
        """Return the mean of the visible units given hidden states [n, hidden]."""
        inputs = functional.linear(hidden, self.hidden.weight.T, self.visible_bias)
        return inputs if self.gaussian else inputs.sigmoid()

    @torch.no_grad()
    def sampled(self, visible: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Return visible states after the steps of Gibbs sampling that begin at some.

        Hidden states are drawn. So are visible ones, for else a chain would not come to the model's
        distribution; but after a single step from the data they are left at their means, as the
        guide advises, which carry the same and less noise.

        Args:
            visible: [n, visible].
            inputs: what they give the hidden units, if it is known already.
        """
        for _ in range(self.steps):
            on = (self.hidden(visible) if inputs is None else inputs).sigmoid()
            visible, inputs = self.expected(torch.rand_like(on).lt(on).to(on.dtype)), None
            if self.steps > 1 or len(self.chains):
                visible = self.drawn(visible)
        return visible

    def drawn(self, means: Tensor) -> Tensor:
        """Return visible states that have some means."""
        if self.gaussian:
            return means + torch.randn_like(means)
        return torch.rand_like(means).lt(means).to(means.dtype)

    def forward(self, values: Tensor) -> Tensor:
        """Return [n, 2] for values [n, ...], see the class; the second column is zero."""
        with torch.autocast(values.device.type, enabled=False):  # 8 bits bias what is drawn
            visible = self.states(values)
            inputs = self.hidden(visible)
            judge = self._divergence if self.training else self._error
            losses = judge(visible, inputs)
        return torch.stack([losses, torch.zeros_like(losses)], 1)

    def _error(self, visible: Tensor, inputs: Tensor) -> Tensor:
        mean = self.expected(inputs.sigmoid())
        if self.gaussian:
            return (visible - mean).square().sum(1) / 2
        return functional.binary_cross_entropy(mean, visible, reduction="none").sum(1)

    def _divergence(self, visible: Tensor, inputs: Tensor) -> Tensor:
        if len(self.chains):
            sample = self.sampled(self.chains[: len(visible)])
            self.chains[: len(visible)] = sample
        else:
            sample = self.sampled(visible, inputs.detach())
        data, model = self._free_energy(visible, inputs), self.free_energy(sample)
        losses = data - model
        if self.sparsity_cost:
            rate = inputs.sigmoid().mean(0).clamp(1e-6, 1 - 1e-6)
            wanted = self.sparsity
            cost = -(wanted * rate.log() + (1 - wanted) * (1 - rate).log()).sum()
            losses = losses + self.sparsity_cost * cost
        return losses


def pretrain_rbm(material: Material, recipe: RbmRecipe) -> Iterator[Progress | None]:
    """Train a stack of machines, the lowest first; yield after every step.

    Each epoch tells the error of reconstructing held-out images, by how much their free energy lies
    above that of images learned from, which rises when a machine overfits (Hinton 2010), and the
    share of hidden units that are stuck.

    Raises:
        PlanError: if the network is no stack of dense sigmoid layers.
    """
    layers = machines_layers(material.chain)
    for number, layer in enumerate(layers, start=1):
        stage = f"layer {number}"
        if material.stages.is_finished(stage):
            continue
        phase = recipe.phase
        inputs, held_out = material.inputs(material.chain.cuts[number - 1], phase.epochs)
        gaussian = number == 1 and is_gaussian(recipe.visible, inputs)
        if gaussian and phase.rate is not None:
            phase = replace(phase, rate=GAUSSIAN_RATE * phase.rate)
            log.info("%s: Gaussian units, at a rate of %g", stage, phase.rate)
        if recipe.persistent and phase.momentum:
            phase = replace(phase, momentum=0.0)
            log.info("%s: without momentum, as chains are persistent", stage)
        machine = BoltzmannMachine(
            deepcopy(layer.linear),
            gaussian=gaussian,
            steps=recipe.steps,
            chains=phase.batch + 1 if recipe.persistent else 0,  # batches differ by one at most
            sparsity=recipe.sparsity,
            sparsity_cost=recipe.sparsity_cost,
        ).to(material.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            weights = None if material.loaded.weights is None else layer.linear
            start_machine(machine, inputs, weights)
        for epoch in material.stages.train(stage, machine, phase, inputs, held_out):
            if epoch is None:
                yield None
                continue
            machine.write_layer(layer.linear)
            found = free_energy_gap(machine, inputs, held_out) if held_out else {}
            found["stuck"] = stuck_share(machine, inputs)
            last = epoch.number == phase.epochs
            if last and found["stuck"] > MANY_STUCK:
                log.warning(
                    "%s: %.0f %% of the units are the same for all images; lower the rate",
                    stage,
                    100 * found["stuck"],
                )
            pictures = see(material, machine, number, held_out or inputs) if last else {}
            told = progress_of(epoch, stage, phase, found, pictures)
            yield replace(told, loss=None)  # a difference of energies that goes on about zero


def machines_layers(chain: Chain) -> list[DenseLayer]:
    """Return the dense layers of a stack, the lowest first.

    Raises:
        PlanError: if the network is another.
    """
    found = [chain.network.get_submodule(cut.name) for cut in chain.cuts[1:]]
    layers = [part for part in found if isinstance(part, DenseLayer)]
    if len(layers) != len(found) or not all(isinstance(p.activation, nn.Sigmoid) for p in layers):
        raise PlanError(
            "--method rbm stacks machines of sigmoid units; give --backbone topwork:dense"
        )
    return layers


def is_gaussian(visible: str, inputs: Inputs) -> bool:
    """Say whether the visible units of the lowest machine are Gaussian.

    Raises:
        PlanError: if they are to be binary and the values lie outside 0..1.
    """
    values = inputs.batch(drawn_rows(COMPARED, len(inputs)), 0)[0]
    outside = bool(values.min() < 0 or values.max() > 1)
    if visible == "binary" and outside:
        raise PlanError(
            "recipe: visible is 'binary', but pixels lie outside 0 to 1; give 'gaussian' or 'auto'"
        )
    return visible == "gaussian" or outside


@torch.no_grad()
def start_machine(machine: BoltzmannMachine, inputs: Inputs, layer: nn.Linear | None) -> None:
    """Give a machine what the data's means and deviation suggest, and weights.

    Args:
        machine: changed in place.
        inputs: what it will learn from.
        layer: has its weights; None for small random ones, as the guide advises.
    """
    values = inputs.batch(drawn_rows(COMPARED, len(inputs)), 0)[0].flatten(1)
    mean = values.mean(0)
    if machine.gaussian:
        machine.mean.copy_(mean)
        deviation = (values - mean).square().mean().sqrt()
        machine.deviation.copy_(deviation.clamp(min=LEAST_DEVIATION))
    else:
        machine.visible_bias.copy_(mean.clamp(0.01, 0.99).logit())
    if layer is None:
        machine.hidden.weight.normal_(0, 0.01)
        machine.hidden.bias.zero_()
    else:
        machine.read_layer(layer)
    if len(machine.chains):
        rows = torch.randint(len(values), (len(machine.chains),))
        machine.chains.copy_(machine.states(values[rows]))


def free_energy_gap(
    machine: BoltzmannMachine, inputs: Inputs, held_out: Inputs
) -> dict[str, float]:
    """Return by how much the free energy of held-out images exceeds that of those learned from."""
    with torch.no_grad():
        seen, unseen = (
            machine.free_energy(machine.states(*some.batch(drawn_rows(COMPARED, len(some)), 0)))
            for some in (inputs, held_out)
        )
    return {"free_energy_gap": float(unseen.mean()) - float(seen.mean())}


@torch.no_grad()
def stuck_share(machine: BoltzmannMachine, inputs: Inputs) -> float:
    """Return the share of hidden units that hardly differ from image to image."""
    states = machine.states(*inputs.batch(drawn_rows(COMPARED, len(inputs)), 0))
    deviation = machine.hidden(states).sigmoid().std(0, unbiased=False)
    return float((deviation < STUCK).float().mean())


def see(
    material: Material, machine: BoltzmannMachine, number: int, inputs: Inputs
) -> dict[str, np.ndarray]:
    """Return pictures of the lowest machine: its filters, images, and what it makes of them."""
    if number > 1:
        return {}
    shape = material.chain.cuts[0].shape
    (images,) = inputs.batch(drawn_rows(SHOWN, len(inputs)), 0)
    with torch.no_grad():
        again = machine.expected(machine.hidden(machine.states(images)).sigmoid())
    return {
        "filters": pictured_weights(machine.hidden.weight[:SHOWN].unflatten(1, shape)),
        "images": material.pictures(images),
        "reconstructions": material.pictures(machine.values(again)),
    }
