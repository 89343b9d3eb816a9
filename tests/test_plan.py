import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topwork.errors import ChainError, PlanError
from topwork.named_plans import named_plan
from topwork.phase import Phase, Stop
from topwork.plan import HEADS, POOLS, Augment, Hidden, Plan


@dataclass(frozen=True)
class Point:
    name: str
    depth: int


class Axis:
    """A depth axis of four cut points."""

    points = tuple(Point(name, i) for i, name in enumerate(["input", "stem", "a", "b", "c"]))
    top = points[-1]

    def resolve(self, depth: str | int) -> Point:
        for point in self.points:
            if str(depth) in (point.name, str(point.depth)):
                return point
        raise ChainError(f"no cut point is named {depth!r}; did you mean 'stem'?")


def settle(**choices: object) -> Plan:
    return Plan("net", **choices).settle(Axis())  # type: ignore[arg-type]


def test_defaults_keep_reuse_and_freeze_up_to_the_top() -> None:
    plan = settle()
    assert (plan.kept, plan.reused, plan.codes, plan.phases[0].frozen) == ("c", "c", ("c",), "c")


def test_numbers_become_names() -> None:
    plan = settle(kept="3", reused="2", phases=(Phase(frozen="1", epochs=2),))
    assert (plan.kept, plan.reused, plan.codes, plan.phases[0].frozen) == ("b", "a", ("b",), "stem")
    assert plan.settle(Axis()) == plan


def test_codes_become_distinct_cut_points_sorted_by_depth() -> None:
    assert settle(codes=("b", "stem", "3", "1")).codes == ("stem", "b")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"kept": "steem"}, "kept: no cut point is named 'steem'; did you mean 'stem'"),
        ({"kept": "0"}, "keeps no layer"),
        ({"kept": "a", "reused": "b"}, "reused (b) lies above kept (a)"),
        ({"kept": "a", "codes": ("b",)}, "codes at b lie above kept"),
        ({"kept": "a", "phases": (Phase(frozen="b"),)}, "frozen (b) lies above kept (a)"),
        ({"reused": "a", "phases": (Phase(frozen="b"),)}, "frozen (b) lies above reused (a)"),
    ],
)
def test_nonsense_is_refused_with_the_way_out(choices: dict, message: str) -> None:
    with pytest.raises(PlanError) as raised:
        settle(**choices)
    assert message in str(raised.value)


def test_the_control_with_frozen_random_layers_must_be_asked_for_by_name() -> None:
    asked = {"reused": "input", "phases": (Phase(frozen="c"),)}
    with pytest.raises(PlanError, match='"frozen_random": true'):
        settle(**asked)
    assert settle(**asked, frozen_random=True).reused == "input"


depths = st.sampled_from([None, "stem", "a", "b", "c"])
phases = st.builds(Phase, frozen=depths) | st.builds(
    Phase,
    frozen=depths,
    epochs=st.integers(1, 50),
    gradual=st.booleans(),
    clip=st.none() | st.floats(0.1, 10),
    stop=st.none() | st.builds(Stop, patience=st.none() | st.integers(1, 9)),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    rate=st.none() | st.floats(1e-6, 1),
)
plans = st.builds(
    Plan,
    backbone=st.text(min_size=1),
    kept=depths,
    reused=depths,
    codes=st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple),
    pool=st.none() | st.sampled_from(POOLS),
    added=st.lists(st.builds(Hidden, width=st.integers(1, 99)), max_size=2).map(tuple),
    head=st.sampled_from(HEADS),
    input_size=st.none() | st.tuples(st.integers(1, 999), st.integers(1, 999)),
    channels=st.none() | st.integers(1, 13),
    views=st.integers(1, 16),
    augment=st.builds(Augment, least_area=st.floats(0.1, 1), flip=st.booleans()),
    phases=st.lists(phases, min_size=1, max_size=3).map(tuple),
)


@given(plans)
def test_json_round_trip(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert plan.describe()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kpet": "a"}, "unknown key 'kpet' in plan; did you mean 'kept'?"),
        ({"version": 2}, '"version": 1'),
        ({"head": "softmaxx"}, "did you mean 'softmax'"),
        ({"head": 3}, "head in plan is 3"),
        ({"views": True}, "views in plan is True"),
        ({"views": 0}, "views is 0"),
        ({"phases": []}, "at least one phase"),
        ({"phases": [{"epohcs": 1}]}, "did you mean 'epochs'?"),
        ({"phases": [{"stop": {"patience": "x"}}]}, "patience in stop is 'x'"),
        ({"phases": 5}, "phases in plan is 5; it must be a list"),
        ({"phases": ["x"]}, "item 1 of phases in plan is 'x'; it must be an object"),
        ({"phases": [{}, None]}, "item 2 of phases in plan is None; it must be an object"),
        ({"phases": [{"stop": False}]}, "stop in phase is False; it must be an object"),
        ({"phases": [{"stop": {"accuracy": 95}}]}, "accuracy is 95; give a number from 0 to 1"),
        ({"phases": [{"stop": {"patience": 0}}]}, "patience is 0; give 1 epoch or more"),
        ({"phases": [{"epochs": -1}]}, "epochs is -1; give 0 or more"),
        ({"phases": [{"rate": math.nan}]}, "rate is nan; give a finite number above 0"),
        ({"phases": [{"rate": math.inf}]}, "rate is inf; give a finite number above 0"),
        ({"phases": [{"rate": 10**400}]}, "give a finite number above 0"),
        ({"phases": [{"rate": 0}]}, "rate is 0; give a finite number above 0"),
        ({"phases": [{"reused_rate": -0.1}]}, "reused_rate is -0.1; give"),
        ({"phases": [{"depth_decay": 0}]}, "depth_decay is 0; give a number above 0, up to 1"),
        ({"phases": [{"depth_decay": 1.1}]}, "depth_decay is 1.1; give"),
        ({"added": [{}]}, "incomplete hidden layer: width is missing"),
        ({"added": [3]}, "item 1 of added in plan is 3; it must be an object"),
        ({"added": [{"width": 9, "dropout": math.nan}]}, "dropout from 0 to below 1"),
        ({"added": [{"widht": 9}]}, "unknown key 'widht' in hidden layer; did you mean 'width'?"),
        ({"backbone": ""}, "backbone is empty"),
        ({"codes": [3]}, "item 1 of codes in plan is 3; it must be text in quotes"),
        ({"codes": [["layer1"]]}, "item 1 of codes in plan is ['layer1']; it must be text"),
        ({"pool": "max"}, "known are avg, token, token+avg, flatten"),
        ({"input_size": [0, 5]}, "give height and width"),
        ({"input_size": [224]}, "input_size in plan is [224]; it must be a list of 2 or null"),
        ({"input_size": [1, 2, 3]}, "it must be a list of 2 or null"),
        ({"input_size": ["a", "b"]}, "item 1 of input_size in plan is 'a'; it must be a whole"),
        ({"version": True}, "this one says True"),
    ],
)
def test_strict_reading(change: dict, message: str) -> None:
    data = {**Plan("net").to_dict(), **change}
    with pytest.raises(PlanError) as raised:
        Plan.from_dict(data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PlanError, match="a plan is a JSON object, not"):
        Plan.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="incomplete plan: backbone is missing"):
        Plan.from_dict({"version": 1})


FULL = Plan(
    "net",
    kept="c",
    codes=("a", "b"),
    added=(Hidden(8),),
    input_size=(32, 48),
    phases=(Phase(), Phase(epochs=2, stop=Stop(patience=3, accuracy=0.9), rate=0.1)),
).to_dict()


def places(data: object, path: tuple = ()) -> Iterator[tuple]:
    """Walk over the path of every value in plain data, the nested ones included."""
    inside = data.items() if isinstance(data, dict) else enumerate(data)  # type: ignore[arg-type]
    for key, value in inside:
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


numbers = st.integers(-2, 3) | st.floats(-2, 3) | st.sampled_from([math.nan, math.inf, 10**400])
words = st.text(max_size=3) | st.sampled_from(["svm", "sgd", "width", "stop", "a\nb"])
json_values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"balance": "loss"}, "balance"),
        ({"mix": "mixup"}, "mix"),
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"average": 0.9}, "average"),
        ({"pull": 0.01}, "pull"),
        ({"clip": 1.0}, "clip"),
        ({"stop": {"patience": 3}, "mix": "cutmix"}, "stop and mix"),
    ],
)
def test_a_phase_that_solves_for_the_head_refuses_what_only_training_heeds(given, named) -> None:
    message = f"a phase of 0 epochs solves for the head; leave out its {named}, or give it epochs"
    with pytest.raises(PlanError, match=message):
        Plan.from_dict({"version": 1, "backbone": "net", "phases": [given]})
    trained = [{"epochs": 1, **given}]
    assert Plan.from_dict({"version": 1, "backbone": "net", "phases": trained}).phases[0].epochs


@settings(max_examples=400)
@given(st.sampled_from(list(places(FULL))), json_values)
def test_any_value_anywhere_gives_a_plan_or_a_plan_error(place: tuple, value: object) -> None:
    data = json.loads(json.dumps(FULL))
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    try:
        plan = Plan.from_dict(data)
    except PlanError as error:
        message = str(error)
        assert message.isprintable()
        assert not message.endswith(": ")
    else:
        assert plan.describe()
        assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_files(tmp_path) -> None:
    plan = Plan("net", kept="a", head="svm")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "list.json").write_text("[]")
    for name, message in (
        ("absent.json", "cannot read plan"),
        ("bad.json", "is no JSON"),
        ("deep.json", "is no JSON"),
        ("list.json", r"list.json: a plan is a JSON object, not \[\]"),
    ):
        with pytest.raises(PlanError, match=message):
            Plan.load(tmp_path / name)


def test_named_plans_say_what_they_are_called() -> None:
    assert named_plan("features", "net").phases == (Phase(),)
    assert named_plan("finetune", "net").phases[0].frozen == "input"
    assert named_plan("scratch", "net").reused == "input"
    lowered = named_plan("partial", "net", frozen=("b", "a")).phases
    assert [phase.frozen for phase in lowered] == [None, "b", "a"]
    with pytest.raises(PlanError, match="did you mean 'finetune'"):
        named_plan("finetun", "net")


def test_the_description_follows_the_plan() -> None:
    settled = settle(kept="b", reused="a", phases=(Phase(frozen="a", epochs=3, rate=0.01),))
    text = settled.describe()
    assert "up to b, drop those above" in text
    assert "up to a start from pretrained weights, the others from random" in text
    assert "up to a is frozen; the rest is trained for 3 epochs by adamw at rate 0.01" in text
    for head, words in (("svm", "a linear SVM"), ("ridge", "a ridge classifier")):
        assert f"The head is {words} on" in replace(settled, head=head).describe()
