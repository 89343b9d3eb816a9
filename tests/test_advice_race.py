"""Candidates, trials and the race, on codes whose truth is known and with trials made up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from topwork.advice import candidates as known
from topwork.advice import race as race_module
from topwork.advice import trials
from topwork.advice.candidates import Candidate, candidates
from topwork.advice.profile import make_profile
from topwork.advice.race import Race, race, winner
from topwork.advice.standing import Standing, cheapest_of_the_best, errors_behind, standing_of
from topwork.advice.textbook import SAYS, textbook
from topwork.advice.trials import Division, Task, in_short, try_plan
from topwork.advising import Measured, backbones_of, base_plan, measure
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet
from topwork.data.items import open_images
from topwork.data.loading import untracked
from topwork.errors import DataError, UsageError
from topwork.learn.heads import fit_head
from topwork.learn.judging import judge
from topwork.learn.targets import Targets
from topwork.plan import Plan
from topwork.trunk.cache import cache_folder
from topwork.trunk.execution import Execution

Array = np.ndarray
Tries = Callable[[Task, Plan, Division, float], tuple[Array, float]]


def with_shuffled_labels(images: ImageSet) -> ImageSet:
    """Return images whose features say nothing of their labels, so that trials can better them."""
    generator = np.random.default_rng(7)
    labels = generator.permutation([item.labels for item in images.items])
    items = [
        replace(item, labels=tuple(own)) for item, own in zip(images.items, labels, strict=True)
    ]
    return replace(images, items=tuple(items))


@pytest.fixture(scope="module")
def measured(pictures: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPWORK_CACHE", str(tmp_path_factory.mktemp("cache")))
        (found,) = backbones_of(str(backbone), None)
        images = with_shuffled_labels(open_images(pictures))
        audited = audit(images)
        execution = Execution(torch.device("cpu"))
        base = base_plan(found, None, None, None)
        return measure(images, audited, found, base, execution, 0, untracked)


def raced(
    measured: Measured, tries: Tries, monkeypatch, budget: float = 1e9, only: Sequence[str] = ()
) -> Race:
    monkeypatch.setattr(race_module, "try_plan", tries)
    found = candidates(measured.profile, measured.base, only)
    return race(
        measured.task, measured.profile, found, time_budget=budget, started=time.perf_counter()
    )


def scores_with(measured: Measured, rows: Array, right: float, sure: float = 5.0) -> Array:
    """Return scores that are right on a share of some rows."""
    labels = measured.task.targets.values[rows]
    said = np.where(np.random.default_rng(1).random(len(rows)) < right, labels, (labels + 1) % 3)
    return np.float32(sure * np.eye(3)[said])


def test_candidates_are_legal_plans_the_cheapest_first(measured):
    found = candidates(measured.profile, measured.base)
    chain = measured.profile.loaded.chain
    costs = [candidate.cost for candidate in found]
    assert costs == sorted(costs)
    assert len({candidate.name for candidate in found}) == len(found)
    for candidate in found:
        settled = candidate.plan.settle(chain)
        assert candidate.name in known.NAMES
        assert Plan.from_dict(settled.to_dict()) == settled
        assert candidate.plan.backbone == measured.base.backbone
    names = {candidate.name for candidate in found}
    assert (known.BEST in names) == (measured.profile.best is not measured.profile.top)


def test_the_fewer_layers_are_frozen_the_dearer(measured):
    found = {c.name: c for c in candidates(measured.profile, measured.base)}
    order = (known.TOP, known.TWO_THIRDS, known.ALL, known.SCRATCH)
    costs = [found[name].cost for name in order]
    assert costs == sorted(costs)
    assert found[known.SCRATCH].hopeless
    assert not found[known.ALL].hopeless


def test_a_candidate_that_nobody_knows_is_refused_with_the_nearest(measured):
    with pytest.raises(UsageError, match="did you mean 'fine-tune all'"):
        candidates(measured.profile, measured.base, ["fine-tune al"])


def test_who_is_clearly_better_wins(measured, monkeypatch):
    def tries(task, plan, division, share):
        tuned_all = plan.phases[-1].frozen == "input" and plan.reused is None
        return scores_with(measured, division.judged, 0.99 if tuned_all else 0.34), 1.0

    found = raced(measured, tries, monkeypatch)
    best = winner(found)
    assert best is not None
    assert best.candidate.name == known.ALL
    dropped = [s for s in found.standings.values() if s.state == "dropped"]
    assert dropped
    assert all("standard errors behind" in s.reason for s in dropped)


def test_of_equals_the_cheapest_wins(measured, monkeypatch):
    def tries(task, plan, division, share):
        return scores_with(measured, division.judged, 0.5), 1.0

    only = (known.TWO_THIRDS, known.ALL)
    found = raced(measured, tries, monkeypatch, only=only)
    best = winner(found)
    assert best is not None
    assert best.candidate.name == known.TWO_THIRDS


def test_labels_that_no_row_told_about_decide_nothing(monkeypatch):
    """The same head as the champion's, as a fit ships it: it must be neither ahead nor behind."""
    generator = np.random.default_rng(0)
    codes = generator.normal(size=(400, 8)).astype(np.float32)
    values = (codes[:, :5] + generator.normal(size=(400, 5)) > 0.8).astype(np.float32)
    values[:, 3:] = [0, 1]  # for whom nothing is to be learned
    learned, judged = np.arange(300), np.arange(300, 400)
    values[judged[:5], 3] = 1
    values[judged[:5], 4] = 0
    targets = Targets("labels", values, tuple("abcde"))
    candidate = Candidate("same", Plan("any", kept="x", head="sigmoid"), "", "", 1.0)
    champion, standing = (standing_of(candidate, 400) for _ in range(2))
    champion.strength = 0.01
    task = SimpleNamespace(targets=targets, groups=np.arange(400).astype(str), seed=0)
    profile = SimpleNamespace(codes=SimpleNamespace(at=lambda name: codes, seconds_an_image=1.0))
    going = Race(task, profile, [], 1e9, 0.0, {})
    head = fit_head(codes[learned], values[learned], 5, kind="sigmoid", strength=0.01)
    shipped = replace(head, temperature=2.0).folded().scores(codes[judged])
    monkeypatch.setattr(race_module, "try_plan", lambda *given: (shipped, 1.0))
    division = Division(learned, judged)
    race_module.run_trial(going, standing, division, 1.0)
    losses, _ = race_module.learned_anew(going, champion, division)
    np.testing.assert_allclose(standing.losses[judged], losses[judged], rtol=0.01)


@pytest.mark.parametrize(("kind", "head"), [("classes", "softmax"), ("labels", "sigmoid")])
def test_to_call_everything_common_leaves_something_to_gain(kind, head):
    codes = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)  # that know nothing
    rare = np.arange(1000) % 100 < 1
    values = rare.astype(int) if kind == "classes" else np.stack([rare, ~rare], 1).astype("float32")
    found = judge(codes, values, 2, kind=head)
    standing = SimpleNamespace(right=found.right)
    assert found.right.mean() > 0.98
    assert not race_module.nothing_left(standing, Targets(kind, values, ("a", "b")))
    knowing = np.column_stack([rare, codes]).astype(np.float32)
    standing = SimpleNamespace(right=judge(knowing, values, 2, kind=head).right)
    assert race_module.nothing_left(standing, Targets(kind, values, ("a", "b")))


def test_at_least_half_of_the_field_drops_out_at_each_rung(measured, monkeypatch):
    fields: dict[float, list[str]] = {}

    def tries(task, plan, division, share):
        fields.setdefault(share, []).append(str(plan.phases[-1].frozen))
        return scores_with(measured, division.judged, 0.5, sure=1 + len(fields[share]) / 10), 1.0

    raced(measured, tries, monkeypatch)
    counts = [len(fields[share]) for share, _ in race_module.RUNGS if share in fields]
    assert counts[0] > 2
    for before, after in pairwise(counts):
        assert after <= (before + 1) // 2


def test_every_row_is_judged_by_trials_that_did_not_see_it(measured, monkeypatch):
    def tries(task, plan, division, share):
        assert not set(division.learned) & set(division.judged)
        assert sorted([*division.learned, *division.judged]) == list(range(48))
        return scores_with(measured, division.judged, 0.5), 1.0

    raced(measured, tries, monkeypatch)


def test_without_time_nothing_is_tried_and_the_features_are_recommended(measured, monkeypatch):
    def tries(task, plan, division, share):
        raise AssertionError("no time is left")

    found = raced(measured, tries, monkeypatch, budget=0.0)
    best = winner(found)
    assert best is not None
    assert not best.candidate.tried
    waiting = [s for s in found.standings.values() if s.candidate.tried]
    assert all(s.state == "not tried" for s in waiting)
    assert any("--time-budget" in s.reason for s in waiting)


def test_a_short_budget_tries_the_cheap_ones_on_fewer_images(measured, monkeypatch):
    seen = []

    def tries(task, plan, division, share):
        seen.append(len(division.learned))
        return scores_with(measured, division.judged, 0.5), 1.0

    codes = replace(measured.profile.codes, seconds_an_image=0.5)
    slow = replace(measured, profile=replace(measured.profile, codes=codes))
    found = raced(slow, tries, monkeypatch, budget=120.0)
    states = {name: s.state for name, s in found.standings.items()}
    assert states[known.ALL] == "not tried"
    assert seen


def test_the_cheapest_within_a_standard_error_of_the_best_is_taken():
    generator = np.random.default_rng(0)
    base = generator.gamma(1.0, 1.0, 200)

    def standing(name: str, cost: float, losses: Array) -> Standing:
        found = standing_of(Candidate(name, Plan("any"), "", "", cost), 200)
        found.losses = losses
        return found

    noise = generator.normal(0, 0.5, 200)
    noise -= noise.mean()
    dear = standing("dear", 9, base)
    near = standing("near", 2, base + noise + 0.5 * 0.5 / np.sqrt(200))  # half a standard error
    far = standing("far", 1, base + noise + 3.0 * 0.5 / np.sqrt(200))
    groups = np.arange(200)
    assert cheapest_of_the_best([dear, near, far], groups) is near


def test_of_few_groups_other_rounds_say_little():
    """Judged by other rows: each by what it gains over the champion, 2 groups each."""
    generator, groups = np.random.default_rng(0), np.repeat(np.arange(4), 10)
    first, second = (
        standing_of(Candidate(name, Plan("any"), "", "", 1.0), 40) for name in ("first", "second")
    )
    for standing, rows, gain in ((first, slice(0, 20), 0.1), (second, slice(20, 40), 0.5)):
        standing.champion_losses[rows] = 1.0
        standing.losses[rows] = 1.0 - gain + generator.normal(0, 0.2, 20)
    by_rows = errors_behind(first, second, np.arange(40))
    assert 1.0 < errors_behind(first, second, groups) < 2.0 < by_rows
    assert errors_behind(first, second, groups) == -errors_behind(second, first, groups)
    assert errors_behind(first, second, np.zeros(40)) == 0.0


@pytest.mark.parametrize(("errors", "taken"), [(1.5, "features"), (2.5, "trained")])
def test_who_raced_must_be_clearly_ahead_of_the_features(errors, taken):
    """Of several that are no better, the best looks better by chance."""
    generator, groups = np.random.default_rng(0), np.arange(200)
    noise = generator.normal(0, 1, 200)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    features, trained = (
        standing_of(Candidate(name, Plan("any"), "", "", cost), 200)
        for name, cost in (("features", 1), ("trained", 9))
    )
    base = generator.gamma(1.0, 1.0, 200)
    trained.champion_losses, trained.losses = base, base + noise - errors / np.sqrt(200)
    going = Race(SimpleNamespace(groups=groups), None, [], 1.0, 0.0, {}, features, [trained])
    best = winner(going)
    assert best is not None
    assert best.candidate.name == taken


def test_a_trial_that_fails_drops_out_and_the_others_go_on(measured, monkeypatch):
    def tries(task, plan, division, share):
        if plan.phases[-1].frozen == "input":
            raise DataError("1 groups cannot be divided into folds; two are needed at the least")
        return scores_with(measured, division.judged, 0.5), 1.0

    found = raced(measured, tries, monkeypatch)
    failed = found.standings[known.ALL]
    assert failed.state == "dropped"
    assert "cannot be tried here: 1 groups" in failed.reason
    assert failed not in found.survivors
    assert found.standings[known.TWO_THIRDS].state != "not tried"
    assert winner(found) is not None


def test_who_is_ahead_is_not_lost_for_want_of_time(measured, monkeypatch):
    """All is too dear for a second round, a third is not; all was far ahead in the first."""
    budget = iter([1e9, 1e9, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0])
    monkeypatch.setattr(Race, "left", property(lambda race: next(budget, 0.0)))
    codes = replace(measured.profile.codes, seconds_an_image=0.02)
    slow = replace(measured, profile=replace(measured.profile, codes=codes))

    def tries(task, plan, division, share):
        tuned_all = plan.phases[-1].frozen == "input" and plan.reused is None
        return scores_with(measured, division.judged, 0.99 if tuned_all else 0.8), 1.0

    found = raced(slow, tries, monkeypatch, only=(known.TOP, known.TWO_THIRDS, known.ALL))
    best = winner(found)
    assert best is not None
    assert best.candidate.name == known.ALL


def test_no_trial_is_begun_after_the_budget(measured, monkeypatch):
    begun = []

    def tries(task, plan, division, share):
        begun.append(share)
        time.sleep(0.2)
        return scores_with(measured, division.judged, 0.5), 0.0

    codes = replace(measured.profile.codes, seconds_an_image=1e-9)  # far too little
    fast = replace(measured, profile=replace(measured.profile, codes=codes))
    monkeypatch.setattr(race_module, "OVERHEAD", 1e-3)
    found = raced(fast, tries, monkeypatch, budget=0.3)
    assert len(begun) <= 2
    late = [s for s in found.standings.values() if "--time-budget" in s.reason]
    assert late


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_few_groups_end_in_advice_all_the_same(groups, measured):
    own = np.arange(48) % groups
    task = replace(measured.task, groups=own)
    profile = make_profile(measured.profile.loaded, task.targets, own, measured.profile.codes)
    found = race(task, profile, candidates(profile, measured.base, [known.TOP, known.VIEWS]))
    assert winner(found) is not None
    assert all(standing.reason for standing in found.standings.values())


def test_a_trial_is_remembered_and_a_damaged_record_is_not_believed(measured, monkeypatch, caplog):
    task, plan = (
        measured.task,
        candidates(measured.profile, measured.base, [known.TWO_THIRDS])[0].plan,
    )
    rows = np.arange(48)
    division = Division(rows[rows % 4 != 0], rows[rows % 4 == 0])
    first, _ = try_plan(task, plan, division, 0.1)
    assert first.shape == (12, 3)
    real = trials.fit_plan

    def refuse(*arguments):
        raise AssertionError("tried again")

    monkeypatch.setattr(trials, "fit_plan", refuse)
    again, _ = try_plan(task, plan, division, 0.1)
    assert again.tobytes() == first.tobytes()
    for changed in (replace(task, seed=1), replace(task, weights="other")):
        with pytest.raises(AssertionError, match="tried again"):
            try_plan(changed, plan, division, 0.1)
    (file,) = (cache_folder() / "trials").rglob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))
    monkeypatch.setattr(trials, "fit_plan", real)
    third, _ = try_plan(task, plan, division, 0.1)
    assert "damaged" in caplog.text
    assert third.tobytes() == first.tobytes()


def test_a_trial_trains_to_its_last_epoch(measured):
    plan = candidates(measured.profile, measured.base, [known.ALL])[0].plan
    short = in_short(plan, 0.25)
    assert [phase.epochs for phase in short.phases] == [0, 5]
    assert not any(phase.chooses for phase in short.phases)


def test_the_textbook_has_an_answer_for_every_corner_and_knows_when_it_has_none():
    for (size, likeness), says in SAYS.items():
        found = textbook(size, likeness, says[0])
        assert found.agrees
        assert found.says == says
        assert set(says) <= set(known.NAMES)
    assert textbook("small", "similar", known.SCRATCH).agrees is False
    both = textbook("cannot tell", "similar", known.ALL)
    assert both.agrees
    assert set(both.says) == {*SAYS["small", "similar"], *SAYS["large", "similar"]}
