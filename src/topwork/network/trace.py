"""Tracing a network into a flat graph whose nodes are blocks.

`torch.fx` records the calls of a network's ``forward``. Blocks (residual units, transformer
layers, inverted bottlenecks) stay whole, because no cut lies inside them; what merely holds
blocks (the network itself, its stages and containers) is traced through. The graph that comes
out is normalized so that later steps need no special cases:

* optional inputs of ``forward`` have become constants, and input-shape assertions are gone;
* integers read from shapes have become literals, or a multiple of the batch size, so that a
  shape that stays alive does not look like a tensor that crosses a cut;
* functional dropout follows the mode of the module that runs it, not the mode at tracing.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from topwork.network.sharing import share_copy, spare_buffers, without_data

DROPOUTS = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
}
"""Functional forms whose third argument is the training mode."""


class TraceFailure(Exception):
    """A network whose forward cannot be recorded; the text names the line that stopped it."""


@dataclass(frozen=True)
class Traced:
    """A normalized graph and what one run of it showed.

    Attributes:
        network: the module tree that the graph's paths point into, in eval mode.
        graph: nodes in the order of execution; one placeholder, one output.
        values: the shape of each node's tensor for one image, batch dimension dropped; nodes
            whose value is not one tensor with the batch in front are absent.
        altered: nodes whose value a later node changes in place.
    """

    network: nn.Module
    graph: fx.Graph
    values: dict[fx.Node, tuple[int, ...]]
    altered: frozenset[fx.Node]


def is_block(module: nn.Module) -> bool:
    """Say whether a module is a block: made of others, with two or more weighted layers."""
    weighted = sum(
        any(p.dim() >= 2 for p in part.parameters(recurse=False)) for part in module.modules()
    )
    return weighted >= 2 and any(True for _ in module.children())


def holds_blocks(module: nn.Module) -> bool:
    """Say whether a module is a stage or holds one: somewhere in it all parts are blocks."""
    children = list(module.children())
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    is_list = isinstance(module, lists) or len(children) > 1
    if is_list and children and all(is_block(child) for child in children):
        return True
    return any(holds_blocks(child) for child in children)


def is_traced_through(module: nn.Module) -> bool:
    """Say whether tracing looks inside a module (the alternative: it stays whole).

    Looked into are plain ``nn.Sequential``, whatever holds blocks, and small compounds around
    at most one weighted layer (a stem, a classifier with its pooling), where cuts may lie.
    """
    if type(module) is nn.Sequential:
        return True
    if module.__module__.startswith("torch.nn") or not any(True for _ in module.children()):
        return False
    return holds_blocks(module) or (holds_classifier(module) and not is_block(module))


def holds_classifier(module: nn.Module) -> bool:
    """Say whether a module has a linear layer, or global pooling, among its direct parts."""
    return any(
        isinstance(child, nn.Linear) or "AdaptivePool" in type(child).__name__
        for child in module.children()
    )


class BlockTracer(fx.Tracer):
    """A tracer that keeps blocks, and whatever could not be traced before, whole."""

    def __init__(self, whole: set[str], opened: str | None) -> None:
        super().__init__()
        self.whole, self.opened = whole, opened
        self.path: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep a module whole where nothing is gained, or possible, inside it."""
        if module_qualified_name in self.whole:
            return True
        return module_qualified_name != self.opened and not is_traced_through(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Remember which module is being traced, for the error that may come."""
        self.path.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()  # not in a finally: after an error the path shows where it happened
        return result


def optional_inputs(network: nn.Module) -> dict[str, Any]:
    """Return the default values of ``forward``'s inputs after the first.

    Raises:
        TraceFailure: if ``forward`` needs more than one input.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in named[1:] if p.default is p.empty]
    if needed:
        raise TraceFailure(f"forward needs more than one input: {', '.join(needed)}")
    return {p.name: p.default for p in named[1:]}


def record(network: nn.Module, opened: str | None) -> fx.Graph:
    """Trace in the network's present mode; modules that resist are kept whole."""
    whole: set[str] = set()
    while True:
        tracer = BlockTracer(whole, opened)
        try:
            graph = tracer.trace(network, concrete_args=optional_inputs(network))
        except TraceFailure:
            raise
        except Exception as error:  # whatever user code raises when it meets a proxy
            inside = [path for path in tracer.path if path not in whole]
            if not inside:
                raise TraceFailure(f"{line_of(error)} ({error})".replace("\n", " ")) from error
            whole.add(inside[-1])
        else:
            drop_optional_inputs(graph)
            bind_dropout(graph)
            return graph


def line_of(error: BaseException) -> str:
    """Name the innermost line of user code in an error's traceback."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "torch/fx" not in frame.filename and "topwork/network" not in frame.filename
    ]
    if not frames:
        return "forward"
    last = frames[-1]
    return f"{last.filename.rpartition('/')[2]}:{last.lineno}: {last.line}"


def drop_optional_inputs(graph: fx.Graph) -> None:
    """Erase assertions, and the placeholders of optional inputs that have become constants."""
    checks = {torch._assert, fx._symbolic_trace._assert_is_none}
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in checks:
            graph.erase_node(node)
    for node in [node for node in graph.nodes if node.op == "placeholder"][1:]:
        if not node.users:
            graph.erase_node(node)


def bind_dropout(graph: fx.Graph) -> None:
    """Make functional dropout read the mode of the module it will run in."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in DROPOUTS:
            with graph.inserting_before(node):
                mode = graph.get_attr("training")
            if len(node.args) > 2:
                node.args = (*node.args[:2], mode, *node.args[3:])
            else:
                node.kwargs = {**node.kwargs, "training": mode}


class Observer(fx.Interpreter):
    """Runs a graph once and keeps each node's value and tensor version."""

    def __init__(self, network: nn.Module, graph: fx.Graph) -> None:
        super().__init__(network, garbage_collect_values=False, graph=graph)
        self.versions: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and note the version of its tensor, which in-place changes raise."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.versions[n] = value._version
        return value


def trace(network: nn.Module, example: Tensor, opened: str | None = None) -> Traced:
    """Record a network as a normalized graph of blocks, and check it against the network.

    Args:
        network: any module that takes one tensor; it is not changed, its mode included.
        example: input of one or more images, [N, C, H, W]; shapes are fixed to its size.
        opened: the path of a block to trace through all the same.

    Raises:
        TraceFailure: if ``forward`` cannot be recorded; the text names the line.
    """
    network = share_copy(network)
    with spare_buffers(network):  # recording runs what forward does to buffers
        in_training = record(network.train(), opened)
    with spare_buffers(network) as written:
        graph = record(network.eval(), opened)
        if calls_of(graph) != calls_of(in_training):
            raise TraceFailure("forward takes another way in training than in evaluation")
        try:
            traced = normalize(network, graph, example)
            with torch.no_grad():
                recorded = fx.Interpreter(network, graph=graph).run(example[:1].clone())
                expected = network(example[:1].clone())
        except Exception as error:  # whatever user code raises
            raise TraceFailure(f"{line_of(error)} ({first_line(error)})") from error
        if not isinstance(expected, Tensor) or not torch.equal(recorded, expected):
            raise TraceFailure("the recorded graph does not give the network's output")
    if written:
        raise TraceFailure(f"forward changes the buffer {written[0]} in eval mode")
    return traced


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def calls_of(graph: fx.Graph) -> list[tuple[str, str, str]]:
    """Return a graph's calls in a form that can be compared."""
    return [(node.op, str(node.target), f"{node.args} {node.kwargs}") for node in graph.nodes]


def normalize(network: nn.Module, graph: fx.Graph, example: Tensor) -> Traced:
    """Replace integers read from shapes, and note every tensor's shape.

    The graph is run with two batch sizes, on tensors without data where the network allows it.
    """
    try:
        runs = observe(without_data(network), graph, example.to("meta"))
    except Exception:  # an operation that needs the data, or anything it leads to
        runs = observe(network, graph, example)
    at_two, at_three = runs
    values = {
        node: tuple(value.shape[1:])
        for node, value in at_two.env.items()
        if isinstance(value, Tensor)
        and value.dim()
        and (len(value), len(at_three.env[node])) == (2, 3)
    }
    altered = frozenset(
        n for n, version in at_two.versions.items() if at_two.env[n]._version > version
    )
    fix_integers(graph, at_two.env, at_three.env)
    return Traced(network, graph, values, altered)


def observe(network: nn.Module, graph: fx.Graph, example: Tensor) -> tuple[Observer, Observer]:
    """Run a graph with two and with three images."""
    runs = Observer(network, graph), Observer(network, graph)
    with torch.no_grad():
        for run, count in zip(runs, (2, 3), strict=True):
            run.run(example[:1].repeat(count, *[1] * (example.dim() - 1)))
    return runs


def fix_integers(graph: fx.Graph, at_two: dict[fx.Node, Any], at_three: dict[fx.Node, Any]) -> None:
    """Turn integer nodes into literals, or into multiples of the batch size."""
    source = next(iter(graph.nodes))
    with graph.inserting_after(source):
        batch = graph.call_method("size", (source, 0))
    for node in list(graph.nodes):
        is_mode = node.op == "get_attr"  # the bool that functional dropout reads
        if node is batch or is_mode or node not in at_two or not is_integers(at_two[node]):
            continue
        two, three = at_two[node], at_three[node]
        if isinstance(two, int):
            if is_known(two, three):
                replace_by_literal(node, in_terms_of(batch, two, three))
        elif len(two) == len(three) and all(map(is_known, two, three)):
            pairs = zip(two, three, strict=True)
            replace_by_literal(node, tuple(in_terms_of(batch, *pair) for pair in pairs))
    for node in reversed(list(graph.nodes)):
        dead = not node.users and not isinstance(at_two.get(node, 0), Tensor)
        if dead and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def is_known(two: int, three: int) -> bool:
    """Say whether an integer, seen with two and three images, is constant or a multiple of them."""
    return two == three or 3 * two == 2 * three


def in_terms_of(batch: fx.Node, two: int, three: int) -> int | fx.Node:
    """Return a known integer as a literal, or as the batch size times a factor."""
    if two == three or two == 2:
        return two if two == three else batch
    with batch.graph.inserting_after(batch):
        return batch.graph.call_function(operator.mul, (batch, two // 2))


def is_batch_size(node: fx.Node) -> bool:
    """Say whether a node of a normalized graph is the batch size or made of nothing else.

    The batch size itself is the one call that `fix_integers` inserts; other sizes that may be
    left belong to the tensor that they are read from.
    """
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return isinstance(node.args[0], fx.Node) and node.args[0].op == "placeholder"
    return bool(node.all_input_nodes) and all(is_batch_size(n) for n in node.all_input_nodes)


def is_integers(value: Any) -> bool:
    """Say whether a value is an integer or a tuple of integers."""
    if isinstance(value, tuple):
        return all(isinstance(part, int) for part in value)
    return isinstance(value, int)


def replace_by_literal(node: fx.Node, literal: Any) -> None:
    """Write a constant, or what stands for it, wherever a node's value is read."""
    for user in list(node.users):
        user.args = fx.map_arg(user.args, lambda n: literal if n is node else n)
        user.kwargs = fx.map_arg(user.kwargs, lambda n: literal if n is node else n)
