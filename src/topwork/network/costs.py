"""What the layers below each cut point cost, measured by one run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from topwork.network.sharing import without_data
from topwork.network.trace import Traced

THRESHOLDS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Costs:
    """Of the layers below one cut point; the fields are those of `CutPoint`."""

    parameters: int
    multiply_adds: int
    before: str | None


class Meter(fx.Interpreter):
    """Runs a graph once and notes the operations counted so far after each node."""

    def __init__(
        self,
        network: nn.Module,
        graph: fx.Graph,
        counter: FlopCounterMode,
        readers: list[tuple[Tensor, str]],
    ) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.counter, self.readers = counter, readers
        self.operations: dict[fx.Node, int] = {}
        self.read_before: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and read the counter."""
        value = super().run_node(n)
        self.operations[n] = self.counter.get_total_flops()
        self.read_before[n] = len(self.readers)
        return value

    def reader_above(self, node: fx.Node) -> str | None:
        """Return the first module noted above a node that reads just this node's value."""
        above = self.readers[self.read_before[node] :]
        return next((path for value, path in above if value is self.env[node]), None)


def measure_costs(traced: Traced, nodes: tuple[fx.Node, ...]) -> list[Costs]:
    """Measure parameters and multiply-adds below each of the given nodes, for one image.

    A multiply-add is two of the floating point operations that torch counts in matrix products,
    convolutions and attention; elementwise work is not counted, as is the custom.
    """
    try:
        return run_meter(traced, nodes, without_data(traced.network), "meta")
    except Exception:  # an operation that needs the data, or anything it leads to
        return run_meter(traced, nodes, traced.network, "cpu")


def run_meter(
    traced: Traced, nodes: tuple[fx.Node, ...], network: nn.Module, device: str
) -> list[Costs]:
    """Run one image through the graph and read the meter at each node."""
    image = torch.zeros(1, *traced.values[nodes[0]], device=device)
    readers: list[tuple[Tensor, str]] = []

    def note(path: str) -> Any:
        return lambda module, inputs: readers.append((inputs[0], path))

    hooks = [
        module.register_forward_pre_hook(note(path))
        for path, module in network.named_modules()
        if isinstance(module, (*THRESHOLDS, *NORMS))
    ]
    counter = FlopCounterMode(display=False)
    meter = Meter(network, traced.graph, counter, readers)
    try:
        with torch.no_grad(), counter:
            meter.run(image)
    finally:
        for hook in hooks:
            hook.remove()

    parameters = count_parameters(traced)
    return [
        Costs(
            parameters=parameters[node],
            multiply_adds=meter.operations[node] // 2,
            before=meter.reader_above(node),
        )
        for node in nodes
    ]


def count_parameters(traced: Traced) -> dict[fx.Node, int]:
    """Count the parameters that have been used up to and including each node."""
    seen: dict[int, int] = {}
    counts = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            parameters = list(traced.network.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            value = getattr(traced.network.get_submodule(path), name)
            parameters = [value] if isinstance(value, nn.Parameter) else []
        else:
            parameters = []
        seen.update({id(p): p.numel() for p in parameters})
        counts[node] = sum(seen.values())
    return counts
