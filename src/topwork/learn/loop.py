"""Training by gradient descent, as a generator of epochs.

    for epoch in train(network, inputs, labels, Phase(epochs=30, rate=0.01), seed=0):
        print(epoch.number, epoch.loss)

The `for` is the caller's, who prints, saves or breaks off there; so there are no callbacks.
All parameters of the network are trained. What is frozen is not switched off in here: it lies
below a cut, and the loop is given the top alone.

Order, mixing and dropout of every step follow from the seed, the epoch and the step alone. So a
`Training` that was saved after any step goes on to the same bits.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from topwork.errors import DataError, PlanError, UsageError
from topwork.learn.objective import Objective, make_objective, mix_batch, sampling_weights
from topwork.learn.optimizers import (
    Group,
    group_parameters,
    make_optimizer,
    set_rates,
    share_at,
)
from topwork.learn.verdict import Verdict, losses_of, verdict_on
from topwork.phase import Phase

AT_ONCE = 256


class Inputs(Protocol):
    """Samples that can be fetched in any order, many times."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return what the network takes for some samples, each tensor [n, ...].

        ``epoch`` counts from 0 and says which view of the samples is wanted.
        """


@dataclass(frozen=True)
class TensorInputs:
    """Samples that lie in memory as one tensor, the same in each epoch."""

    tensor: Tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def batch(self, rows: Sequence[int], epoch: int) -> tuple[Tensor, ...]:
        """Return the rows."""
        return (self.tensor[torch.as_tensor(rows, device=self.tensor.device)],)


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training data came to.

    Attributes:
        number: 1 for the first epoch.
        loss: mean loss over the samples, each scored just before its step.
        accuracy: share of samples that were right in that same scoring.
        rate: learning rate of new layers in the epoch's last step.
        seconds: wall time, validation included.
        validation_loss: mean loss after the epoch, smoothing and weights left out; None without
            validation data, or where it is not finite.
        validation_accuracy: share right after the epoch; None without validation data.
        tempered_loss: as ``validation_loss``, at the temperature that suits the validation data
            best, and weighed where the phase balances classes: by it epochs are compared. Of
            numbers it is the same.
        temperature: that temperature; 1 for numbers.
    """

    number: int
    loss: float
    accuracy: float
    rate: float
    seconds: float
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    tempered_loss: float | None = None
    temperature: float | None = None


@dataclass
class Training:
    """A training under way: all that its next step depends on.

    Attributes:
        network: maps a batch of inputs to scores [n, outputs]; its parameters are trained in
            place.
        phase: how.
        rate: the learning rate of new layers at its highest.
        groups: all parameters that are trained.
        objective: what is minimized.
        keep_statistics: batch norms that keep their running statistics.
        at_once: samples that go through the network together.
        source: the source's weights, for `Phase.pull`, by the names in ``groups``.
        seed: of order, mixing and dropout.
        optimizer: made from the rest.
        average: the moving average of all tensors, by name in the network; empty without one.
        epochs: those that have ended.
        taken: steps done in all.
        step: steps done in the epoch under way.
        sums: its loss, and its number of samples that were right, so far.
        seconds: its wall time so far.
    """

    network: nn.Module
    phase: Phase
    rate: float
    groups: Sequence[Group]
    objective: Objective = field(default_factory=Objective)
    keep_statistics: frozenset[nn.Module] = frozenset()
    at_once: int | None = None
    source: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = 0
    optimizer: torch.optim.Optimizer = field(init=False)
    average: dict[str, Tensor] = field(default_factory=dict, init=False)
    epochs: list[Epoch] = field(default_factory=list, init=False)
    taken: int = field(default=0, init=False)
    step: int = field(default=0, init=False)
    sums: Tensor = field(init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.groups, self.phase, self.rate)
        device = device_of(self.network)
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.sums = torch.zeros(2, dtype=exact, device=device)
        if self.phase.average:
            state = self.network.state_dict()
            self.average = {name: value.detach().clone() for name, value in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the next step depends on but the network's own."""
        moments = {
            f"optimizer.{number}.{name}": value
            for number, entries in self.optimizer.state_dict()["state"].items()
            for name, value in entries.items()
            if isinstance(value, Tensor)
        }
        average = {f"average.{name}": value for name, value in self.average.items()}
        return {**moments, **average, "sums": self.sums}

    def facts(self) -> dict[str, Any]:
        """Return what else the next step depends on, as plain data."""
        return {
            "rate": self.rate,
            "taken": self.taken,
            "step": self.step,
            "seconds": self.seconds,
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go back to where `tensors` and `facts` were taken; the network's are put by others."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, entry = rest.partition(".")
                moments.setdefault(int(number), {})[entry] = value.clone()
            elif kind == "average":
                self.average[rest].copy_(value)
        state = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**state, "state": moments})
        self.sums.copy_(tensors["sums"])
        self.taken, self.step = facts["taken"], facts["step"]
        self.seconds = facts["seconds"]
        self.epochs = [Epoch(**values) for values in facts["epochs"]]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network hold the moving average for a while, if there is one."""
        if not self.average:
            yield
            return
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.load_state_dict(self.average)
        try:
            yield
        finally:
            self.network.load_state_dict(own)


def train(
    network: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    phase: Phase,
    *,
    validation: tuple[Tensor, Tensor] | None = None,
    seed: int,
) -> Iterator[Epoch]:
    """Train all parameters of a network as new ones, in place; yield after every epoch.

    Nothing happens before the first epoch is asked for. At each yield the network is in eval
    mode. The global random state is left as it was.

    Args:
        network: maps [b, ...] to scores [b, classes].
        inputs: [n, ...] floating point, on the network's device.
        labels: [n] int64, from 0 to classes - 1, on the same device.
        phase: how to train; it must give a rate.
        validation: inputs and labels to score after every epoch; nothing is learned from them.
        seed: of order, mixing and dropout.

    Raises:
        DataError: no samples, labels that do not pair with them, or inputs that are not finite.
        UsageError: a parameter that takes no gradient.
        PlanError: a loss that is no longer finite, or a phase without a rate.

    >>> corners = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> *_, last = train(
    ...     nn.Linear(2, 2), corners, torch.arange(2), Phase(epochs=99, rate=0.1), seed=0
    ... )
    >>> last.number, last.accuracy
    (99, 1.0)
    """
    if phase.rate is None:
        raise PlanError("training: the phase gives no rate; give one, or find it by a range test")
    groups = group_parameters(dict(network.named_parameters()), {}, phase)
    objective = make_objective("classes", labels, outputs_of(network), phase)
    training = Training(
        network, phase, phase.rate, groups, objective, at_once=phase.at_once, seed=seed
    )
    scored = (TensorInputs(validation[0]), validation[1]) if validation else None
    for epoch in steps(training, TensorInputs(inputs), labels, scored):
        if epoch:
            yield epoch


def steps(
    training: Training,
    inputs: Inputs,
    targets: Tensor,
    validation: tuple[Inputs, Tensor] | None = None,
) -> Iterator[Epoch | None]:
    """Train, from wherever `training` stands to its last epoch; yield after every step.

    What is yielded is the epoch if the step ended one, else None. At each yield the network is
    in eval mode.
    """
    check(training, inputs, targets)
    phase = training.phase
    device = device_of(training.network)
    count = math.ceil(len(inputs) / phase.batch)
    while len(training.epochs) < phase.epochs:
        started = time.perf_counter()
        number = len(training.epochs)
        order = order_of(number, training, targets)
        batches = order.tensor_split(count)
        while training.step < count:
            share = share_at(number * count + training.step, count, phase)
            set_rates(training.optimizer, training.groups, training.rate, share)
            rows = batches[training.step].tolist()
            seed = seed_of(training.seed, number, training.step)
            with eval_mode_afterwards(training.network), own_randomness(seed, device):
                take_step(training, inputs.batch(rows, number), targets[rows], seed)
            training.step += 1
            training.taken += 1
            if training.step < count:
                training.seconds += time.perf_counter() - started
                yield None
                started = time.perf_counter()
        loss, right = (training.sums / len(order)).tolist()
        if not math.isfinite(loss) or not all_finite(training.network):
            raise explanation(training, inputs)
        found = judge(training, *validation) if validation else None
        rate = training.rate * share_at((number + 1) * count - 1, count, phase)
        seconds = training.seconds + time.perf_counter() - started
        epoch = Epoch(number + 1, loss, right, rate, seconds)
        if found:
            epoch = replace(
                epoch,
                validation_loss=found.loss,
                validation_accuracy=found.accuracy,
                tempered_loss=found.tempered_loss,
                temperature=found.temperature,
            )
        training.epochs.append(epoch)
        training.step, training.seconds = 0, 0.0
        training.sums.zero_()
        yield epoch


def order_of(epoch: int, training: Training, targets: Tensor) -> Tensor:
    """Return the rows of an epoch in their order, [n] int64."""
    shuffler = torch.Generator().manual_seed(seed_of(training.seed, epoch))
    if training.phase.balance == "sampling":
        chances = sampling_weights(training.objective.kind, targets.cpu())
        return torch.multinomial(chances, len(targets), replacement=True, generator=shuffler)
    return torch.randperm(len(targets), generator=shuffler)


def take_step(training: Training, inputs: tuple[Tensor, ...], targets: Tensor, seed: int) -> None:
    """Take one step of the optimizer on one batch."""
    phase, network = training.phase, training.network
    network.train()
    for module in training.keep_statistics:
        module.eval()
    if phase.mix != "none":
        draw = torch.Generator().manual_seed(seed)
        inputs, targets = mix_batch(inputs, targets, outputs_of(network), phase, draw)
    training.optimizer.zero_grad()
    at_once = training.at_once or len(targets)
    for first in range(0, len(targets), at_once):
        part = slice(first, first + at_once)
        if len(targets[part]) == 1:  # It has no variance. Parts of one come last in an epoch.
            use_running_statistics(network)
        with mixed_precision(inputs[0].device, phase.precision):
            scores = network(*(value[part] for value in inputs)).float()
        losses = training.objective.loss(scores, targets[part])
        (losses.sum() / len(targets)).backward()
        right = training.objective.right(scores.detach(), targets[part]).sum()
        found = torch.stack([losses.detach().sum(), right.to(losses.dtype)])
        training.sums += found.to(training.sums.dtype)
    if phase.pull:
        pull_to_source(training)
    if phase.clip is not None:
        everything = [p for group in training.groups for p in group.parameters]
        nn.utils.clip_grad_norm_(everything, phase.clip)
    training.optimizer.step()
    if training.average:
        follow(training)


@torch.no_grad()
def pull_to_source(training: Training) -> None:
    """Add the gradient of ``pull / 2 * |weights - source|^2`` for reused layers (Li 2018)."""
    for group in training.groups:
        for name, parameter in zip(group.names, group.parameters, strict=True):
            if group.reused and parameter.grad is not None:
                away = parameter - training.source[name]
                parameter.grad.add_(away, alpha=training.phase.pull)


@torch.no_grad()
def follow(training: Training) -> None:
    """Move the average towards the weights, faster in the first steps than later."""
    decay = min(training.phase.average, (1 + training.taken) / (10 + training.taken))
    for name, value in training.network.state_dict().items():
        if value.is_floating_point():
            training.average[name].lerp_(value, 1 - decay)
        else:
            training.average[name].copy_(value)


def judge(training: Training, inputs: Inputs, targets: Tensor) -> Verdict:
    """Score the weights that would be kept on samples that are held out.

    Raises:
        DataError: if none of them is of a class that is trained on too.
    """
    # What draws at random when it is scored, such as what to mask, draws the same each time.
    with training.averaged(), own_randomness(training.seed, device_of(training.network)):
        scores = scores_of(training.network, inputs, training.at_once or AT_ONCE).cpu()
    return verdict_on(scores, targets.cpu(), training.objective)


@torch.no_grad()
def scores_of(network: nn.Module, inputs: Inputs, at_once: int) -> Tensor:
    """Return the scores of all samples, their first view, [n, outputs]."""
    network.eval()
    parts = []
    for first in range(0, len(inputs), at_once):
        rows = range(first, min(first + at_once, len(inputs)))
        parts.append(network(*inputs.batch(rows, 0)).float())
    return torch.cat(parts)


def evaluate(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return mean cross-entropy (nats) and accuracy; leaves the network in eval mode."""
    scores = scores_of(network, TensorInputs(inputs), AT_ONCE)
    losses, right = losses_of(scores.cpu(), labels.cpu(), Objective())
    return float(losses.mean()), float(right.mean())


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Return the precision of forward passes, as `Phase.precision` asks for it.

    "auto" leaves CPUs out: in the small parts that suit their caches, those that have instructions
    for bfloat16 were no faster with it (docs/log.md), and those without are many times slower.
    """
    usable = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = usable if precision == "auto" else precision == "bfloat16"
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


def all_finite(network: nn.Module) -> bool:
    """Say whether all parameters are finite: the last step's are seen by no loss."""
    return all(bool(parameter.isfinite().all()) for parameter in network.parameters())


def outputs_of(network: nn.Module) -> int:
    """Return the number of scores, from the network's last linear layer."""
    return [m.out_features for m in network.modules() if isinstance(m, nn.Linear)][-1]


def device_of(network: nn.Module) -> torch.device:
    """Return where a network lies."""
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def seed_of(*numbers: int) -> int:
    """Return a seed that depends on all numbers, from 0 to 2**63 - 1.

    >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
    (True, False)
    """
    text = ",".join(map(str, numbers))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def use_running_statistics(network: nn.Module) -> None:
    """Put all batch norms into eval mode."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextmanager
def eval_mode_afterwards(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode at the end, whatever happens."""
    try:
        yield
    finally:
        network.eval()


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from; put the global state back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield


def check(training: Training, inputs: Inputs, targets: Tensor) -> None:
    """Refuse what cannot be trained.

    Raises:
        DataError: no samples, or targets that do not pair with them.
        UsageError: a parameter that takes no gradient.
    """
    if len(inputs) == 0 or len(targets) != len(inputs):
        raise DataError(
            f"training data: {len(inputs)} samples and targets of shape {list(targets.shape)}; "
            f"give at least one sample, and one target for each"
        )
    for name, parameter in training.network.named_parameters():
        if not parameter.requires_grad:
            raise UsageError(
                f"training: parameter {name} takes no gradient; "
                f"to freeze layers, cut the network above them and train its top"
            )


def explanation(training: Training, inputs: Inputs) -> DataError | PlanError:
    """Return the error for a loss that is not finite."""
    for first in range(0, len(inputs), AT_ONCE):
        rows = range(first, min(first + AT_ONCE, len(inputs)))
        if not all(bool(value.isfinite().all()) for value in inputs.batch(rows, 0)):
            return DataError("training data: inputs hold NaN or infinity; leave those samples out")
    return PlanError(
        f"training: the loss is not finite in epoch {len(training.epochs) + 1}; "
        f"lower the learning rate (now {training.rate:g}) or lengthen the warm-up"
    )
