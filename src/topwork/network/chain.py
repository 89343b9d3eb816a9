"""A network as a chain of layers with cut points between them: the depth axis.

Depth 0 is the input; depth L, the last, is the input of the last linear layer (before pooling,
where pooling comes just before it). A cut point lies wherever a single tensor carries everything
that the layers above need, after a block or after a weighted layer with its norm and activation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from topwork.errors import ChainError, did_you_mean
from topwork.network.costs import measure_costs
from topwork.network.layout import Layout, layouts_of, positions
from topwork.network.sharing import share_copy, spare_buffers
from topwork.network.trace import (
    Traced,
    TraceFailure,
    first_line,
    holds_classifier,
    is_block,
    normalize,
    trace,
)
from topwork.network.units import find_cuts, role_of

INPUT = "input"
BODY = "body"
WRAP = "wrap it in a module that takes one batch and returns the scores"


@dataclass(frozen=True)
class CutPoint:
    """One place where a network can be divided.

    Attributes:
        depth: its position on the axis, 0 for the input.
        name: the path of the module that ends here; ``"input"`` at depth 0.
        shape: of the tensor that crosses, for one image.
        layout: how that tensor is laid out.
        stage_end: whether the next cut point belongs to another stage or resolution.
        parameters: trainable numbers below.
        multiply_adds: of one image through all layers below.
        before: the ReLU or batch norm that comes right above, if any: codes taken here are not
            thresholded the way the source network's own next layer sees them.
    """

    depth: int
    name: str
    shape: tuple[int, ...]
    layout: Layout
    stage_end: bool
    parameters: int
    multiply_adds: int
    before: str | None

    @property
    def bytes(self) -> int:
        """Bytes of this cut's tensor for one image in float32."""
        return 4 * int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Chain:
    """A network cut into a chain; made by `trace_chain` or `Chain.of`.

    Attributes:
        network: the module tree that ``graph`` points into. It shares its tensors with the
            network it was made from, and nothing else.
        graph: the calls, in the order of execution; None if the network cannot be traced.
        cuts: the cut points by depth, the input first and L last.
        nodes: the graph node whose value crosses, one for each cut point.
        copied: depths whose tensor a layer above overwrites in place, so that layers above must
            be given a copy.
        head: the path of the last linear layer, or None if the network ends without one.
        note: why only depths 0 and L are known, or None.
    """

    network: nn.Module
    graph: fx.Graph | None
    cuts: tuple[CutPoint, ...]
    nodes: tuple[fx.Node, ...]
    copied: frozenset[int]
    head: str | None
    note: str | None = None

    @staticmethod
    def of(parts: Sequence[tuple[str, nn.Module]], example: Tensor) -> Chain:
        """Make a chain from named modules that run one after another.

        For networks whose ``forward`` cannot be traced: name their parts yourself, the last one
        being the classifier. Composing is checked by running.

        Args:
            parts: (name, module) in the order of execution; names may hold dots.
            example: input, [N, C, H, W].

        Raises:
            ChainError: if the parts do not fit together, or fewer than two are given; if a name
                or a module, or a tensor of a module, is given twice.

        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2))
        >>> body = nn.Sequential(net[0], net[1], net[2])
        >>> chain = Chain.of([("body", body), ("head", net[3])], torch.zeros(1, 3, 2, 2))
        >>> [cut.name for cut in chain.cuts], chain.head
        (['input', 'body'], 'head')
        """
        check_batch(example)
        check_parts(parts)
        root, graph = nn.Module(), fx.Graph()
        value = graph.placeholder("x")
        for name, module in parts:
            put(root, name, share_copy(module))
            value = graph.call_module(name, (value,))
        graph.output(value)
        with spare_buffers(root.eval()) as written:
            run_parts(root, [name for name, _ in parts], example)
            traced = normalize_or_refuse(root, graph, example)
        refuse_written(written)
        calls = [node for node in traced.graph.nodes if node.op == "call_module"]
        ends = [(node, str(node.target)) for node in calls[:-1]]
        is_linear = isinstance(parts[-1][1], nn.Linear)
        return make_chain(traced, ends, head=parts[-1][0] if is_linear else None)

    def __len__(self) -> int:
        return len(self.cuts)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))

    @property
    def top(self) -> CutPoint:
        """The deepest cut point, L."""
        return self.cuts[-1]

    def resolve(self, depth: str | int) -> CutPoint:
        """Find a cut point by number, name, or the path of a stage that ends there.

        Raises:
            ChainError: if there is none; the message names the nearest.

        """
        text = str(depth)
        named = [cut for cut in self.cuts if cut.name == depth]
        if named:
            return named[0]
        if re.fullmatch(r"-?\d+", text):
            if 0 <= int(text) < len(self.cuts):
                return self.cuts[int(text)]
            raise ChainError(
                f"depth {text} does not exist: give 0 (the input) to {len(self.cuts) - 1}"
                f" ({self.top.name})"
            )
        inside = [cut for cut in self.cuts if cut.name.startswith(text + ".")]
        if inside:
            return inside[-1]
        names = [cut.name for cut in self.cuts]
        stages = {name.rpartition(".")[0] for name in names} - {""}
        hint = did_you_mean(text, [*names, *stages])
        raise ChainError(
            f"no cut point is named {text!r}{hint}; `topwork inspect` prints the names"
        )

    def depth_of_state(self) -> dict[str, int]:
        """Tell for each entry of the network's ``state_dict`` which depth first includes it.

        Entries above the last cut point, and those that ``forward`` never uses, have
        ``len(chain)``.
        """
        depths = dict.fromkeys(self.network.state_dict(), len(self.cuts))
        if self.graph is None:
            return {key: 2 if key.startswith(f"{self.head}.") else 1 for key in depths}
        boundaries = list(self.nodes)
        depth = 0
        for node in self.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                target = str(node.target)
                for key in depths:
                    if key == target or key.startswith(target + "."):
                        depths[key] = min(depths[key], depth)
            while depth < len(boundaries) and node is boundaries[depth]:
                depth += 1
        return depths


def trace_chain(network: nn.Module, example: Tensor) -> Chain:
    """Find the cut points of a network at one input size.

    Args:
        network: takes one tensor; neither it nor its mode is changed.
        example: input of the size to be used, [N, C, H, W]; its values do not matter.

    Returns:
        the chain; where ``forward`` cannot be traced, one with depths 0 and L only, whose
        ``note`` names the line that stopped it.

    Raises:
        ChainError: if even L cannot be found; if the network does not run, does not return one
            tensor, or changes its buffers in eval mode, as no cut of it could be trusted.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    >>> [(cut.name, cut.shape) for cut in trace_chain(net, torch.zeros(1, 3, 4, 4)).cuts]
    [('input', (3, 4, 4)), ('1', (4, 2, 2))]
    """
    check_batch(example)
    try:
        traced = trace(network, example)
        if compound := compound_head(traced):
            traced = trace(network, example, opened=compound)
        ends, head = below_head(traced, find_cuts(traced))
    except TraceFailure as failure:
        return ends_only(network, example, str(failure))
    if not ends:
        return ends_only(network, example, "no tensor that crosses alone below the classifier")
    return make_chain(traced, ends, head)


def ends_only(network: nn.Module, example: Tensor, reason: str) -> Chain:
    """Return the chain of depths 0 and L, for a network that cannot be traced.

    The last linear layer is found by running; without it, what remains gives L.
    """
    network = share_copy(network).eval()
    with spare_buffers(network) as written:
        head, output = run_last_linear(network, example)
        # A graph of two calls, below and above, to measure by; its names are not the network's.
        root, graph = nn.Module(), fx.Graph()
        code = graph.call_module(BODY, (graph.placeholder("x"),))
        graph.output(graph.call_module("head", (code,)))
        if head is not None:
            root.body, root.head = without_head(network, head), network.get_submodule(head)
        if head is None or not gives(root.eval(), graph, example, output):
            raise ChainError(
                f"the network cannot be traced ({reason}) and does not end in a linear layer"
                " that is called once;"
                " name its parts with topwork.Chain.of([(name, module), ...], example)"
            )
        measured = make_chain(normalize_or_refuse(root, graph, example), [(code, BODY)], head)
    refuse_written(written)
    note = f"only depths 0 and L: {reason}"
    return replace(measured, network=network, graph=None, nodes=(), note=note)


def without_head(network: nn.Module, head: str) -> nn.Module:
    """Return a copy that shares all tensors, its last linear layer replaced by the identity."""
    body = share_copy(network)
    put(body, head, nn.Identity())
    return body


def gives(root: nn.Module, graph: fx.Graph, example: Tensor, expected: Tensor) -> bool:
    """Say whether a graph runs on an example and gives just the tensor that is expected."""
    try:
        with torch.no_grad():
            found = fx.Interpreter(root, graph=graph).run(example.clone())
    except Exception:  # whatever user code raises when its last layer is not there
        return False
    return isinstance(found, Tensor) and torch.equal(found, expected)


def run_last_linear(network: nn.Module, example: Tensor) -> tuple[str | None, Tensor]:
    """Run a network; return its output, and the path of the linear layer that it comes from.

    The path is None if the output is not that of the last linear layer, called just once.

    Raises:
        ChainError: if the network does not run, or its output is not one tensor.
    """
    last: list[tuple[str, Tensor]] = []

    def note(path: str) -> Any:
        return lambda module, inputs, result: last.append((path, result))

    hooks = [
        module.register_forward_hook(note(path))
        for path, module in network.named_modules()
        if isinstance(module, nn.Linear) and path
    ]
    try:
        with torch.no_grad():
            output = network(example.clone())
    except Exception as error:  # whatever user code raises
        raise ChainError(
            f"the network does not run on a batch of shape {tuple(example.shape)}"
            f" ({first_line(error)}); {WRAP}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if not isinstance(output, Tensor):
        raise ChainError(f"the network returns a {type(output).__name__}, not one tensor; {WRAP}")
    path, result = last[-1] if last else (None, output)
    once = [name for name, _ in last].count(str(path)) == 1
    return path if once and torch.equal(result, output) else None, output


def check_batch(example: Tensor) -> None:
    """Raise unless the example is a batch of one or more."""
    if example.dim() < 2 or len(example) == 0:
        raise ChainError(
            f"the example has shape {tuple(example.shape)}; give a batch such as [1, 3, 224, 224]"
        )


def check_parts(parts: Sequence[tuple[str, nn.Module]]) -> None:
    """Raise unless each part of a chain has a name of its own and tensors of its own."""
    if len(parts) < 2:
        raise ChainError("a chain needs at least two parts: layers, then the classifier")
    names: list[str] = []
    owners: dict[int, str] = {}
    for name, module in parts:
        if not isinstance(name, str) or not all(name.split(".")) or name == INPUT:
            raise ChainError(f"a part cannot be named {name!r}; give a path such as 'layer1.0'")
        if not isinstance(module, nn.Module):
            raise ChainError(f"part {name!r} is no nn.Module but a {type(module).__name__}")
        for other in names:
            if name == other or name.startswith(other + ".") or other.startswith(name + "."):
                raise ChainError(f"part {name!r} and part {other!r} need names apart; rename one")
        for item in {id(item) for item in (*module.modules(), *tensors_of(module))}:
            if item in owners:
                raise ChainError(
                    f"part {name!r} has a module or tensor of part {owners[item]!r} in it:"
                    " a cut between them would divide it; make them one part"
                )
            owners[item] = name
        names.append(name)


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers of a module."""
    return [*module.parameters(), *module.buffers()]


def run_parts(root: nn.Module, names: Sequence[str], example: Tensor) -> None:
    """Run parts one after another; raise ChainError if one does not take what comes, or give."""
    value: Any = example[:1].clone()
    for name in names:
        try:
            with torch.no_grad():
                value = root.get_submodule(name)(value)
            problem = None if isinstance(value, Tensor) else f"gives a {type(value).__name__}"
        except Exception as error:  # whatever user code raises
            problem = first_line(error)
        if problem:
            raise ChainError(
                f"the parts given to Chain.of do not run one after another: {name!r}: {problem}"
            )


def normalize_or_refuse(root: nn.Module, graph: fx.Graph, example: Tensor) -> Traced:
    """Normalize a graph that runs on one batch; raise ChainError if it does not on others."""
    try:
        return normalize(root, graph, example)
    except Exception as error:  # whatever user code raises
        raise ChainError(
            f"the network does not run on two and on three images ({first_line(error)});"
            " make its forward take a batch of any size"
        ) from error


def refuse_written(written: Sequence[str]) -> None:
    """Raise if buffers were written in eval mode: a trunk would change the network it is of."""
    if written:
        raise ChainError(
            f"the network changes its buffer {written[0]} in eval mode;"
            " make its forward do that only `if self.training`"
        )


def put(root: nn.Module, path: str, module: nn.Module) -> None:
    """Set a submodule at a dotted path, making the modules on the way."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    setattr(root, name, module)


def make_chain(traced: Traced, ends: list[tuple[fx.Node, str]], head: str | None) -> Chain:
    """Build the chain from the nodes that cross, input excluded, L last."""
    nodes = (next(iter(traced.graph.nodes)), *(node for node, _ in ends))
    names = (INPUT, *(name for _, name in ends))
    for node, name in zip(nodes, names, strict=True):
        if node not in traced.values:
            raise ChainError(f"{name!r} gives no tensor with one entry for each image in front")
    shapes = [traced.values[node] for node in nodes]
    layouts = layouts_of(shapes, traced.network)
    costs = measure_costs(traced, nodes)
    stages = [
        (name.rpartition(".")[0], positions(shape, layout))
        for name, shape, layout in zip(names, shapes, layouts, strict=True)
    ]
    cuts = tuple(
        CutPoint(
            depth=depth,
            name=name,
            shape=shapes[depth],
            layout=layouts[depth],
            stage_end=stages[depth] != stages[min(depth + 1, len(stages) - 1)]
            or depth == len(stages) - 1,
            parameters=costs[depth].parameters,
            multiply_adds=costs[depth].multiply_adds,
            before=costs[depth].before,
        )
        for depth, name in enumerate(names)
    )
    copied = frozenset(depth for depth, node in enumerate(nodes) if node in traced.altered)
    return Chain(traced.network, traced.graph, cuts, nodes, copied, head)


def below_head(
    traced: Traced, ends: list[tuple[fx.Node, str]]
) -> tuple[list[tuple[fx.Node, str]], str | None]:
    """Split off the last linear layer: return the cuts below it, and its path.

    A network that does not end in one linear layer (or a convolution of one position, which is
    the same) has no head: all its cuts remain, or those below where its several heads begin.
    """
    nodes = list(traced.graph.nodes)
    weighted = [i for i, node in enumerate(nodes) if role_of(traced, node) == "weighted"]
    if not weighted:
        return ends, None
    last = nodes[weighted[-1]]
    if last.op != "call_module" or not is_linear(traced.network.get_submodule(str(last.target))):
        return ends, None
    below = [end for end in ends if nodes.index(end[0]) < weighted[-1]]
    alone = not below or sum(i > nodes.index(below[-1][0]) for i in weighted) == 1
    return below, str(last.target) if alone else None


def compound_head(traced: Traced) -> str | None:
    """Return the path of the last weighted call if it is a block around a linear layer."""
    weighted = [node for node in traced.graph.nodes if role_of(traced, node) == "weighted"]
    if not weighted or weighted[-1].op != "call_module":
        return None
    path = str(weighted[-1].target)
    module = traced.network.get_submodule(path)
    return path if is_block(module) and holds_classifier(module) else None


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear layer, or a convolution that is one at each position."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}
    )
