"""Trying candidates, the cheapest first, within a time budget: successive halving.

Candidates that need no trial are judged by the codes of the profile, out of fold. The best of them
is the champion. The others race against it: each learns from some folds and is judged by the rest,
in few epochs at first. Who is clearly behind drops out, at the least half of them; the others go on
with more epochs and other folds (Jamieson & Talwalkar 2016). In each round the champion learns
anew, from the same images as the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from topwork.advice.candidates import ONE_PASS, Candidate
from topwork.advice.comparison import ONE_STANDARD_ERROR, standard_errors_above
from topwork.advice.profile import Profile
from topwork.advice.shape import of_one_answer
from topwork.advice.standing import (
    Standing,
    cheapest_of_the_best,
    errors_ahead,
    errors_behind,
    least_loss,
    mean_of,
    noted,
    standing_of,
)
from topwork.advice.trials import Division, Task, try_plan
from topwork.data.loading import Track, untracked
from topwork.errors import TopworkError
from topwork.learn.folds import stratified_folds
from topwork.learn.heads import NEVER, learnable
from topwork.learn.judging import (
    folds_of,
    judge,
    judge_divisions,
    losses_of_rows,
    right_of_rows,
)
from topwork.learn.targets import Targets
from topwork.learn.temperature import as_two_classes, fit_temperature

Array = np.ndarray

RUNGS = ((0.25, (0, 1)), (0.5, (2, 3)), (1.0, (4, 0)))
"""The share of the epochs, and the folds that judge."""

FAR_BEHIND = 2.0
"""Standard errors of the paired loss by which a candidate must lie behind to drop out at once."""

CLEARLY = 2.0
"""Likewise, by which one must be ahead of the champion to be taken in its place, and by which the
leader is so far ahead that more trials would change nothing. Of four that are just as good as the
champion, the best looks one standard error better by chance."""

SHARE = 0.25
"""Of the time that fitting all candidates once would take, trying them may take this by default."""

LEAST_BUDGET, MOST_BUDGET = 5.0, 120.0  # seconds, by default
NOTHING_LEFT = 0.02  # share of the images that is wrong, below which no trial is worth its time
LEFT_OF_ONE_ANSWER = 0.04
"""Share of what one answer to all images gets wrong; where one class is nearly all of them, to be
wrong about few images is no merit. Of two equal classes both bounds are the same."""
OVERHEAD = 1.0  # seconds of a trial, whatever it trains
FIRST_RUNG = 0.7  # of what is left of the budget, so that something is left for the others
MOST_JUDGED = 2000  # rows that judge a trial, about
FEWEST_JUDGED = 16  # below this a standard error says nothing
FEWEST_STEPS = 80  # of the optimizer: in fewer a network in training only becomes worse
FEWEST_LEARNED = 256  # rows that a trial is cut down to, at the least; more classes need more
FEWEST_OF_A_CLASS = 5
TENTHS = 10


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
        champion: the best of the candidates that are judged by the profile's codes.
        survivors: who raced and did not drop out.
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
    survivors: list[Standing] = field(default_factory=list)
    expected: float = 0.0
    taken: float = 0.0

    @property
    def n(self) -> int:
        """The rows of the task."""
        return len(self.task.targets.values)

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
    started: float | None = None,
    track: Track = untracked,
) -> Race:
    """Compare candidates as far as a time budget allows.

    Args:
        task: what is to be learned.
        profile: of the same images.
        candidates: the cheapest first.
        time_budget: seconds since ``started`` after which no trial is begun; by default, and from
            now, a quarter of what fitting all of the candidates once is expected to take, 5 s at
            the least and two minutes at the most.
        started: when all this began, by `time.perf_counter`; by default now.
        track: shows progress.
    """
    now = time.perf_counter()
    standings = {
        candidate.name: standing_of(candidate, len(task.targets.values)) for candidate in candidates
    }
    folds = folds_of(
        task.targets.values, task.targets.outputs, profile.top.head, task.groups, None, task.seed
    )[1]
    since = now if started is None or time_budget is None else started
    going = Race(task, profile, folds, 0.0, since, standings)
    for standing in standings.values():
        standing.seconds_to_fit = going.seconds(standing.candidate.cost, going.n) + OVERHEAD
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
        standing.losses = noted(race.n, judged.rows, judged.losses)
        standing.right = noted(race.n, judged.rows, judged.right)
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
            standing.reason = "there are too few images to learn from some and judge by others"
            going.append(standing)
    if nothing_left(race.champion, race.task.targets):
        for standing in going:
            standing.reason = "the frozen features leave too little that a trial could gain"
        return
    for number, (share, folds) in enumerate(RUNGS):
        division, runners = affordable(race, going, share, folds, first=number == 0)
        if division is None:
            break
        waiting = [s for s in race.survivors if s not in runners]
        ran = run_rung(race, runners, division, share, track)
        race.survivors = [*waiting, *survivors_of(race, ran)]
        if decided(race):
            break
        going = [*race.survivors, *worth_a_try_now(race)]


def nothing_left(champion: Standing | None, targets: Targets) -> bool:
    """Say whether the frozen features are right about nearly all images, and not by one answer."""
    by_one_answer = of_one_answer(targets)[1]
    if champion is None or by_one_answer is None:
        return False
    most = min(NOTHING_LEFT, LEFT_OF_ONE_ANSWER * (1 - by_one_answer.mean()))
    return 1 - mean_of(champion.right) < most


def run_rung(
    race: Race, runners: Sequence[Standing], division: Division, share: float, track: Track
) -> list[Standing]:
    """Try candidates on a division, and the champion again; return those that were tried."""
    champion = None
    if race.champion:
        try:
            champion = learned_anew(race, race.champion, division)
        except TopworkError as error:
            for standing in runners:
                standing.reason = f"nothing to compare it with: {error}"
            return []
    ran = []
    for standing in track(runners, f"trying candidates, {share:.0%} of the epochs"):
        if race.left <= 0:
            leave_out(race, standing, share, len(division.learned))
            continue
        try:
            run_trial(race, standing, division, share)
        except TopworkError as error:
            standing.state, standing.reason = "dropped", f"cannot be tried here: {error}"
            continue
        if champion:
            standing.champion_losses, standing.champion_right = champion
        ran.append(standing)
    return ran


def affordable(
    race: Race, going: Sequence[Standing], share: float, folds: Sequence[int], *, first: bool
) -> tuple[Division | None, list[Standing]]:
    """Return the division of a rung and who takes part: all, if fewer images make it affordable.

    The most expensive stay away, until those left can learn from a few rows of each class.
    """
    judging = sorted({fold % len(race.folds) for fold in folds})
    judging = judging[: max(1, len(race.folds) - 1)]  # of two folds one must be left to learn from
    judged = np.sort(np.concatenate([race.folds[fold] for fold in judging]))
    learned = np.delete(np.arange(race.n), judged)
    outputs = max(2, race.task.targets.outputs)
    least = min(len(learned), max(FEWEST_LEARNED, FEWEST_OF_A_CLASS * outputs))
    allowed = race.left * (FIRST_RUNG if first else 1.0)
    runners = sorted(going, key=lambda standing: standing.candidate.cost)
    while runners and len(learned) and len(judged) >= FEWEST_JUDGED:
        for tenths in range(TENTHS, 0, -1):
            count = tenths * len(learned) // TENTHS
            wanted = sum(race.seconds_of_trial(s.candidate, share, count) for s in runners)
            if count >= least and wanted <= allowed:
                rows = some_of(race, learned, tenths / TENTHS)
                return Division(rows, some_of(race, judged, MOST_JUDGED / len(judged))), runners
        leave_out(race, runners.pop(), share, least)
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
    """Return about a share of some rows, spread evenly over the classes, groups left whole."""
    if share >= 1:
        return rows
    strata, groups = race.task.targets.strata()[rows], race.task.groups[rows]
    wanted = max(TENTHS, math.ceil(1 / share))
    if len(np.unique(groups)) < wanted:
        return rows
    parts = stratified_folds(strata, groups, wanted, race.task.seed)
    count = max(1, math.floor(share * len(parts)))
    return np.sort(rows[np.concatenate(parts[:count])])


def run_trial(race: Race, standing: Standing, division: Division, share: float) -> None:
    """Try a candidate on a division and note how it did."""
    candidate, targets = standing.candidate, race.task.targets
    share = share_of_epochs(candidate, share, len(division.learned))
    expected = race.seconds(trial_cost(candidate, share), len(division.learned))
    scores, seconds = try_plan(race.task, candidate.plan, division, share)
    wanted, kind = targets.values[division.judged], candidate.plan.head
    scores = without_unlearned(kind, scores, targets.values[division.learned])
    losses = losses_of_rows(kind, scores, wanted, temperature_of(kind, scores, wanted))
    standing.losses = noted(race.n, division.judged, losses)
    standing.right = noted(race.n, division.judged, right_of_rows(kind, scores, wanted))
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


def without_unlearned(kind: str, scores: Array, learned: Array) -> Array:
    """Return scores in which outputs that no row told about are marked, as a probe marks them.

    Else a trial would be compared by cells that have no part in the loss of the champion.

    Args:
        kind: of head.
        scores: [n, outputs] of a trial.
        learned: the targets that it learned from.

    >>> without_unlearned("softmax", np.zeros((1, 3)), np.array([0, 2])).tolist()
    [[0.0, -10000.0, 0.0]]
    """
    outputs = scores.shape[1]
    marked = scores.copy()
    marked[:, np.setdiff1d(np.arange(outputs), learnable(learned, outputs, kind))] = NEVER
    if kind == "sigmoid":
        marked[:, learned.min(axis=0) > 0] = -NEVER
    return marked


def learned_anew(race: Race, champion: Standing, division: Division) -> tuple[Array, Array]:
    """Return losses and right [n] of the champion after it learned from a division's rows."""
    candidate, targets = champion.candidate, race.task.targets
    judged = judge_divisions(
        codes_of(race.profile, candidate),
        targets.values,
        targets.outputs,
        [(division.learned, division.judged)],
        kind=candidate.plan.head,
        path=[champion.strength],
        seed=race.task.seed,
    )
    return (
        noted(race.n, judged.rows, judged.losses),
        noted(race.n, judged.rows, judged.right),
    )


def survivors_of(race: Race, ran: Sequence[Standing]) -> list[Standing]:
    """Drop who is clearly behind, and at the least half of those that ran; return the others."""
    if not ran:
        return []
    groups, leader = race.task.groups, least_loss(ran)
    ahead, name = leader.losses, leader.candidate.name
    if race.champion and mean_of(leader.gains()) < 0:
        ahead, name = leader.champion_losses, race.champion.candidate.name
    behind = {s.candidate.name: standard_errors_above(s.losses, ahead, groups) for s in ran}
    kept = sorted(ran, key=lambda standing: behind[standing.candidate.name])
    kept = kept[: max(1, math.ceil(len(kept) / 2))]
    kept = [standing for standing in kept if behind[standing.candidate.name] <= FAR_BEHIND]
    for standing in ran:
        if standing not in kept:
            standing.state = "dropped"
            errors = behind[standing.candidate.name]
            standing.reason += f"; dropped, {errors:.1f} standard errors behind {name}"
    return kept


def worth_a_try_now(race: Race) -> list[Standing]:
    """Return those that there was no time for, if training has turned out to help."""
    tuned = [standing for standing in race.survivors if standing.candidate.tunes]
    if not any(mean_of(standing.gains()) > 0 for standing in tuned):
        return []
    return [
        standing
        for standing in race.standings.values()
        if standing.candidate.tunes
        and standing.state == "not tried"
        and not standing.candidate.hopeless
    ]


def decided(race: Race) -> bool:
    """Say whether more trials would change nothing: one is left, and clearly ahead."""
    if not race.champion or len(race.survivors) != 1:
        return not race.survivors
    return errors_ahead(race.survivors[0], race.task.groups) > CLEARLY


def winner(race: Race) -> Standing | None:
    """Return who is recommended; None if nobody was judged.

    The champion, unless candidates that raced are clearly ahead of it (`CLEARLY`): then the
    cheapest of these that cannot be told apart from the one that is furthest ahead.
    """
    groups, champion = race.task.groups, race.champion
    if champion is None:
        return cheapest_of_the_best(race.survivors, groups) if race.survivors else None
    ahead = [s for s in race.survivors if errors_ahead(s, groups) > CLEARLY]
    if not ahead:
        return champion
    best = max(ahead, key=lambda standing: mean_of(standing.gains()))
    equal = [s for s in ahead if errors_behind(s, best, groups) <= ONE_STANDARD_ERROR]
    return min(equal, key=lambda standing: standing.candidate.cost)


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
