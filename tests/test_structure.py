"""The shape of the code: layers that import one way, a small public surface, no unsafe loading."""

import ast
import importlib
from pathlib import Path

import pytest

import topwork

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "topwork"
LAYERS = [
    "errors",
    "plain",
    "staging",
    "phase",
    "plan",
    "named_plans",
    "data",
    "network",
    "trunk",
    "learn",
    "advice",
    "pretraining",
    "study",
    "report",
    "advising",
    "scoring",
    "api",
    "making",
    "showing",
    "estimators",
    "cli_parts",
    "cli_cache",
    "cli_advise",
    "cli_pretrain",
    "cli",
]
FACES = (SOURCE / "__init__.py", SOURCE / "__main__.py")
FILES = sorted(path for path in SOURCE.rglob("*.py") if path not in FACES)


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> set[str]:
    """All topwork modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    known = {module_of(p) for p in FILES}
    return {name for name in found if name in known}


def layer_of(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_come_from_layers_below(path: Path) -> None:
    here = layer_of(module_of(path))
    above = {name for name in imports_of(path) if layer_of(name) > here}
    assert not above, f"{module_of(path)} imports from above: {sorted(above)}"


def test_imports_make_no_circle() -> None:
    edges = {module_of(path): imports_of(path) - {module_of(path)} for path in FILES}
    while edges:
        leaves = [name for name, targets in edges.items() if not targets & edges.keys()]
        assert leaves, f"imports run in a circle among {sorted(edges)}"
        for name in leaves:
            del edges[name]


def test_public_names() -> None:
    assert topwork.__all__ == sorted(topwork.__all__)
    assert topwork.__all__ == [
        "Augment",
        "Chain",
        "FrozenFeatures",
        "Hidden",
        "Phase",
        "Plan",
        "Stop",
        "TopworkError",
        "TransferClassifier",
        "advise",
        "cut",
        "evaluate_model",
        "fit",
        "images_from_arrays",
        "inspect",
        "load",
        "open_images",
        "pretrain",
        "profile",
        "trace_chain",
    ]
    for name in topwork.__all__:
        home = importlib.import_module(getattr(topwork, name).__module__)
        assert getattr(home, name) is getattr(topwork, name)
        assert getattr(topwork, name).__doc__, f"{name} has no docstring"


def test_no_code_from_data() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "pickle.load", "pickle.loads"), path
                settings = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert settings.get("weights_only", "True") == "True", path
                assert settings.get("allow_pickle", "False") == "False", path
                if called == "torch.load":
                    assert "weights_only" in settings, path
                if called == "np.load":
                    assert "allow_pickle" in settings, path


def test_constraints_pin_versions_and_name_no_index() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all("==" in line and "://" not in line and not line.startswith("-") for line in lines)
