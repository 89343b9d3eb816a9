"""Frozen layers in scikit-learn's own tools: search over depths and penalties.

    python examples/estimators.py FOLDER BACKBONE

FOLDER has one sub-folder of images per class; BACKBONE is a network's name or folder. Every image
goes through the network once: a second run takes its codes from the cache.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from topwork import FrozenFeatures, TransferClassifier, inspect
from topwork.data.decode import IMAGE_EXTENSIONS


def main(folder: str, backbone: str) -> None:
    """Search over depths and penalties, then cross-validate a plan of topwork's own."""
    files = (file for file in sorted(Path(folder).glob("*/*")))
    paths = [str(file) for file in files if file.suffix.lower() in IMAGE_EXTENSIONS]
    labels = [Path(path).parent.name for path in paths]

    started = time.perf_counter()
    model = make_pipeline(
        FrozenFeatures(backbone), StandardScaler(), LogisticRegression(max_iter=1000)
    )
    stages = [cut["name"] for cut in inspect(backbone)["cuts"][1:] if cut["stage_end"]]
    grid = {"frozenfeatures__depth": stages, "logisticregression__C": [1e-4, 1e-3, 1e-2]}
    search = GridSearchCV(model, grid, cv=5).fit(paths, labels)
    print(
        f"{len(search.cv_results_['params'])} settings of depth and C: best {search.best_params_}"
    )
    print(f"accuracy in folds {search.best_score_:.3f}, {time.perf_counter() - started:.1f} s")

    started = time.perf_counter()
    scores = cross_val_score(TransferClassifier(backbone, plan="features"), paths, labels, cv=5)
    print(f"plan features: {scores.mean():.3f}, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/estimators.py FOLDER BACKBONE")
    main(*sys.argv[1:])
