"""Transferability scores against their definitions; what the source's classifier says."""

import json
from dataclasses import replace
from itertools import product
from math import log
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf

from topwork.advice.source_classifier import source_probabilities
from topwork.advice.transferability import (
    h_score,
    ledoit_wolf_shrinkage,
    leep,
    log_me,
    nce,
    principal_projections,
)
from topwork.network.codes import Pool
from topwork.network.cut import Trunk
from topwork.network.folder import save_model
from topwork.network.loading import load_backbone
from topwork.network.model import Model, code_width
from topwork.network.zoo import find_backbone
from topwork.plan import Hidden, Plan

SHAPES = [(60, 5, 3), (40, 40, 2), (20, 90, 4), (50, 7, 2)]


def case(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of several scales, one column constant, the labels shown in some of them."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    means = generator.normal(size=(classes, d))
    codes = means[labels] + generator.normal(size=(n, d)) * generator.uniform(0.2, 3, d)
    codes[:, 0] = 2.0
    return codes, labels


def h_score_by_definition(codes: np.ndarray, labels: np.ndarray, shrinkage: float) -> float:
    covariance = np.cov(codes, rowvar=False, bias=True)
    means = np.stack([codes[labels == label].mean(0) for label in labels])
    between = np.cov(means, rowvar=False, bias=True)
    unit = np.eye(codes.shape[1]) * np.trace(covariance) / codes.shape[1]
    spread = (1 - shrinkage) * covariance + shrinkage * unit
    return float(np.trace(np.linalg.pinv(spread, hermitian=True) @ between) * (1 - shrinkage))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 0.9, None])
def test_h_score_is_the_trace_of_its_definition(
    shape: tuple[int, int, int], shrinkage: float | None
) -> None:
    codes, labels = case(*shape)
    used = ledoit_wolf(codes)[1] if shrinkage is None else shrinkage
    expected = h_score_by_definition(codes, labels, used)
    assert h_score(codes, labels, shrinkage=shrinkage) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_shrinkage_is_ledoit_and_wolfs(shape: tuple[int, int, int]) -> None:
    codes, _ = case(*shape)
    found = ledoit_wolf_shrinkage(codes - codes.mean(0))
    assert found == pytest.approx(ledoit_wolf(codes)[1], rel=1e-9)


def test_plain_h_score_says_nothing_with_few_rows_and_the_shrunk_one_does() -> None:
    codes, labels = case(20, 90, 4)
    shuffled = np.random.default_rng(1).permutation(labels)
    plain = [h_score(codes, some, shrinkage=0.0) for some in (labels, shuffled)]
    assert plain == pytest.approx([3.0, 3.0])
    assert h_score(codes, labels) > 1.3 * h_score(codes, shuffled)


def log_me_by_definition(codes: np.ndarray, labels: np.ndarray) -> float:
    """The greatest log density of the targets under their Gaussian marginal, by plain search."""
    n = len(codes)
    found = []
    for label in np.unique(labels):
        column = (labels == label).astype(float)

        def cost(logs: np.ndarray, column: np.ndarray = column) -> float:
            prior, noise = np.exp(np.clip(logs, -20, 20))
            covariance = codes @ codes.T / prior + np.eye(n) / noise
            _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
            return (log_determinant + column @ np.linalg.solve(covariance, column)) / (2 * n)

        starts = product((0.0, 4.0), (0.0, 4.0))
        results = [minimize(cost, np.array(s), method="Nelder-Mead") for s in starts]
        found.append(-min(result.fun for result in results))
    return float(np.mean(found))


@pytest.mark.parametrize("shape", SHAPES)
def test_log_me_is_the_greatest_evidence(shape: tuple[int, int, int]) -> None:
    codes, labels = case(*shape)
    assert log_me(codes, labels) == pytest.approx(log_me_by_definition(codes, labels), abs=1e-4)


def test_log_me_takes_columns_of_labels_and_numbers() -> None:
    codes, labels = case(60, 5, 3)
    columns = (labels[:, None] == np.arange(3)).astype(np.float32)
    assert log_me(codes, columns) == pytest.approx(log_me(codes, labels))
    assert log_me(codes, columns[:, :1]) != pytest.approx(log_me(codes, labels))


def test_scores_do_not_depend_on_how_classes_are_called() -> None:
    codes, labels = case(50, 7, 3)
    renamed = np.array([40, 2, 17])[labels]
    for score in (h_score, log_me):
        assert score(codes, renamed) == pytest.approx(score(codes, labels), rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
def test_projections_are_those_of_the_singular_vectors(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    codes, columns = generator.normal(size=shape), generator.normal(size=(shape[0], 2))
    codes[:, 0] = codes[:, 1]
    squares, found = principal_projections(codes, columns)
    left, values, _ = np.linalg.svd(codes, full_matrices=False)
    rank = np.linalg.matrix_rank(codes)
    np.testing.assert_allclose(squares[::-1], values[:rank] ** 2)
    np.testing.assert_allclose(np.abs(found[::-1]), np.abs(left[:, :rank].T @ columns), atol=1e-9)


def leep_by_definition(source: np.ndarray, labels: np.ndarray) -> float:
    n, count = source.shape
    total = 0.0
    for row in range(n):
        likelihood = 0.0
        for z in range(count):
            same = sum(source[other, z] for other in range(n) if labels[other] == labels[row])
            likelihood += same / source[:, z].sum() * source[row, z]
        total += log(likelihood)
    return total / n


def test_leep_is_the_log_likelihood_of_its_definition() -> None:
    generator = np.random.default_rng(0)
    source = generator.dirichlet(np.full(6, 0.3), size=40)
    labels = generator.integers(0, 3, 40) * 5
    assert leep(source, labels) == pytest.approx(leep_by_definition(source, labels))
    informed = np.eye(6)[labels // 5]
    assert leep(informed, labels) == 0.0


def test_nce_is_leep_of_a_classifier_without_doubt() -> None:
    generator = np.random.default_rng(0)
    source, labels = generator.integers(0, 5, 60), generator.integers(0, 3, 60)
    given = 0.0
    for z in range(5):
        of_z = labels[source == z]
        shares = [np.mean(of_z == label) for label in range(3)]
        given += len(of_z) / 60 * sum(share * log(share) for share in shares if share)
    assert nce(source, labels) == pytest.approx(given)
    assert leep(np.eye(5)[source], labels) == pytest.approx(given)


def test_the_source_says_what_the_whole_network_says(backbone: Path) -> None:
    loaded = load_backbone(find_backbone(str(backbone)), Plan(str(backbone)))
    whole = loaded.backbone.spec.build().eval()
    whole.load_state_dict(load_file(backbone / "model.safetensors"))
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    top = loaded.chain.top
    codes = Pool(top.layout, "avg")(Trunk(loaded.chain, [top.name])(images)).numpy()
    found = source_probabilities(loaded, codes, "avg")
    expected = whole(images).softmax(1).detach().numpy()
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def tiny_transformer(folder: Path) -> torch.nn.Module:
    """Write one of random weights, for 32 pixels and 7 classes, in timm's format."""
    name, small = "vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}
    network = timm.create_model(name, num_classes=7, img_size=32, **small).eval()
    save_file(network.state_dict(), folder / "model.safetensors")
    view = {"input_size": [3, 32, 32], "fixed_input_size": True}
    config = {
        "architecture": name,
        "num_classes": 7,
        "pretrained_cfg": view,
        "model_args": small,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return network


def test_of_token_and_mean_the_source_reads_its_own(tmp_path: Path) -> None:
    network = tiny_transformer(tmp_path)
    loaded = load_backbone(find_backbone(str(tmp_path)), Plan(str(tmp_path)))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    top = loaded.chain.top
    codes = Pool(top.layout, "token+avg")(Trunk(loaded.chain, [top.name])(images)).numpy()
    found = source_probabilities(loaded, codes, "token+avg")
    assert found is not None
    np.testing.assert_allclose(found, network(images).softmax(1).detach().numpy(), rtol=1e-4)


def test_there_is_nothing_to_say_without_the_source_classifier(
    backbone: Path, tmp_path: Path
) -> None:
    loaded = load_backbone(find_backbone(str(backbone)), Plan(str(backbone)))
    codes = np.zeros((2, loaded.chain.top.shape[0]), np.float32)
    state = load_file(backbone / "model.safetensors")
    head = str(loaded.chain.head)
    save_file(
        {name: value for name, value in state.items() if not name.startswith(head)},
        tmp_path / "body.safetensors",
    )
    bare = replace(loaded, weights={"file": str(tmp_path / "body.safetensors"), "sha256": ""})
    assert source_probabilities(loaded, codes, "avg") is not None
    assert source_probabilities(bare, codes, "avg") is None
    assert source_probabilities(replace(loaded, weights=None), codes, "avg") is None
    assert source_probabilities(loaded, codes, "flatten") is None
    lower = replace(loaded, plan=replace(loaded.plan, reused=loaded.chain.cuts[1].name))
    assert source_probabilities(lower, codes, "avg") is None


@pytest.mark.parametrize(
    ("plan", "pool", "is_known"),
    [
        (Plan("x"), "token", True),
        (Plan("x", head="svm"), "token", True),
        (Plan("x", head="regression"), "token", False),
        (Plan("x", head="sigmoid"), "token", False),
        (Plan("x", added=(Hidden(24),)), "token", False),
        (Plan("x", pool="avg"), "token", False),
        (Plan("x", pool="avg"), "avg", True),
        (Plan("x", pool="avg"), "token+avg", True),
    ],
    ids=lambda value: f"{value.head}{len(value.added)}" if isinstance(value, Plan) else str(value),
)
def test_a_fitted_models_head_speaks_where_it_tells_classes_by_these_codes(
    plan: Plan, pool: str, is_known: bool, tmp_path: Path
) -> None:
    tiny_transformer(tmp_path)
    plan = replace(plan, backbone=str(tmp_path))
    loaded = load_backbone(find_backbone(plan.backbone), plan)
    settled, chain = loaded.plan, loaded.chain
    width = code_width(chain, settled.codes, str(settled.pool))
    model = Model(chain, settled.codes, str(settled.pool), width, 4, plan.added).eval()
    save_model(tmp_path / "model", model, loaded, ("a", "b", "c", "d"))

    name = str(tmp_path / "model")
    again = load_backbone(find_backbone(name), Plan(name))
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    top = again.chain.top
    codes = Pool(top.layout, pool)(Trunk(again.chain, [top.name])(images)).numpy()
    found = source_probabilities(again, codes, pool)
    assert (found is not None) == is_known
    if found is not None:
        expected = model(images).softmax(1).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4)
