"""Finding cut points: grouping the calls of a traced network into units.

A unit is a block or a weighted layer, with the norm, activation and arithmetic that finish it.
Pooling, dropout and reshaping before the next unit belong above: so a code is taken after the
ReLU and before the pooling, and dropout acts when the layers above are trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx, nn

from topwork.network.trace import Traced, is_batch_size, is_block

Role = Literal["weighted", "finishing", "pooling", "neutral"]

WEIGHTED = {"linear", "conv1d", "conv2d", "conv3d"}
FINISHING = {
    *("add", "add_", "iadd", "sub", "mul", "mul_", "imul", "truediv", "cat", "concat"),
    *("relu", "relu_", "relu6", "gelu", "silu", "hardswish", "hardtanh", "hardtanh_"),
    *("leaky_relu", "leaky_relu_", "rrelu", "rrelu_", "prelu", "elu", "elu_", "selu", "selu_"),
    *("celu", "celu_", "mish", "glu", "softplus", "softsign", "hardsigmoid", "log_sigmoid"),
    *("sigmoid", "sigmoid_", "tanh", "tanh_", "_threshold", "threshold", "threshold_"),
    *("softshrink", "hardshrink", "tanhshrink"),
    *("layer_norm", "batch_norm", "group_norm", "rms_norm", "normalize"),
}
CLAMPING = {"clamp", "clamp_", "clamp_min", "clamp_min_", "clip", "clip_"}
RESHAPING = ("Identity", "Dropout", "Drop", "StochasticDepth", "Flatten", "Permute", "Pad")


@dataclass
class Unit:
    """Positions in the graph.

    Attributes:
        start: the first call that belongs to the unit, pooling and reshaping included.
        first: its first weighted or normalizing call.
        end: the last call that finishes it.
        norm_alone: whether it is but a norm.
    """

    start: int
    first: int
    end: int
    norm_alone: bool


def find_cuts(traced: Traced) -> list[tuple[fx.Node, str]]:
    """Return the node whose value crosses, and the name, of every cut above the input."""
    nodes = list(traced.graph.nodes)
    units = group(traced, nodes)
    crossings = single_crossings(traced, nodes)
    cuts, below = [], 0
    for unit, limit in zip(units, [*(u.start for u in units[1:]), len(nodes)], strict=True):
        places = [i for i in range(unit.first, limit) if i in crossings]
        if places:
            place = min(places, key=lambda i: abs(i - unit.end))
            cuts.append((crossings[place], name_of(traced, nodes, unit, below)))
            below = place + 1
    return cuts


def group(traced: Traced, nodes: list[fx.Node]) -> list[Unit]:
    """Divide the nodes into units."""
    roles = [role_of(traced, node) for node in nodes]
    last_weighted = max((i for i, role in enumerate(roles) if role == "weighted"), default=-1)
    units: list[Unit] = []
    start, closed = 0, False
    for i, (node, role) in enumerate(zip(nodes, roles, strict=True)):
        norm_alone = role == "finishing" and closed and has_parameters(traced, node)
        if role == "pooling":
            closed = True
        if role == "weighted" and units and i < last_weighted and leads_to(nodes, units[-1], i):
            units[-1].end, units[-1].norm_alone = i, False
        elif role == "weighted" or norm_alone:
            units.append(Unit(start, i, i, norm_alone))
        elif role == "finishing" and units:
            units[-1].end = i
        else:
            continue
        # A block is complete: a norm that follows it is a unit of its own.
        closed = (
            role == "weighted" and node.op == "call_module" and is_block(module_at(traced, node))
        )
        start = i + 1
    return units


def leads_to(nodes: list[fx.Node], unit: Unit, here: int) -> bool:
    """Say whether a norm that is a unit of its own goes with a layer, as in downsampling."""
    norm, layer = nodes[unit.first], nodes[here]
    if not unit.norm_alone or norm.op != "call_module" or layer.op != "call_module":
        return False
    parent = str(norm.target).rpartition(".")[0]
    return bool(parent) and parent == str(layer.target).rpartition(".")[0]


def module_at(traced: Traced, node: fx.Node) -> nn.Module:
    """Return the module that a node calls."""
    return traced.network.get_submodule(str(node.target))


def role_of(traced: Traced, node: fx.Node) -> Role:
    """Say what a call does to the tensor that flows through."""
    if node not in traced.values or node.op in ("placeholder", "get_attr", "output"):
        return "neutral"
    if node.op == "call_module":
        return role_of_module(module_at(traced, node))
    name = getattr(node.target, "__name__", str(node.target))
    if name in WEIGHTED:
        return "weighted"
    if name in FINISHING or (name in CLAMPING and is_rectifier(node)):
        return "finishing"
    return "pooling" if shrinks(traced, node) else "neutral"


def is_rectifier(node: fx.Node) -> bool:
    """Say whether a call that clamps does so from zero on, as a ReLU does: others guard a value."""
    lowest = node.kwargs.get("min", node.args[1] if len(node.args) > 1 else None)
    return isinstance(lowest, int | float) and lowest == 0


def role_of_module(module: nn.Module) -> Role:
    """Say what a module that is kept whole does, by its parameters and the name of its class."""
    kind = type(module).__name__
    if is_weighted(module):
        return "weighted"
    if "Pool" in kind:
        return "pooling"
    if any(True for _ in module.parameters()) or "Norm" in kind:
        return "finishing"
    return "neutral" if kind.startswith(RESHAPING) else "finishing"


def is_weighted(module: nn.Module) -> bool:
    """Say whether a module holds a matrix or a kernel, not just scales and biases."""
    return any(parameter.dim() >= 2 for parameter in module.parameters())


def has_parameters(traced: Traced, node: fx.Node) -> bool:
    """Say whether a node calls a module that holds parameters."""
    if node.op != "call_module":
        return False
    return any(True for _ in module_at(traced, node).parameters())


def shrinks(traced: Traced, node: fx.Node) -> bool:
    """Say whether a call without weights gives fewer numbers than it takes."""

    def size(n: fx.Node) -> int:
        count = 1
        for extent in traced.values[n]:
            count *= extent
        return count

    taken = [size(n) for n in node.all_input_nodes if n in traced.values]
    return bool(taken) and size(node) < max(taken)


def single_crossings(traced: Traced, nodes: list[fx.Node]) -> dict[int, fx.Node]:
    """Map each position after which a single tensor is all that is still needed to its node.

    What does not depend on the input (parameters, constants made of them) can be computed again
    above, and the batch size can be read off any tensor: neither crosses. A position is no
    crossing where a parameter or a module with tensors is used on both sides.
    """
    position = {node: i for i, node in enumerate(nodes)}
    flowing: set[fx.Node] = set()
    for node in nodes:
        made_of_input = any(n in flowing for n in node.all_input_nodes)
        if (node.op == "placeholder" or made_of_input) and not is_batch_size(node):
            flowing.add(node)
    last_use = {node: max((position[user] for user in node.users), default=-1) for node in nodes}
    divided = spans_of_tensors(traced, nodes)
    crossings: dict[int, fx.Node] = {}
    alive: list[fx.Node] = []
    for i, node in enumerate(nodes):
        alive = [n for n in [*alive, node] if n in flowing and last_use[n] > i]
        shared = any(first <= i < last for first, last in divided)
        if len(alive) == 1 and alive[0] in traced.values and not shared:
            crossings[i] = alive[0]
    return crossings


def spans_of_tensors(traced: Traced, nodes: list[fx.Node]) -> list[tuple[int, int]]:
    """Return the first and last position of use of every tensor that is used more than once."""
    uses: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.op == "call_module":
            module = module_at(traced, node)
            tensors = [*module.parameters(), *module.buffers()]
        elif node.op == "get_attr" and node.target != "training":
            path, _, name = str(node.target).rpartition(".")
            tensor = getattr(traced.network.get_submodule(path), name)
            tensors = [tensor] if isinstance(tensor, nn.Parameter) else []
        else:
            continue
        for tensor in tensors:
            uses.setdefault(id(tensor), []).append(i)
    return [(where[0], where[-1]) for where in uses.values() if where[0] != where[-1]]


def name_of(traced: Traced, nodes: list[fx.Node], unit: Unit, below: int) -> str:
    """Name a cut after the last module that finishes its unit, or the largest that ends with it.

    ``below`` is the position right above the cut before this one: a compound whose calls all
    lie above it holds no other cut, and lends its name.
    """
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    own = [
        str(node.target)
        for node in nodes[unit.first : unit.end + 1]
        if node.op == "call_module"
        and role_of(traced, node) in ("weighted", "finishing")
        and called.count(str(node.target)) == 1
    ]
    if not own:
        return nodes[unit.end].name
    name = own[-1]
    inside = {str(node.target) for node in nodes[below : unit.end + 1] if node.op == "call_module"}
    while parent := name.rpartition(".")[0]:
        if any(path.startswith(parent + ".") and path not in inside for path in called):
            break
        name = parent
    return name
