"""Rewriting the graph of a network, call by call, into one that slides over larger images.

Meanwhile both run: the network as it is, at its own size, and what becomes of it, at a larger one.
What a call without weights does is told from what it makes of noise at both sizes, so it does not
matter which library it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from topwork.errors import UnsupportedError
from topwork.network.trace import first_line
from topwork.network.windows import Form, PerWindow, convolution, side_by_side

GROWTH = 64
"""Pixels by which the larger image is larger: a multiple of the usual strides, so that every map
grows by a whole number of positions."""

TOLERANCE = 1e-4
"""Difference allowed at the native size, relative to the largest score."""

INSTEAD = "choose one with a map below its top, such as AlexNet, VGG, ResNet or MobileNet"


class Rewriting:
    """One pass over a graph.

    Attributes:
        native: the value of each node in the network as it is, on one image of its own size.
        form: what that becomes, for nodes that carry the image.
        new: the node that stands for it in the new graph.
        larger: the value of each node of the new graph, on a larger image.
    """

    def __init__(self, whole: fx.GraphModule, example: Tensor) -> None:
        self.whole, self.example = whole, example
        self.native: dict[fx.Node, Any] = {}
        self.form: dict[fx.Node, Form] = {}
        self.new: dict[fx.Node, fx.Node] = {}
        self.larger: dict[fx.Node, Any] = {}
        self.graph = fx.Graph()
        self.parts: dict[str, Any] = {}  # modules and tensors of the new graph, by path
        self.noise = torch.Generator().manual_seed(0)

    def run(self) -> tuple[fx.GraphModule, tuple[float, float]]:
        """Rewrite all nodes; return the new network and its stride in pixels, down and across."""
        *calls, output = self.whole.graph.nodes
        for node in calls:
            self.begin(node) if node.op == "placeholder" else self.rewrite(node)
        result = output.args[0]
        if self.form.get(result) not in (Form("pooled"), Form("flat")):
            raise refusal(result, "gives no single score for each class")
        self.graph.output(self.new[result])
        layers = fx.GraphModule(self.parts, self.graph).eval()
        found, expected = layers(self.example).flatten(1), self.native[result].flatten(1)
        if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            raise refusal(result, "gives other scores once it slides")
        down, across = (GROWTH / (count - 1) for count in self.larger[self.new[result]].shape[2:])
        return layers, (down, across)

    def begin(self, node: fx.Node) -> None:
        """Start from noise at both sizes, so that no layer meets a special case."""
        *first, height, width = self.example.shape
        self.example = self.random(*first, height, width)
        self.native[node], self.form[node] = self.example, Form("map")
        self.new[node] = self.graph.placeholder("images")
        self.larger[self.new[node]] = self.random(*first, height + GROWTH, width + GROWTH)

    def random(self, *shape: int) -> Tensor:
        """Return noise on the device where the network runs."""
        return torch.randn(*shape, generator=self.noise).to(self.example)

    # --- one node -----------------------------------------------------------------------------

    def rewrite(self, node: fx.Node) -> None:
        """Run a node as it is; find its form, and what stands for it."""
        taken = [n for n in node.all_input_nodes if n in self.form]
        self.native[node] = value = self.runner(node)(*(self.native[n].clone() for n in taken))
        if not taken or not isinstance(value, Tensor):  # a parameter, or the size of the batch
            self.new[node] = self.keep(node)
        elif value.dim() == 3:
            raise refusal(node, "makes tokens, whose positions belong to one size of image")
        elif value.dim() not in (2, 4):
            raise refusal(node, f"makes a tensor of {value.dim()} dimensions, which is no map")
        elif all(self.form[n].kind == "map" for n in taken):
            self.new[node], self.form[node] = self.above_maps(node, taken)
        elif len({self.form[n] for n in taken}) == 1:
            self.new[node], self.form[node] = self.above_windows(node, taken)
        else:
            raise refusal(
                node, "joins what is pooled over windows that differ, or not pooled at all"
            )

    def above_maps(self, node: fx.Node, taken: list[fx.Node]) -> tuple[fx.Node, Form]:
        """Rewrite a call on maps: keep it where it gives a larger map of a larger one."""
        if len(taken) == 1 and not self.has_tensors(node):
            maps = self.random(*self.native[taken[0]].shape)
            larger_maps = self.random(*self.larger[self.new[taken[0]]].shape)
            found = self.runner(node)(maps.clone())
            larger = attempt(self.runner(node), larger_maps)
            if larger is None or larger.dim() != 4 or larger.shape == found.shape:
                return self.slide(node, self.new[taken[0]], maps, found)
        new = self.keep(node)
        if self.native[node].dim() != 4 or self.larger[new].shape == self.native[node].shape:
            raise refusal(node, "gives no larger map of a larger one")
        return new, Form("map")

    def slide(
        self, node: fx.Node, source: fx.Node, maps: Tensor, found: Tensor
    ) -> tuple[fx.Node, Form]:
        """Rewrite a call that belongs to one size of map, by what it has found in some noise."""
        if same(found, maps.flatten(1)):
            return source, Form("flat", (maps.shape[2], maps.shape[3]))
        if same(found, maps):
            return source, Form("map")
        form = Form("flat" if found.dim() == 2 else "pooled")
        for order in ((0, 1, 2, 3), (0, 3, 1, 2)):  # channels first, or last
            ordered = maps.permute(order)
            window = ordered.shape[2:]
            for pooled, pool in (
                (ordered.mean((2, 3)), F.avg_pool2d),
                (ordered.amax((2, 3)), F.max_pool2d),
            ):
                if same(found.flatten(1), pooled):
                    if order[1] != 1:
                        source = self.write("call_method", "permute", (source, *order))
                    return self.write("call_function", pool, (source, tuple(window), 1)), form
        was, is_now = ("x".join(map(str, values.shape[1:])) for values in (maps, found))
        raise refusal(
            node, f"makes {is_now} of the {was} of its native size, and of any larger map"
        )

    def above_windows(self, node: fx.Node, taken: list[fx.Node]) -> tuple[fx.Node, Form]:
        """Rewrite a call on what stands for windows."""
        form, source = self.form[taken[0]], self.new[taken[0]]
        after = Form("flat" if self.native[node].dim() == 2 else "pooled", form.window)
        layer = self.part(node)
        if node.target in (torch.cat, torch.concat):
            return self.join(node), after
        if isinstance(layer, nn.Linear) and form.kind == "flat":
            return self.put(node, convolution(layer, form.window), source), Form("flat")
        if self.is_alike_everywhere(node, taken, after):
            return self.keep(node), after
        sample = self.random(*self.native[taken[0]].shape)
        found = attempt(self.runner(node), *([sample] * len(taken)))
        if found is not None and same(found, sample.flatten(1)):
            return source, after
        if isinstance(layer, nn.Module) and form == after == Form("flat"):
            return self.put(node, PerWindow(layer), source), after
        raise refusal(node, "can be run on a single window only")

    def join(self, node: fx.Node) -> fx.Node:
        """Put codes of several depths side by side, in step with the coarsest."""
        columns = [self.new[n] for n in node.all_input_nodes]
        more = [[count - 1 for count in self.larger[column].shape[2:]] for column in columns]
        least = [max(1, min(counts)) for counts in zip(*more, strict=True)]
        if any(down % least[0] or across % least[1] for down, across in more):
            raise refusal(node, "joins maps that do not grow in step with the image")
        steps = [(down // least[0], across // least[1]) for down, across in more]
        return self.write("call_function", side_by_side, (columns, steps))

    def is_alike_everywhere(self, node: fx.Node, taken: list[fx.Node], after: Form) -> bool:
        """Say whether a call does at each position, as it stands, what it does to one window."""
        form, shape = self.form[taken[0]], self.native[taken[0]].shape
        height, width = form.window
        depth = shape[1] // (height * width)
        wide = [self.random(shape[0], depth, height + 1, width + 1) for _ in taken]
        found = attempt(self.runner(node), *wide)
        if found is None or found.dim() != 4 or found.shape[2:] != wide[0].shape[2:]:
            return False
        windows = zip(*(form.corners(values) for values in wide), strict=True)
        expected = [self.runner(node)(*(part.clone() for part in parts)) for parts in windows]
        return all(map(same, after.corners(found), expected))

    # --- running and writing calls ------------------------------------------------------------

    def runner(self, node: fx.Node) -> Callable[..., Any]:
        """Return a call of the old graph as a function of the values that carry the image."""
        taken = [n for n in node.all_input_nodes if n in self.form]

        def run(*values: Tensor) -> Any:
            given = self.native | dict(zip(taken, values, strict=True))
            args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
            return call(node.op, node.target, self.part(node), args, kwargs)

        return run

    def keep(self, node: fx.Node) -> fx.Node:
        """Write a call of the old graph into the new one as it is."""
        if node.op in ("call_module", "get_attr"):
            self.parts[str(node.target)] = self.part(node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.new.__getitem__)
        return self.write(node.op, node.target, args, kwargs)

    def put(self, node: fx.Node, layer: nn.Module, source: fx.Node) -> fx.Node:
        """Write a new layer in the place of the one that a node calls."""
        self.parts[str(node.target)] = layer
        return self.write("call_module", node.target, (source,))

    def write(self, op: str, target: Any, args: Any, kwargs: Any = None) -> fx.Node:
        """Write a call into the new graph, and run it on the larger image."""
        node = self.graph.create_node(op, target, args, kwargs or {})
        taken, named = fx.map_arg((node.args, node.kwargs), self.larger.__getitem__)
        try:
            self.larger[node] = call(op, target, self.parts.get(str(target)), taken, named)
        except Exception as error:  # whatever a layer raises at a size that it was not made for
            raise refusal(node, f"takes nothing larger ({first_line(error)})") from error
        return node

    def part(self, node: fx.Node) -> Any:
        """Return the module or tensor that a node names; None for other calls."""
        if node.op == "call_module":
            return self.whole.get_submodule(str(node.target))
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            return getattr(self.whole.get_submodule(path), name)
        return None

    def has_tensors(self, node: fx.Node) -> bool:
        """Say whether a node calls a module with parameters or buffers."""
        layer = self.part(node)
        return isinstance(layer, nn.Module) and bool(layer.state_dict())


def call(op: str, target: Any, part: Any, args: Any, kwargs: Any) -> Any:
    """Run one call of a graph."""
    if op == "get_attr":
        return part
    if op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return (part if op == "call_module" else target)(*args, **kwargs)


def attempt(run: Callable[..., Any], *values: Tensor) -> Tensor | None:
    """Return what a call makes of copies of some tensors; None if it does not take them."""
    try:
        found = run(*(value.clone() for value in values))
    except Exception:  # whatever a layer raises at a size that it was not made for
        return None
    return found if isinstance(found, Tensor) else None


def same(found: Tensor, expected: Tensor) -> bool:
    """Say whether two tensors agree but for rounding."""
    return found.shape == expected.shape and torch.allclose(found, expected, 1e-4, 1e-5)


def refusal(node: fx.Node, what: str) -> UnsupportedError:
    """Return the error about one call of the network."""
    name = str(node.target) if isinstance(node.target, str) else node.name
    name = re.sub(r"^segments\.\d+\.", "", name)  # as the source network names its layers
    name = re.sub(r"^segments\.\d+$", "the part below the head, which cannot be traced,", name)
    return UnsupportedError(f"{name} {what}; the network cannot be slid: {INSTEAD}")
