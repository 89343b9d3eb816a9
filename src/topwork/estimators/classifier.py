"""A plan as a scikit-learn classifier."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from topwork.advising import advice_for_fit
from topwork.api import make_plan
from topwork.data.image_set import ImageSet, name_a_few
from topwork.data.loading import untracked
from topwork.errors import PlanError, UsageError
from topwork.estimators.built import Built, build, scores_of
from topwork.estimators.frozen import Size, as_int, height_and_width
from topwork.estimators.inputs import (
    all_training,
    digests_of,
    image_set,
    require_all,
    require_classes,
)
from topwork.learn.fit import fit_plan, require_fittable, require_solvable
from topwork.learn.heads import CLASS_KINDS
from topwork.learn.samples import Samples
from topwork.network.answers import answers
from topwork.network.device import choose_device
from topwork.network.loading import load_backbone
from topwork.network.zoo import find_backbone
from topwork.plan import Plan
from topwork.trunk.execution import Execution

log = logging.getLogger("topwork")


class TransferClassifier(ClassifierMixin, BaseEstimator):
    """A plan that is fitted to images: ``topwork fit`` in scikit-learn's form.

    All images of ``fit`` are for training; what has to be chosen (a head's strength, when to stop)
    is chosen inside them. Outputs of frozen layers are cached by the content of the images, so that
    cross-validation runs these layers once over each image, and prediction not again.

    Args:
        backbone: the network, as for `topwork.fit`: a name or a folder. A complete plan has one
            too, and may be given None here.
        plan: a plan, its JSON file, or a name, as for `topwork.fit`; "auto" measures and compares
            candidates on the images of ``fit`` first.
        head: "softmax", "svm" or "ridge"; None for the plan's own, which is "softmax" in those that
            have a name.
        kept: a depth, see `topwork.Plan`; so are the next two.
        reused: a depth.
        frozen: a depth, or one for each phase.
        epochs: of phases that train by gradient descent.
        rate: the learning rate of new layers in these.
        views: of each training image.
        time_budget: for finding the plan, in seconds; for plan "auto" alone.
        input_size: side, or height and width, in pixels that the network sees; None for its own.
        weights: a file with the pretrained weights.
        device: "cpu", "cuda", "mps" or "auto".
        runtime: what runs frozen layers, see `topwork.trunk.execution.Execution`.
        decoding: "fast" or "exact", likewise.
        cache: what is kept of their outputs, likewise.
        random_state: seed of folds, order, dropout, views and random weights.

    Attributes:
        classes_: the labels, sorted: the order of columns.
        plan_: the plan, settled on the network.
        advice_: the evidence for the plan, as `topwork.advising.advise` gives it; None unless plan
            "auto" was asked for.
        phases_: what became of each phase, plain data as in a run's ``record.json``; of a head that
            was solved for, ``phases_[0]["probe"]["out_of_fold"]`` is its accuracy in folds.
        left_out_: name and reason of images that could not be read.
        range_: the range of numbers that became pixels (see `topwork.estimators.inputs`); None
            where fit saw images.
        n_features_in_: columns of X, where it had numbers.

    X is as for `topwork.estimators.frozen.FrozenFeatures`; y has one label for each image: any that
    scikit-learn's classifiers take. There are no ``sample_weight``: a plan's phases can balance
    classes instead. In fit, images that cannot be read are left out with a warning; in prediction
    one is a `topwork.errors.ImageError`.

        model = TransferClassifier("timm:resnet18", plan="features", kept="layer3")
        cross_val_score(model, paths, labels)
    """

    def __init__(
        self,
        backbone: str | Path | None = None,
        *,
        plan: str | Path | Plan = "features",
        head: str | None = None,
        kept: str | None = None,
        reused: str | None = None,
        frozen: str | tuple[str, ...] = (),
        epochs: int | None = None,
        rate: float | None = None,
        views: int | None = None,
        time_budget: float | None = None,
        input_size: Size = None,
        weights: str | Path | None = None,
        device: str = "auto",
        runtime: str = "auto",
        decoding: str = "fast",
        cache: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.backbone = backbone
        self.plan = plan
        self.head = head
        self.kept = kept
        self.reused = reused
        self.frozen = frozen
        self.epochs = epochs
        self.rate = rate
        self.views = views
        self.time_budget = time_budget
        self.input_size = input_size
        self.weights = weights
        self.device = device
        self.runtime = runtime
        self.decoding = decoding
        self.cache = cache
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> TransferClassifier:
        """Fit the plan to images and their labels.

        Raises:
            ValueError: for labels, or numbers, that scikit-learn would not take.
            ImageError: if no image can be read.
            DataError: if none of a class can be.
            TopworkError: one of its kinds, for anything else the user can mend.
        """
        labels = validate_data(self, y=y)
        check_classification_targets(labels)
        plan = self._asked_plan()
        backbone = find_backbone(plan.backbone, weights=self.weights)
        channels = plan.channels or backbone.preprocessing.channels
        images = image_set(self, X, reset=True, channels=channels)
        check_consistent_length(images.items, labels)
        classes, columns = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes[0]!r}; give two or more")
        images = labeled(images, columns)
        digests, failed = digests_of(images)
        lost = tuple((images.items[index].name, reason) for index, reason in failed.items())
        warn_of(lost)
        require_classes(images, labels, failed, channels)
        audit, execution, seed = all_training(images, digests), self._execution(), self._seed()
        advice = None
        if self.plan == "auto":
            advice = advice_for_fit(
                images,
                audit,
                backbone,
                plan,
                execution,
                time_budget=self.time_budget,
                seed=seed,
                track=untracked,
            ).record()
            plan = Plan.from_dict(advice["recommended"])
        loaded = load_backbone(backbone, plan, seed)
        require_solvable(loaded)
        fitted = fit_plan(loaded, images, audit, execution, seed)
        warn_of(fitted.lost)
        self.left_out_ = (*lost, *fitted.lost)
        self.classes_, self.advice_ = classes, advice
        self.plan_, self.phases_ = loaded.plan, fitted.records
        self._backbone, self._frozen = loaded.backbone, fitted.frozen.name
        self._tensors = {k: v.cpu().numpy() for k, v in fitted.model.layer_state().items()}
        self._built = Built(loaded, fitted.top, fitted.frozen)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each image, [n]; raise as `predict_proba` does."""
        scores = self._scores(X)
        return np.asarray(self.classes_[scores.argmax(axis=1)])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of classes, float64 [n, classes].

        Raises:
            ValueError: for numbers that scikit-learn would not take.
            ImageError: for an image that cannot be read, naming it.
            CacheError: if the cache cannot be written.
        """
        scores = self._scores(X)
        return answers(self.plan_.head, scores)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores, float32: [n, classes], or of two classes [n], positive for the second.

        Their softmax are the probabilities. It raises as `predict_proba` does.
        """
        scores = self._scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def _scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "plan_")
        channels = self._backbone.preprocessing.channels
        images = image_set(self, X, reset=False, channels=channels)
        digests, failed = digests_of(images)
        require_all(images, failed)
        if self._built is None:
            self._built = build(self._backbone, self.plan_, self._frozen, self._tensors)
        audit = all_training(images, digests)
        samples = Samples(self._built.loaded, images, audit, self._execution(), untracked)
        return scores_of(self._built, samples)

    def _asked_plan(self) -> Plan:
        if self.time_budget is not None and self.plan != "auto":
            raise UsageError('time_budget is for finding a plan; leave it out, or give plan="auto"')
        plan = make_plan(
            self.plan,
            backbone=None if self.backbone is None else str(self.backbone),
            weights=self.weights,
            kept=self.kept,
            reused=self.reused,
            frozen=(self.frozen,) if isinstance(self.frozen, str) else tuple(self.frozen),
            head=self.head,
            epochs=as_int(self.epochs),
            rate=None if self.rate is None else float(self.rate),
            views=as_int(self.views),
            size=height_and_width(self.input_size),
        )
        if plan.head not in CLASS_KINDS:
            raise PlanError(
                f"head {plan.head} tells no classes apart; choose from {', '.join(CLASS_KINDS)},"
                " or use topwork.fit"
            )
        require_fittable(plan)
        return plan

    def _execution(self) -> Execution:
        return Execution(choose_device(self.device), self.runtime, self.decoding, self.cache)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying may keep: plain data and arrays, no network."""
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_built": None} if "_built" in state else state


def warn_of(lost: Sequence[tuple[str, str]]) -> None:
    """Log the names of images that are left out of fit, with the reasons."""
    if lost:
        names = name_a_few([": ".join(each) for each in lost])
        log.warning("unreadable images are left out (%d): %s", len(lost), names)


def labeled(images: ImageSet, columns: np.ndarray) -> ImageSet:
    """Return images with the numbers of their classes as names, in such a form that they sort."""
    items = zip(images.items, columns, strict=True)
    return replace(images, items=tuple(replace(i, labels=(f"{int(c):09}",)) for i, c in items))
