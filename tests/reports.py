"""Evidence of fits that never took place, of every kind, with other people's text in every name."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from topwork.data.arrays import encode
from topwork.data.audit import audit
from topwork.data.image_set import ImageSet, Item
from topwork.data.views import Preprocessing
from topwork.learn.targets import targets_of
from topwork.network.answers import answers as answers_to
from topwork.phase import Phase
from topwork.plan import Plan
from topwork.report.evidence import evidence_of
from topwork.report.record import HEADLINES, results

HOSTILE = (
    "<script>document.title='owned'</script>",
    '" onerror="alert(1)" x=\'',
    "{{ 7 * 7 }}{% raw %}",
    "a|b *c* [d](javascript:alert(1)) `e` ~~f~~ &lt; $g$",
    "\u202eright to left\u202c and nothing but words that go on and on, " + "W" * 300,
    "two\nlines\r\n# and a heading",
)
CUTS = ("input", "stem", "blocks.0", "blocks.1", "norm")
PHASES = {
    "solved": (Phase(frozen="norm"),),
    "trained": (Phase(frozen="norm"), Phase(frozen="stem", epochs=3)),
    "gradual": (Phase(frozen="norm"), Phase(frozen="input", epochs=2, gradual=True)),
}


def made_up(
    kind: str = "classes",
    names: tuple[str, ...] = ("ants", "bees"),
    *,
    count: int = 60,
    phases: str = "solved",
    views: int = 1,
    advised: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Return evidence as a fit would have left it."""
    fit = scored(kind, names, count=count, phases=phases, views=views, seed=seed)
    if advised:
        fit["record"]["advice"] = advice(fit["record"]["plan"], kind)
    return evidence_of(**fit)


def scored(
    kind: str,
    names: tuple[str, ...],
    *,
    count: int = 60,
    phases: str = "solved",
    views: int = 1,
    seed: int = 0,
) -> dict[str, Any]:
    """Return what `evidence_of` takes: images with labels, half of them scored at random."""
    generator = np.random.default_rng(seed)
    head = {"classes": "softmax", "labels": "sigmoid", "numbers": "regression"}[kind]
    images = image_set(kind, names, count, generator)
    audited = audit(images, numbers=kind == "numbers")
    plan = Plan(
        "weights/network", "norm", "norm", ("norm",), "avg", head=head, views=views,
        phases=PHASES[phases],
    )  # fmt: skip
    tested = list(audited.split.test)
    targets = targets_of(images, tested, head)
    scores = generator.normal(size=(len(tested), targets.outputs))
    if kind == "classes":
        scores[np.arange(len(tested)), targets.values] += 1
    else:
        scores += targets.values * (3 if kind == "labels" else 1)
    answers = answers_to(head, scores)
    view = Preprocessing((24, 32), 1.0, "bilinear", (0.5,) * 3, (0.5,) * 3)
    cuts = [SimpleNamespace(name=n, depth=d, parameters=10 * d) for d, n in enumerate(CUTS)]
    record = {
        **results(answers, targets, 0),
        **facts(plan, names, phases),
        "data": audited.to_dict() | {"summary": audited.lines(), "lost_later": []},
    }
    return {
        "record": record,
        "loaded": SimpleNamespace(
            plan=plan,
            backbone=SimpleNamespace(preprocessing=view),
            chain=SimpleNamespace(cuts=cuts),
        ),
        "images": images,
        "audited": audited,
        "tested": tested,
        "answers": answers,
        "targets": targets,
    }


def image_set(
    kind: str, names: tuple[str, ...], count: int, generator: np.random.Generator
) -> ImageSet:
    """Return images of random colors, in files of hostile names."""
    items, encoded = [], {}
    for number in range(count):
        if kind == "classes":
            labels = (names[number % len(names)],)
        elif kind == "labels":
            drawn = generator.permutation(len(names))  # data need not list labels in order
            labels = tuple(names[place] for place in drawn if generator.random() < 0.4)
        else:
            labels = tuple(f"{value:.3f}" for value in generator.normal(size=len(names)))
        name = f"{HOSTILE[number % len(HOSTILE)]}/{number}.png"
        side = "train" if number % 4 < 2 else "test"
        items.append(Item(name, labels, side))
        colors = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        encoded[name] = encode(colors.repeat(6, axis=0).repeat(8, axis=1))
    numbers = names if kind == "numbers" else ()
    return ImageSet(
        "data/<b>photos", tuple(items), encoded.__getitem__,
        multilabel=kind == "labels", number_names=numbers,
    )  # fmt: skip


def facts(plan: Plan, names: tuple[str, ...], phases: str) -> dict[str, Any]:
    """Return the parts of a record that no report computes with."""
    return {
        "seconds": 12.5,
        "run": "runs/it's <b>",
        "created": "2026-01-02T03:04:05+00:00",
        "command": ["topwork", "fit", "my photos", "--out", "<run>"],
        "seed": 0,
        "classes": list(names),
        "plan": plan.to_dict(),
        "plan_in_words": plan.describe().splitlines(),
        "notes": ["a note on <i>codes</i>"],
        "backbone": {
            "name": "weights/network",
            "preprocessing": {"size": [24, 32]},
            "weights": {"file": "weights/network/model.safetensors", "sha256": "0" * 64},
            "accounting": "12 tensors reused",
            "license": None,
        },
        "phases": [solved(), *{"trained": [trained()], "gradual": [gradual()]}.get(phases, [])],
        "why_not_timm": "hidden layers were added",
        "timings": {"audit": 0.5, "fit": 10.0, "test": 2.0},
        "machine": {"platform": "Linux", "python": "3.11", "cores": 2, "device": "cpu"},
        "versions": {"topwork": "0.1.0"},
        "cached_codes": {
            "value": 0.5, "shipped": 0.5, "largest_difference": 1e-3, "compared": 50, "computed": 9,
        },
    }  # fmt: skip


def solved() -> dict[str, Any]:
    """Return the record of a phase that solved for a head."""
    table = [{"strength": 10.0**-k, "loss": 0.5 + abs(k - 3) / 10} for k in range(7)]
    found = {"metric": "accuracy", "value": 0.8125, "interval": [0.7, 0.9], "n": 16}
    return {
        "images": 30,
        "seconds": 0.25,
        "probe": {"out_of_fold": found, "table": table, "chosen": 3},
        "epochs": [],
    }


def epochs(count: int) -> list[dict[str, Any]]:
    """Return epochs that get better, and whose held-out loss rises again at the end."""
    return [
        {
            "number": number,
            "loss": 1 / number,
            "accuracy": 1 - 0.5 / number,
            "validation_loss": 1.0,
            "tempered_loss": 0.5 + (number - 2) ** 2 / 10,
            "validation_accuracy": 0.75,
        }
        for number in range(1, count + 1)
    ]


def trained() -> dict[str, Any]:
    """Return the record of a phase of three epochs, the second the best."""
    accuracy = {"value": 0.75, "interval": [0.5, 0.9], "n": 8}
    return {
        "frozen": "stem",
        "images": 24,
        "held_out": 8,
        "start": {"loss": 0.9, "accuracy": 0.625},
        "epochs": epochs(3),
        "best": {"epoch": 2, "loss": 0.5, "accuracy": accuracy},
        "improved": True,
        "stopped": None,
        "seconds": 5.0,
    }


def gradual() -> dict[str, Any]:
    """Return the record of a phase that unfroze two steps, of which the first helped."""
    point = {"accuracy": 0.75, "interval": [0.5, 0.9], "loss": 0.5, "seconds": 3.0}
    return {
        "gradual": True,
        "frozen": "blocks.0",
        "chosen": "blocks.1",
        "start": {"loss": 0.9, "accuracy": 0.625},
        "curve": [{"frozen": "blocks.1", **point}, {"frozen": "blocks.0", **point, "loss": 0.6}],
        "epochs": epochs(4),
        "seconds": 6.0,
    }


def advice(plan: dict[str, Any], kind: str = "classes", depths: int = 30) -> dict[str, Any]:
    """Return advice on a network of many depths, with candidates in each state."""
    metric = {"classes": "accuracy", "labels": "label_accuracy", "numbers": "none"}[kind]
    names = [f"stages.{number // 3}.blocks.{number % 3}" for number in range(depths - 1)]
    rows = [
        {
            "name": name, "value": 0.5 + number / 80, "interval": [0.4 + number / 80, 0.9],
            "loss": 0.7 - number / 60, "head": "ridge", "columns": 16, "parameters": 1234,
            "multiply_adds": 1.2e7,
        }
        for number, name in enumerate([*names, "norm"])
    ]  # fmt: skip
    gain = {"value": 0.0, "interval": [-0.01, 0.01], "told_apart": False}
    points = [
        {"images": 8 * 2**k, "value": 0.6 + k / 10, "interval": [0.5, 0.95]} for k in range(4)
    ]
    profile = {
        "metric": HEADLINES[kind], "depths": rows, "images": 64, "folds": 5, "best": names[-1],
        "top": "norm", "gain": None if kind == "numbers" else gain,
        "notes": ["a note on the profile"],
        "learning_curve": {"depth": names[-1], "doubling": gain, "points": points},
        "similarity": {"verdict": "cannot tell", "transfers": False, "why": "It is <flat>."},
        "size": {"verdict": "small", "why": "32 images per class."},
    }  # fmt: skip

    def candidate(name: str, state: str, score: float | None, **more: Any) -> dict[str, Any]:
        known = score is not None and metric != "none"
        trained = {"views": 1, "phases": [{"epochs": 20}]}
        return {
            "name": name, "plan": trained, "plan_in_words": [], "why": f"why {name}",
            "corner": "small, similar", "state": state, "reason": f"reason of {name}",
            "value": score if known else None,
            "interval": [score - 0.1, score + 0.05] if known else None, "n": 64 if score else 0,
            "loss": 1 - score if score else None, "difference": gain if known else None,
            "seconds": 1.0, "seconds_to_fit": 125.0, "recommended": False, **more,
        }  # fmt: skip

    frozen = {"views": 1, "phases": [{"epochs": 0}]}

    return {
        "recommended": plan, "recommended_name": "features at the top", "why": "It is <cheapest>.",
        "metric": metric, "images": 64, "folds": 5, "time_budget": 60.0, "seconds": 31.0,
        "candidates": [
            candidate("several depths", "compared", 0.9, plan=frozen),
            candidate("features at the top", "compared", 0.85, plan=frozen, recommended=True),
            candidate("views", "compared", 0.8, plan={**frozen, "views": 4}, n=26),
            candidate(
                "fine-tune all of a network that is called by a long name", "dropped", 0.95, n=13
            ),
            candidate("from scratch", "not tried", None),
        ],
        "compared_with": "several depths",
        "textbook": {"words": "Small and similar: a linear classifier.", "agrees": True},
        "profile": profile,
    }  # fmt: skip
