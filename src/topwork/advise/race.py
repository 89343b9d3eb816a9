"""Trying candidates, the cheapest first, within a time budget: successive halving.

Candidates that need no trial are judged by the codes of the profile, out of fold. The best of them
is the champion. The others race against it: each learns from some folds and is judged by the rest,
in few epochs at first. Who is clearly behind drops out, at the least half of them; the others go on
with more epochs and other folds (Jamieson & Talwalkar 2016).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from topwork.advise.candidates import ONE_PASS, Candidate
from topwork.advise.comparison import ONE_STANDARD_ERROR, standard_errors_above
from topwork.advise.profile import Profile
from topwork.advise.trials import Division, Task, try_plan
from topwork.data.loading import Track, untracked
from topwork.learn.folds import stratified_folds
from topwork.learn.judging import (
    folds_of,
    judge,
    judge_divisions,
    losses_of_rows,
    right_of_rows,
)
from topwork.learn.temperature import as_two_classes, fit_temperature

Array = np.ndarray

log = logging.getLogger("topwork")

RUNGS = ((0.25, (0, 1)), (0.5, (2, 3)), (1.0, (4, 0)))
"""The share of the epochs, and the folds that judge."""

FAR_BEHIND = 2.0
"""Standard errors of the paired loss by which a candidate must lie behind to drop out at once."""

CLEARLY = 2.0
"""Likewise, for the leader to be so far ahead that more trials would change nothing."""

SHARE = 0.25
"""Of the time that fitting all candidates once would take, trying them may take this by default."""

LEAST_BUDGET, MOST_BUDGET = 10.0, 120.0  # seconds, by default
OVERHEAD = 1.0  # seconds of a trial, whatever it trains
FIRST_RUNG = 0.7  # of what is left of the budget, so that something is left for the others
MOST_JUDGED = 2000  # rows that judge a trial
FEWEST_STEPS = 80  # of the optimizer: in fewer a network in training only becomes worse
FEWEST_LEARNED = 256  # rows that a trial is cut down to, at the least; more classes need more
FEWEST_OF_A_CLASS = 5
TENTHS = 10


@dataclass(eq=False)
class Standing:
    """What is known of a candidate.

    Attributes:
        candidate: who.
        losses: [n] of each row at the candidate's temperature; NaN where it was not judged. Of
            candidates that race, in the race.
        right: [n] how right each row is; NaN likewise; all NaN for numbers.
        state: "not tried", "dropped" or "compared".
        reason: why it is in that state.
        seconds: that it took so far.
        seconds_to_fit: that fitting it to all images is expected to take.
        strength: of the head's penalty, where it is judged by the profile's codes.
    """

    candidate: Candidate
    losses: Array
    right: Array
    state: str = "not tried"
    reason: str = ""
    seconds: float = 0.0
    seconds_to_fit: float = 0.0
    strength: float = 0.0

    def note(self, rows: Array, losses: Array, right: Array | None) -> None:
        """Note how it did on some rows; what was known of them before is replaced."""
        self.losses[rows] = losses
        if right is not None:
            self.right[rows] = right


@dataclass(eq=False)
class Race:
    """A comparison under way.

    Attributes:
        task: what is to be learned.
        profile: of its images.
        folds: the profile's, each as row numbers.
        budget: seconds from ``started``.
        started: when, by `time.perf_counter`.
        standings: by name of the candidate.
        champion: of the candidates that are judged by the profile's codes.
        raced: how the champion did on the rows of the race, having learned from the same rows.
        expected: seconds that trials were expected to take, to correct further ones by.
        taken: seconds that they took.
    """

    task: Task
    profile: Profile
    folds: list[Array]
    budget: float
    started: float
    standings: dict[str, Standing]
    champion: Standing | None = None
    raced: Standing | None = None
    expected: float = 0.0
    taken: float = 0.0
    survivors: list[Standing] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.budget - (time.perf_counter() - self.started)

    def seconds(self, cost: float, images: int) -> float:
        """Return how long something is expected to take that costs so many inferences an image."""
        return cost * images * self.profile.codes.seconds_an_image

    def seconds_of_trial(self, candidate: Candidate, share: float, images: int) -> float:
        """Return how long a trial of a candidate is expected to take, with what was seen so far."""
        correction = self.taken / self.expected if self.expected and candidate.tunes else 1.0
        part = share_of_epochs(candidate, share, images)
        return OVERHEAD + correction * self.seconds(trial_cost(candidate, part), images)


def race(
    task: Task,
    profile: Profile,
    candidates: Sequence[Candidate],
    *,
    time_budget: float | None = None,
    started: float,
    track: Track = untracked,
) -> Race:
    """Compare candidates as far as a time budget allows.

    Args:
        task: what is to be learned.
        profile: of the same images.
        candidates: the cheapest first.
        time_budget: seconds since ``started`` after which no trial is begun; by default a quarter
            of what fitting all of the candidates once is expected to take, 10 s at the least and
            two minutes at the most.
        started: when all this began, by `time.perf_counter`.
        track: shows progress.
    """
    n = len(task.targets.values)
    standings = {
        candidate.name: Standing(candidate, np.full(n, np.nan), np.full(n, np.nan))
        for candidate in candidates
    }
    found = folds_of(
        task.targets.values, task.targets.outputs, profile.top.head, task.groups, None, task.seed
    )
    going = Race(task, profile, found[1], 0.0, started, standings)
    for standing in standings.values():
        standing.seconds_to_fit = going.seconds(standing.candidate.cost, n) + OVERHEAD
    fitting_all = sum(s.seconds_to_fit for s in standings.values() if not s.candidate.hopeless)
    by_default = min(MOST_BUDGET, max(LEAST_BUDGET, SHARE * fitting_all))
    going.budget = by_default if time_budget is None else time_budget
    judge_features(going)
    run_rungs(going, track)
    return going


def judge_features(race: Race) -> None:
    """Judge what needs no trial, on all folds, and find the champion among it."""
    for standing in race.standings.values():
        candidate = standing.candidate
        if candidate.tried:
            continue
        start = time.perf_counter()
        names, head = codes_named(candidate), candidate.plan.head
        targets, groups = race.task.targets, race.task.groups
        if len(names) == 1:
            judged = race.profile.at(names[0]).judged[head]
        else:
            judged = judge(
                codes_of(race.profile, candidate),
                targets.values,
                targets.outputs,
                kind=head,
                groups=groups,
                seed=race.task.seed,
            )
        standing.note(judged.rows, judged.losses, judged.right)
        standing.strength = judged.best.strength
        standing.state, standing.reason = "compared", "judged out of fold by cached codes"
        standing.seconds = time.perf_counter() - start
    known = [standing for standing in race.standings.values() if standing.state == "compared"]
    if known:
        race.champion = cheapest_of_the_best(known, race.task.groups)


def run_rungs(race: Race, track: Track) -> None:
    """Race the candidates that need trials against the champion."""
    going = []
    for standing in race.standings.values():
        if standing.candidate.hopeless:
            standing.reason = standing.candidate.hopeless
        elif standing.candidate.tried:
            going.append(standing)
    n = len(race.task.targets.values)
    if race.champion:
        race.raced = replace(race.champion, losses=np.full(n, np.nan), right=np.full(n, np.nan))
    for number, (share, folds) in enumerate(RUNGS):
        division, going = affordable(race, going, share, folds, first=number == 0)
        if division is None:
            break
        for standing in track(going, f"trying candidates, {share:.0%} of the epochs"):
            run_trial(race, standing, division, share)
        if race.raced:
            rerun(race, race.raced, division)
        race.survivors = survivors_of(race, going)
        if decided(race, race.survivors):
            break
        going = [*race.survivors, *worth_a_try_now(race)]


def affordable(
    race: Race, going: list[Standing], share: float, folds: Sequence[int], *, first: bool
) -> tuple[Division | None, list[Standing]]:
    """Return the division of a rung and who takes part: all, if fewer images make it affordable.

    The most expensive stay away, until those left can learn from a few rows of each class.
    """
    judged = np.sort(np.concatenate([race.folds[fold % len(race.folds)] for fold in set(folds)]))
    learned = np.delete(np.arange(len(race.task.targets.values)), judged)
    if not len(learned):  # a single fold, say
        return None, going
    outputs = max(2, race.task.targets.outputs)
    least = min(len(learned), max(FEWEST_LEARNED, FEWEST_OF_A_CLASS * outputs))
    allowed = race.left * (FIRST_RUNG if first else 1.0)
    going = sorted(going, key=lambda standing: standing.candidate.cost)
    while going:
        for tenths in range(TENTHS, 0, -1):
            count = tenths * len(learned) // TENTHS
            wanted = sum(race.seconds_of_trial(s.candidate, share, count) for s in going)
            if count >= least and wanted <= allowed:
                rows = some_of(race, learned, tenths / TENTHS)
                return Division(rows, some_of(race, judged, MOST_JUDGED / len(judged))), going
        leave_out(race, going.pop(), share, least)
    return None, []


def leave_out(race: Race, standing: Standing, share: float, images: int) -> None:
    """Note that there is no time for a candidate."""
    needed = race.seconds_of_trial(standing.candidate, share, images)
    if standing.state == "not tried":
        standing.reason = (
            f"a trial would take about {needed:.0f} s of the {max(0.0, race.left):.0f} s left;"
            " give a larger --time-budget"
        )
    else:
        standing.reason += "; no time was left for more epochs"


def some_of(race: Race, rows: Array, share: float) -> Array:
    """Return a share of some rows, in whole tenths, spread evenly over the classes."""
    if share >= 1:
        return rows
    strata, groups = race.task.targets.strata()[rows], race.task.groups[rows]
    parts = stratified_folds(strata, groups, TENTHS, race.task.seed)
    count = max(1, math.floor(share * len(parts)))
    return np.sort(rows[np.concatenate(parts[:count])])


def run_trial(race: Race, standing: Standing, division: Division, share: float) -> None:
    """Try a candidate on a division and note how it did."""
    candidate, targets = standing.candidate, race.task.targets
    share = share_of_epochs(candidate, share, len(division.learned))
    expected = race.seconds(trial_cost(candidate, share), len(division.learned))
    scores, seconds = try_plan(race.task, candidate.plan, division, share)
    wanted, kind = targets.values[division.judged], candidate.plan.head
    temperature = temperature_of(kind, scores, wanted)
    standing.note(
        division.judged,
        losses_of_rows(kind, scores, wanted, temperature),
        right_of_rows(kind, scores, wanted),
    )
    standing.seconds += seconds
    if candidate.tunes:  # the others' time is mostly overhead
        race.expected += expected
        race.taken += max(0.0, seconds - OVERHEAD)
    standing.state = "compared"
    epochs = f"{share:.0%} of its epochs" if candidate.tunes else "all of its epochs"
    standing.reason = (
        f"learned from {len(division.learned)} images in {epochs}, judged by"
        f" {len(division.judged)} others"
    )


def rerun(race: Race, raced: Standing, division: Division) -> None:
    """Judge the champion on a rung's rows, having learned from the same rows as the others."""
    candidate, targets = raced.candidate, race.task.targets
    judged = judge_divisions(
        codes_of(race.profile, candidate),
        targets.values,
        targets.outputs,
        [(division.learned, division.judged)],
        kind=candidate.plan.head,
        path=[raced.strength],
        seed=race.task.seed,
    )
    raced.note(judged.rows, judged.losses, judged.right)


def survivors_of(race: Race, going: list[Standing]) -> list[Standing]:
    """Drop who is clearly behind, and at the least half of those that race; return the others."""
    groups = race.task.groups
    everyone = [*going, *([race.raced] if race.raced else [])]
    leader = min(everyone, key=lambda standing: float(np.nanmean(standing.losses)))
    behind = {
        standing.candidate.name: standard_errors_above(standing.losses, leader.losses, groups)
        for standing in going
    }
    kept = sorted(going, key=lambda standing: behind[standing.candidate.name])
    kept = kept[: max(1, math.ceil(len(kept) / 2))]
    kept = [standing for standing in kept if behind[standing.candidate.name] <= FAR_BEHIND]
    for standing in going:
        if standing not in kept:
            standing.state = "dropped"
            standing.reason += (
                f"; dropped, {behind[standing.candidate.name]:.1f} standard errors behind"
                f" {leader.candidate.name}"
            )
    return kept


def worth_a_try_now(race: Race) -> list[Standing]:
    """Return those that there was no time for, if training has turned out to help."""
    tuned = [standing for standing in race.survivors if standing.candidate.tunes]
    groups = race.task.groups
    if not race.raced or all(
        standard_errors_above(standing.losses, race.raced.losses, groups) > 0 for standing in tuned
    ):
        return []
    return [
        standing
        for standing in race.standings.values()
        if standing.candidate.tunes
        and standing.state == "not tried"
        and not standing.candidate.hopeless
    ]


def decided(race: Race, going: list[Standing]) -> bool:
    """Say whether more trials would change nothing: one is left, and clearly ahead."""
    if not race.raced or len(going) != 1:
        return not going
    ahead = standard_errors_above(race.raced.losses, going[0].losses, race.task.groups)
    return ahead > CLEARLY


def finalists(race: Race) -> list[Standing]:
    """Return who may be recommended: the champion and who survived, judged by the same rows."""
    if not race.survivors:
        return [race.champion] if race.champion else []
    return [*([race.raced] if race.raced else []), *race.survivors]


def winner(race: Race) -> Standing | None:
    """Return the cheapest of those that cannot be told apart from the best; None if none is."""
    last = finalists(race)
    if not last:
        return None
    found = cheapest_of_the_best(last, race.task.groups)
    return race.standings[found.candidate.name]


def cheapest_of_the_best(standings: Sequence[Standing], groups: Array) -> Standing:
    """Return the cheapest whose losses lie within a standard error of the least."""
    common = np.all([np.isfinite(standing.losses) for standing in standings], axis=0)
    best = min(standings, key=lambda standing: float(standing.losses[common].mean()))
    return min(
        (
            standing
            for standing in standings
            if standard_errors_above(standing.losses, best.losses, groups) <= ONE_STANDARD_ERROR
        ),
        key=lambda standing: standing.candidate.cost,
    )


def codes_of(profile: Profile, candidate: Candidate) -> Array:
    """Return the codes that a candidate's head reads, float32 [n, columns]."""
    return np.concatenate([profile.codes.at(name) for name in codes_named(candidate)], axis=1)


def codes_named(candidate: Candidate) -> tuple[str, ...]:
    """Return the names of the depths that a candidate's head reads."""
    return candidate.plan.codes or (candidate.plan.kept or "",)


def trial_cost(candidate: Candidate, share: float) -> float:
    """Return what a trial costs an image, in inferences of the whole network."""
    if not candidate.tunes:
        return candidate.cost
    return ONE_PASS + (candidate.cost - ONE_PASS) * share


def share_of_epochs(candidate: Candidate, share: float, images: int) -> float:
    """Return the share of its epochs that a candidate is tried in: more where they are short.

    >>> from topwork.named_plans import named_plan
    >>> tuned = Candidate("any", named_plan("warmup", "any"), "", "", 100.0)
    >>> share_of_epochs(tuned, 0.25, 1000), share_of_epochs(tuned, 0.25, 100)
    (0.25, 0.5714285714285714)
    """
    if not candidate.tunes:
        return 1.0
    phase = next(phase for phase in candidate.plan.phases if phase.epochs)
    steps = phase.epochs * math.ceil(max(1, images) / phase.batch)
    return min(1.0, max(share, FEWEST_STEPS / steps))


def temperature_of(kind: str, scores: Array, targets: Array) -> float:
    """Return the temperature that suits scores best on the rows that judge them."""
    if kind == "regression" or not np.isfinite(scores).all():
        return 1.0
    if kind == "sigmoid":
        return fit_temperature(*as_two_classes(scores, targets))
    return fit_temperature(scores, targets)
