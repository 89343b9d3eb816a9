"""What following the advice costs in accuracy, against having tried everything.

Seven targets, 10 and 40 training images per class, two networks: each candidate is fitted fully
once and scored on test images that no choice looks at. Which candidate was best is found on a
random half of the test images, and both it and the recommended one are scored on the other half:
the difference is the regret, here the mean of 20 halvings. Fixed rules are judged in the same way.
The table goes into docs/regret.md. Fits and advice that are there already are not repeated; with
an empty folder they take one to two hours on two cores.

    OMP_NUM_THREADS=1 python benchmarks/regret.py
    python benchmarks/regret.py --stage table
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kept_rows import Row, rows_of
from places import options, require
from regret_runs import (
    CASES,
    WANTED,
    Case,
    Place,
    name_of,
    right_of,
    run_advice,
    run_fits,
)
from regret_sets import TARGETS
from topwork.advice import candidates as known
from topwork.advice.textbook import SAYS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "regret.md"
BEGIN, END = "<!-- begin: written by benchmarks/regret.py -->", "<!-- end -->"

HALVINGS = 20
DRAWS = 10_000
MOST_REGRET, MOST_TIME, LISTED = 1.0, 0.25, 3.0  # points, share, points
ADVICE = "the advice"
SMALL = 10  # images per class that a reader of the textbook would call little data


@dataclass(frozen=True)
class Outcome:
    """What came of a case.

    Attributes:
        case: which.
        accuracy: on all test images, by candidate.
        chosen: the candidate that each rule takes.
        regret: of each rule, in points of accuracy.
        seconds: of the processor that the advice took.
        seconds_of_all: likewise, fitting every candidate.
        tested: test images.
        advice: all that was said.
    """

    case: Case
    accuracy: Mapping[str, float]
    chosen: Mapping[str, str]
    regret: Mapping[str, float]
    seconds: float
    seconds_of_all: float
    tested: int
    advice: Row


def main() -> int:
    place = Path(tempfile.gettempdir()) / "topwork-regret"
    parser = options(__doc__)
    parser.add_argument("--out", type=Path, default=place, help=f"folder for what is run; {place}")
    parser.add_argument("--stage", choices=("fits", "advice", "table"), help="this one alone")
    parser.add_argument("--seed", type=int, default=0, help="of all; another wants another --out")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page that holds the table")
    args = parser.parse_args()
    where = Place(args.data, args.weights, args.out, args.seed)
    if args.stage != "table":
        require(args.data, args.weights)
        args.out.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        for case in CASES:
            if args.stage in ("fits", None):
                run_fits(where, case)
            if args.stage in ("advice", None):
                run_advice(where, case)
    outcomes = outcomes_in(args.out)
    if not outcomes:
        sys.exit(f"{args.out}: no case is there with fits and advice; run the other stages first")
    lines, passed = report(outcomes)
    print("\n".join(lines))
    write_between(args.page, lines)
    return not passed


def outcomes_in(folder: Path) -> list[Outcome]:
    """Return what came of the cases that were fitted and advised on, in their order."""
    fits: dict[Case, dict[str, Row]] = {}
    for row in rows_of(folder / "fits.jsonl"):
        fits.setdefault(Case(**row["case"]), {})[row["name"]] = row
    advice = {Case(**row["case"]): row for row in rows_of(folder / "advice.jsonl")}
    whole = [
        case for case in CASES if case in advice and is_whole(fits.get(case, {}), advice[case])
    ]
    return [outcome(case, fits[case], advice[case]) for case in whole]


def is_whole(fits: Mapping[str, Row], advised: Row) -> bool:
    """Say whether all that the advice chose from was fitted."""
    return all(candidate["name"] in fits for candidate in advised["advice"]["candidates"])


def outcome(case: Case, fits: Mapping[str, Row], advised: Row) -> Outcome:
    """Judge the advice and the fixed rules by what each candidate does on the test images."""
    compared = {candidate["name"] for candidate in advised["advice"]["candidates"]}
    right = {name: right_of(fits[name]) for name in WANTED if name in compared}
    tested = len(next(iter(right.values())))
    chosen = {ADVICE: advised["advice"]["recommended_name"], **rules(case, right)}
    halves = halvings(tested, HALVINGS)
    return Outcome(
        case,
        {name: float(values.mean()) for name, values in right.items()},
        chosen,
        {rule: regret(right, name, halves) for rule, name in chosen.items()},
        advised["seconds"],
        sum(fits[name]["seconds"] for name in right),
        tested,
        advised["advice"],
    )


def rules(case: Case, names: Mapping[str, object]) -> dict[str, str]:
    """Return what each fixed rule takes; where the best depth is the top, that stands for it."""
    likeness = "similar" if TARGETS[case.target].similar else "different"
    size = "small" if case.per_class <= SMALL else "large"
    found = {
        "always features at the top": known.TOP,
        "always fine-tune all": known.ALL,
        f"the textbook's table, above {SMALL} a class large": SAYS[size, likeness][0],
        "the textbook's table, all of it small": SAYS["small", likeness][0],
    }
    return {rule: name if name in names else known.TOP for rule, name in found.items()}


def halvings(count: int, times: int) -> list[np.ndarray]:
    """Return random halves of so many rows, each as a mask [count]."""
    generator = np.random.default_rng(0)
    half = np.arange(count) < count // 2
    return [generator.permutation(half) for _ in range(times)]


def regret(right: Mapping[str, np.ndarray], chosen: str, halves: Sequence[np.ndarray]) -> float:
    """Return by how many points a choice falls behind the best one, a mean over halvings.

    Args:
        right: [n] 0 or 1 by candidate; of equals the first counts as the best.
        chosen: the candidate that was chosen.
        halves: masks [n] of the rows that tell which one is best; the others score both.
    """
    found = []
    for half in halves:
        best = max(right, key=lambda name: right[name][half].mean())
        found.append(right[best][~half].mean() - right[chosen][~half].mean())
    return 100 * float(np.mean(found))


def interval(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Return the 95 % interval of a mean, groups of values being drawn anew."""
    names = sorted(set(groups))
    own = [values[[group == name for group in groups]] for name in names]
    sums, counts = (np.array(part) for part in zip(*((v.sum(), len(v)) for v in own), strict=True))
    drawn = np.random.default_rng(0).integers(0, len(names), size=(DRAWS, len(names)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def report(outcomes: Sequence[Outcome]) -> tuple[list[str], bool]:
    """Return the lines of the page, and whether all is as wanted."""
    own = np.array([found.regret[ADVICE] for found in outcomes])
    share = sum(o.seconds for o in outcomes) / sum(o.seconds_of_all for o in outcomes)
    others = {
        rule: np.array([found.regret[rule] for found in outcomes]) for rule in outcomes[0].regret
    }
    beaten = all(own.mean() < values.mean() for rule, values in others.items() if rule != ADVICE)
    passed = own.mean() <= MOST_REGRET and share <= MOST_TIME and beaten
    missing = len(CASES) - len(outcomes)
    return [
        f"Mean regret {own.mean():.2f} points over {len(outcomes)} cases (wanted: at most"
        f" {MOST_REGRET:g}), at {share:.0%} of the processor's time that fitting all candidates"
        f" takes (at most {MOST_TIME:.0%}); better than each fixed rule: {yes(beaten)}."
        f" **{'PASS' if passed and not missing else 'FAIL'}**"
        + (f" ({missing} cases are not run yet)" if missing else ""),
        "",
        *table_of_rules(outcomes, others),
        "",
        *table_of_cases(outcomes),
        "",
        *above(outcomes),
    ], passed and not missing


def yes(fact: bool) -> str:
    """Return a fact as a word."""
    return "yes" if fact else "no"


def table_of_rules(outcomes: Sequence[Outcome], regrets: Mapping[str, np.ndarray]) -> list[str]:
    """Return the table of the advice and the fixed rules."""
    lines = [
        "| rule | mean regret | median | largest | worse than the advice by | 95 %, cases drawn"
        " | 95 %, targets drawn |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = [name_of(found.case) for found in outcomes]
    targets = [found.case.target for found in outcomes]
    for rule, values in regrets.items():
        line = f"| {rule} | {values.mean():.2f} | {np.median(values):.2f} | {values.max():.1f} |"
        if rule == ADVICE:
            lines.append(f"{line} | | |")
            continue
        worse = values - regrets[ADVICE]
        ranges = (interval(worse, groups) for groups in (cases, targets))
        ends = " | ".join(f"{low:+.2f} to {high:+.2f}" for low, high in ranges)
        lines.append(f"{line} {worse.mean():+.2f} | {ends} |")
    return lines


def table_of_cases(outcomes: Sequence[Outcome]) -> list[str]:
    """Return the table of all cases; the recommended candidate's accuracy is set in bold."""
    lines = [
        "| target | images per class | network | tested | "
        + " | ".join(WANTED)
        + " | regret | s, advice | s, all | share |",
        "|" + "---|" * (len(WANTED) + 8),
    ]
    for found in outcomes:
        cells = [
            cell(found.accuracy.get(name), bold=name == found.chosen[ADVICE]) for name in WANTED
        ]
        lines.append(
            f"| {found.case.target} | {found.case.per_class} | {found.case.network}"
            f" | {found.tested} | {' | '.join(cells)} | {found.regret[ADVICE]:.1f}"
            f" | {found.seconds:.0f} | {found.seconds_of_all:.0f}"
            f" | {found.seconds / found.seconds_of_all:.0%} |"
        )
    return lines


def cell(accuracy: float | None, *, bold: bool) -> str:
    """Return an accuracy for the table."""
    if accuracy is None:
        return "-"
    text = f"{accuracy:.3f}".removeprefix("0")
    return f"**{text}**" if bold else text


def above(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what was known in the cases of much regret: the evidence on the better candidate."""
    lines = [f"Cases with a regret above {LISTED:g} points, and what the advice saw there:", ""]
    for found in outcomes:
        if found.regret[ADVICE] <= LISTED:
            continue
        best = max(found.accuracy, key=lambda name: found.accuracy[name])
        seen = {candidate["name"]: candidate for candidate in found.advice["candidates"]}
        lines.append(
            f"- {name_of(found.case)}, {found.regret[ADVICE]:.1f} points."
            f" {in_words(found, found.chosen[ADVICE], seen)} {in_words(found, best, seen)}"
        )
    return lines if len(lines) > 2 else [f"No case has a regret above {LISTED:g} points."]


def in_words(found: Outcome, name: str, seen: Mapping[str, Row]) -> str:
    """Say what was known of a candidate, and what it does."""
    known_of = seen.get(name)
    text = f"{name.capitalize()}: {found.accuracy[name]:.3f} on the test images"
    if known_of is None:
        return f"{text}, no candidate of the advice."
    if known_of["loss"] is None:
        return f"{text}; {known_of['state']}: {known_of['reason']}."
    return (
        f"{text}; the advice saw {known_of['value']:.3f} of {known_of['n']} and loss"
        f" {known_of['loss']:.3f} ({known_of['state']}: {known_of['reason']})."
    )


def write_between(page: Path, lines: Sequence[str]) -> None:
    """Replace what a page holds between the two marks; a page without them gets them."""
    text = page.read_text(encoding="utf-8") if page.exists() else "# Regret\n"
    before, begin, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if begin else "\n"
    body = "\n".join(lines)
    page.write_text(f"{before.rstrip()}\n\n{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
