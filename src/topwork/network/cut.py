"""Cutting a chain: a trunk that is only ever run, and a top that is trained.

Frozen means not there. The trunk is no ``nn.Module``: it has no parameters to hand to an
optimizer, no mode to switch, and runs without gradients. Cutting shares tensors and copies
nothing; fitting copies what it will train.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor, fx, nn

from topwork.errors import ChainError
from topwork.network.chain import Chain, CutPoint, put, without_head
from topwork.network.sharing import share_copy
from topwork.network.trace import is_batch_size


class Trunk:
    """The layers below one or more cut points, as a function of images.

    Always in eval mode, always without gradients; nothing it does writes to a tensor of the
    network it was cut from.

    Attributes:
        cuts: the cut points, the lowest first.
        programs: the calls from the input to each of them as text.
        segments: the layers up to each from the one before.
    """

    def __init__(self, chain: Chain, depths: Sequence[str | int]) -> None:
        cuts = sorted({chain.resolve(depth) for depth in depths}, key=lambda cut: cut.depth)
        self.cuts = tuple(cuts)
        self.programs = tuple(program(chain, cut) for cut in cuts)
        starts = [chain.cuts[0], *cuts]
        self.segments = tuple(
            segment(chain, below, above).eval() for below, above in zip(starts, cuts, strict=False)
        )

    def outputs(self, images: Tensor) -> Iterator[tuple[CutPoint, Tensor]]:
        """Yield each cut point with its tensor, the lowest first, in one pass.

        Args:
            images: float32 [N, C, H, W], normalized.
        """
        value = images
        for cut, part in zip(self.cuts, self.segments, strict=True):
            with torch.no_grad():  # not around the yield: it would reach into the caller's loop
                value = part(value)
            yield cut, value

    def __call__(self, images: Tensor) -> Tensor:
        """Return the tensor at the uppermost cut point."""
        with torch.no_grad():
            for part in self.segments:
                images = part(images)
        return images

    def state(self, count: int | None = None) -> dict[str, Tensor]:
        """Return the tensors below the first ``count`` cuts (default: all), by name.

        They are the network's own, or where the trunk was moved, its copies.
        """
        parts = self.segments[:count]
        return {name: value for part in parts for name, value in part.state_dict().items()}

    def to(self, device: torch.device, memory_format: torch.memory_format) -> Trunk:
        """Return a trunk with its own tensors on a device, in a memory layout."""
        moved = object.__new__(Trunk)
        moved.cuts, moved.programs = self.cuts, self.programs
        moved.segments = tuple(
            copy.deepcopy(part).to(device).to(memory_format=memory_format) for part in self.segments
        )
        return moved


def program(chain: Chain, cut: CutPoint) -> str:
    """Return the calls below a cut point as text; the same text means the same calls."""
    if chain.graph is None:
        return str(without_head(chain.network, str(chain.head)))
    needed = ancestors(chain.nodes[0], chain.nodes[cut.depth])
    lines = []
    for node in chain.graph.nodes:
        if node in needed:
            is_module = node.op == "call_module"
            module = chain.network.get_submodule(str(node.target)) if is_module else ""
            lines.append(f"{node.format_node()} {module}")
    return "\n".join(lines)


def cut(chain: Chain, depth: str | int) -> tuple[Trunk, nn.Module]:
    """Cut a chain in two: ``top(trunk(x))`` is ``network(x)``, bit for bit in eval mode.

    The top is an ``nn.Module`` in eval mode whose parameters are the network's own, under the
    names they have there; dropout and batch norm in it follow its mode.

    >>> from topwork.network.chain import trace_chain
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    >>> trunk, top = cut(trace_chain(net, torch.ones(1, 4)), "1")
    >>> torch.equal(top(trunk(torch.ones(5, 4))), net(torch.ones(5, 4)))
    True
    >>> sorted(top.state_dict())
    ['2.bias', '2.weight']
    """
    at = chain.resolve(depth)
    return Trunk(chain, [at.depth]), segment(chain, at, None)


def segment(chain: Chain, below: CutPoint, above: CutPoint | None) -> nn.Module:
    """Return the layers between two cut points; None stands for the network's output.

    Module objects are new, tensors are the network's own. Where the first of the layers would
    overwrite its input in place, it is given a copy.
    """
    if chain.graph is None:
        return untraced_segment(chain, below, above)
    start = chain.nodes[below.depth]
    result = chain.nodes[above.depth] if above else output_value(chain.graph)
    graph = extract(chain.graph, start, below.depth in chain.copied, result)
    return graph_module(chain.network, graph)


def graph_module(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return calls as a module, with copies of the modules that they name and of no others."""
    named = {
        str(node.target): reduce(getattr, str(node.target).split("."), network)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    modules = {name: part for name, part in named.items() if isinstance(part, nn.Module)}
    copies = share_copy(nn.ModuleList(modules.values()))
    found = fx.GraphModule({**named, **dict(zip(modules, copies, strict=True))}, graph)
    found.training = network.training
    return found


def untraced_segment(chain: Chain, below: CutPoint, above: CutPoint | None) -> nn.Module:
    """Return the layers between two of the three places of a network that cannot be traced."""
    if below.depth == 0 and (above is None or above.depth == 1):
        head = str(chain.head)
        layers = without_head(chain.network, head) if above else share_copy(chain.network)
        if 0 in chain.copied:
            layers.register_forward_pre_hook(clone_input, prepend=True)
        return layers
    root, graph = nn.Module(), fx.Graph()
    value = graph.placeholder("x")
    if below.depth == 1 and above is None:
        put(root, str(chain.head), share_copy(chain.network.get_submodule(str(chain.head))))
        value = graph.call_module(str(chain.head), (value,))
    graph.output(value)
    return fx.GraphModule(root, graph)


def clone_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Give a module a copy of its input: a forward pre-hook, which leaves all names alone."""
    return (inputs[0].clone(),)


def codes_segment(chain: Chain) -> nn.Module | None:
    """Return what lies between L and the last linear layer: the source head's own pooling.

    None if the network has no single last linear layer.
    """
    if chain.head is None:
        return None
    if chain.graph is None:
        return nn.Identity()
    (linear,) = (n for n in chain.graph.nodes if n.op == "call_module" and n.target == chain.head)
    top = chain.top.depth
    start, result = chain.nodes[top], linear.all_input_nodes[0]
    graph = extract(chain.graph, start, top in chain.copied, result)
    return graph_module(chain.network, graph)


def output_value(graph: fx.Graph) -> fx.Node:
    """Return the node whose value the graph returns."""
    value = next(node for node in reversed(graph.nodes) if node.op == "output").args[0]
    if not isinstance(value, fx.Node):
        raise ChainError("the network must return one tensor, the scores")
    return value


def extract(whole: fx.Graph, start: fx.Node, copied: bool, result: fx.Node) -> fx.Graph:
    """Copy the calls that lead from one node's value to another's into a graph of their own."""
    graph = fx.Graph()
    entry = graph.placeholder("x")
    value = graph.call_method("clone", (entry,)) if copied else entry
    renamed = {start: value}
    if start is result:
        graph.output(value)
        return graph
    needed = ancestors(start, result)
    for node in whole.nodes:
        if node in needed:
            if node.op == "call_method" and is_batch_size(node):
                renamed[node] = graph.call_method("size", (entry, 0))
            else:
                renamed[node] = graph.node_copy(node, lambda n: renamed[n])
    graph.output(renamed[result])
    return graph


def ancestors(start: fx.Node, result: fx.Node) -> set[fx.Node]:
    """Return the nodes that a result needs, down to the start and without it."""
    found: set[fx.Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if node is not start and node not in found:
            found.add(node)
            reads = [] if node.op == "call_method" and is_batch_size(node) else node.all_input_nodes
            waiting.extend(reads)
    return found
