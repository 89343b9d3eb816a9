"""What is to be learned about images, from labels as the data gives them."""

from __future__ import annotations

import numpy as np
import pytest

from topwork.data.image_set import ImageSet, Item
from topwork.errors import DataError
from topwork.learn.folds import stratified_folds
from topwork.learn.targets import names_of, targets_of


def images(*labels: tuple[str, ...], **options) -> ImageSet:
    items = tuple(Item(f"{index}.png", own) for index, own in enumerate(labels))
    return ImageSet("made", items, {}.__getitem__, **options)


ANIMALS = images(("cow",), ("ant",), ("bee",), ("ant",))
TWO = images(("no",), ("yes",), ("yes",))
SEVERAL = images(("wet",), ("cold", "wet"), (), ("dark",), multilabel=True)
AGES = images(("41.5",), ("3",), ("1e2",))
SIZES = images(("1", "20"), ("2.5", "-30"), number_names=("width", "height"))


@pytest.mark.parametrize("head", ["softmax", "svm", "ridge"])
def test_classes_are_numbered_by_name(head):
    targets = targets_of(ANIMALS, [3, 0, 2], head)
    assert (targets.kind, targets.names, targets.outputs) == ("classes", ("ant", "bee", "cow"), 3)
    assert targets.values.tolist() == [0, 2, 1]
    assert targets.values.dtype == np.int64
    assert targets.answered() is targets
    assert targets.tensor().tolist() == targets.strata().tolist() == [0, 2, 1]


def test_sigmoid_has_one_output_for_two_classes_and_one_for_each_label_otherwise():
    binary = targets_of(TWO, [0, 1, 2], "sigmoid")
    assert (binary.kind, binary.names, binary.outputs) == ("labels", ("no", "yes"), 1)
    assert binary.values.tolist() == [[0.0], [1.0], [1.0]]
    answered = binary.answered()
    assert (answered.kind, answered.values.tolist()) == ("classes", [0, 1, 1])
    assert binary.tensor().is_contiguous()

    exclusive = targets_of(ANIMALS, [3, 0], "sigmoid")
    assert (exclusive.outputs, exclusive.values.tolist()) == (3, [[1, 0, 0], [0, 0, 1]])
    several = targets_of(SEVERAL, range(4), "sigmoid")
    assert several.names == ("cold", "dark", "wet")
    assert several.values.tolist() == [[0, 0, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert several.values.dtype == np.float32
    assert several.answered() is several
    pair = images(("wet",), ("cold", "wet"), multilabel=True)
    assert targets_of(pair, [0, 1], "sigmoid").values.tolist() == [[0, 1], [1, 1]]


def test_regression_learns_the_numbers_that_labels_say():
    ages = targets_of(AGES, range(3), "regression")
    assert (ages.kind, ages.names, ages.outputs) == ("numbers", ("number",), 1)
    assert ages.values.tolist() == [[41.5], [3.0], [100.0]]
    assert ages.values.dtype == np.float32
    sizes = targets_of(SIZES, [1, 0], "regression")
    assert (sizes.names, sizes.values.tolist()) == (("width", "height"), [[2.5, -30], [1, 20]])
    assert names_of(SIZES, "regression") == ("width", "height")
    assert names_of(ANIMALS, "sigmoid") == ("ant", "bee", "cow")
    assert len(stratified_folds(ages.strata(), count=3)) == 3


def test_a_fitted_model_keeps_its_own_names_and_outputs():
    few = images(("bee",), ("bee",))
    assert targets_of(few, [0, 1], "softmax", names=("ant", "bee", "cow")).values.tolist() == [1, 1]
    one = targets_of(few, [0], "sigmoid", names=("ant", "bee"), outputs=1)
    assert one.values.tolist() == [[1.0]]
    both = targets_of(few, [0], "sigmoid", names=("ant", "bee"), outputs=2)
    assert both.values.tolist() == [[0.0, 1.0]]
    with pytest.raises(DataError, match="does not know the class 'bee'; it knows ant, cow"):
        targets_of(few, [0], "softmax", names=("ant", "cow"))


@pytest.mark.parametrize(
    ("data", "head", "options", "text"),
    [
        (SEVERAL, "softmax", {}, "^made: images have several labels, or none; learn them with "),
        (SEVERAL, "sigmoid", {"names": ("no", "yes"), "outputs": 1}, "several labels"),
        (SIZES, "svm", {}, "its labels are numbers; learn them with --head regression"),
        (ANIMALS, "regression", {}, "^made: the label 'cow' of 0.png is no number; correct it"),
        (images(("1",), ("nan",)), "regression", {}, "the label 'nan' of 1.png is no number"),
        (images(("1",), ("1e999",)), "regression", {}, "is no number"),
        (AGES, "regression", {"names": ("a", "b")}, r"0.png has 1 labels, not 2 \(a, b\)"),
    ],
)
def test_labels_that_a_head_does_not_learn_are_refused(data, head, options, text):
    with pytest.raises(DataError, match=text) as caught:
        targets_of(data, range(len(data)), head, **options)
    assert "\n" not in str(caught.value)
