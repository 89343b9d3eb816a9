import json
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topwork.errors import ChainError, PlanError
from topwork.plan import HEADS, POOLS, Hidden, Phase, Plan, Stop, named_plan


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


def settle(**settings: object) -> Plan:
    return Plan("net", **settings).settle(Axis())  # type: ignore[arg-type]


def test_defaults_keep_reuse_and_freeze_up_to_the_top() -> None:
    plan = settle()
    assert (plan.kept, plan.reused, plan.codes, plan.phases[0].frozen) == ("c", "c", ("c",), "c")


def test_numbers_become_names() -> None:
    plan = settle(kept="3", reused="2", phases=(Phase(frozen="1", epochs=2),))
    assert (plan.kept, plan.reused, plan.codes, plan.phases[0].frozen) == ("b", "a", ("b",), "stem")
    assert plan.settle(Axis()) == plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kept": "steem"}, "kept: no cut point is named 'steem'; did you mean 'stem'"),
        ({"kept": "0"}, "keeps no layer"),
        ({"kept": "a", "reused": "b"}, "reused (b) lies above kept (a)"),
        ({"kept": "a", "codes": ("b",)}, "codes at b lie above kept"),
        ({"kept": "a", "phases": (Phase(frozen="b"),)}, "frozen (b) lies above kept (a)"),
        ({"reused": "a", "phases": (Phase(frozen="b"),)}, "frozen (b) lies above reused (a)"),
    ],
)
def test_nonsense_is_refused_with_the_way_out(settings: dict, message: str) -> None:
    with pytest.raises(PlanError) as raised:
        settle(**settings)
    assert message in str(raised.value)


def test_the_control_with_frozen_random_layers_must_be_asked_for_by_name() -> None:
    asked = {"reused": "input", "phases": (Phase(frozen="c"),)}
    with pytest.raises(PlanError, match='"frozen_random": true'):
        settle(**asked)
    assert settle(**asked, frozen_random=True).reused == "input"


depths = st.sampled_from([None, "stem", "a", "b", "c"])
phases = st.builds(
    Phase,
    frozen=depths,
    epochs=st.integers(0, 50),
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
    views=st.integers(1, 16),
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
        ({"phases": 5}, "phases is 5; give a list"),
        ({"added": [{}]}, "incomplete hidden"),
        ({"pool": "max"}, "known are avg, token, token+avg, flatten"),
        ({"input_size": [0, 5]}, "give height and width"),
    ],
)
def test_strict_reading(change: dict, message: str) -> None:
    data = {**Plan("net").to_dict(), **change}
    with pytest.raises(PlanError) as raised:
        Plan.from_dict(data)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files(tmp_path) -> None:
    plan = Plan("net", kept="a", head="svm")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    (tmp_path / "bad.json").write_text("{")
    for name, message in (("absent.json", "cannot read plan"), ("bad.json", "is no JSON")):
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
    assert replace(settled, head="svm").describe() != text
