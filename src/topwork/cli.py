"""The command line. Every command is a thin face of a function below (README's map of the code).

Results go to stdout, everything else to stderr. Errors of the user's are one line and exit
with 2. Heavy packages are imported inside the commands, so that help answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from topwork.cli_advise import advise, profile, report
from topwork.cli_cache import cache_app
from topwork.cli_parts import (
    BackboneName,
    Cache,
    Data,
    Decoding,
    Device,
    Json,
    Kept,
    Runtime,
    Seed,
    Size,
    Strict,
    Verify,
    WeightsFile,
    first_free,
    import_verbs,
    parse_seconds,
    track,
)
from topwork.cli_pretrain import pretrain
from topwork.errors import TopworkError
from topwork.report.terminal import (
    note,
    print_axis,
    print_demo,
    print_fit,
    print_json,
    print_metrics,
    print_photos_demo,
    print_runtimes,
    print_zoo,
)

# Threads that wait for each other spin for a moment, then sleep. OpenMP's own moment is so long
# that beside another process training became up to forty times slower (docs/log.md). This is looked
# at once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

if TYPE_CHECKING:
    import numpy as np

    from topwork.data.image_set import ImageSet
    from topwork.errors import ImageError
    from topwork.network.predictor import Predictor
    from topwork.report.class_map import MapFolder

INTERRUPTED = 130  # what Typer makes of Ctrl-C
LESS_MEMORY = (
    "give a smaller --size or network, or fewer images a batch (of a phase, in a plan or recipe)"
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Transfer learning by measurement: keep the trunk of a pretrained network, work on the"
    " top.",
)
app.add_typer(cache_app, name="cache")


@app.command()
def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="The folder to make; without it demo-run, or demo-run-2 and so on."),
    ] = None,
    photos: Annotated[
        Path | None,
        typer.Option(help="Show it on these images, laid out as for fit, instead of digits."),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Show the main job: on handwritten digits in under two minutes, or on your photos.

    Nothing is fetched.
    """
    verbs = import_verbs("showing")
    out = out or first_free(Path("demo-run"))
    if photos is None:
        result, show = verbs.run_demo(out, seed=seed, track=track), print_demo
    else:
        result = verbs.run_photos_demo(photos, out, seed=seed, track=track)
        show = print_photos_demo
    if as_json:
        print_json(result)
        return
    show(result)


@app.command()
def fit(
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(help="The run folder to make; without it run, or run-2 and so on."),
    ] = None,
    backbone: BackboneName = None,
    weights: WeightsFile = None,
    plan: Annotated[
        str,
        typer.Option(help="auto, features, warmup, partial, finetune, scratch, or a plan file."),
    ] = "auto",
    kept: Kept = None,
    reused: Annotated[
        str | None, typer.Option(help="Start layers above this depth from random weights.")
    ] = None,
    frozen: Annotated[
        str | None,
        typer.Option(help="Freeze up to these depths: D[,D...], a phase of training for each."),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help="softmax, svm, ridge, sigmoid or regression.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images in each phase that trains.", min=1)
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of new layers.")] = None,
    views: Annotated[
        int | None, typer.Option(help="Views of each training image; 1 is the plain one.", min=1)
    ] = None,
    size: Size = None,
    time_budget: Annotated[
        str | None,
        typer.Option(help="For finding the plan, with --plan auto: 90s, 5m or 2h."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the same fit where it was interrupted.")
    ] = False,
    strict: Strict = False,
    seed: Seed = 0,
    device: Device = "auto",
    runtime: Runtime = "auto",
    decoding: Decoding = "fast",
    cache: Cache = "auto",
    verify: Verify = "once",
    as_json: Json = False,
) -> None:
    """Fit a plan to the labeled images of DATA; write a run folder."""
    api = import_verbs()

    record = api.fit(
        data,
        out or first_free(Path("run")),
        plan=plan,
        backbone=backbone,
        weights=weights,
        kept=kept,
        reused=reused,
        frozen=tuple(frozen.split(",")) if frozen else (),
        head=head,
        epochs=epochs,
        rate=rate,
        views=views,
        size=(size, size) if size else None,
        time_budget=parse_seconds(time_budget, "--time-budget") if time_budget else None,
        seed=seed,
        device=device,
        runtime=runtime,
        decoding=decoding,
        cache=cache,
        verify=verify,
        strict=strict,
        resume=resume,
        track=track,
    )
    if as_json:
        print_json(record)
        return
    print_fit(record)


app.command()(profile)
app.command()(advise)
app.command()(report)
app.command()(pretrain)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A run folder, or the model/ in one.")],
    images: Annotated[list[Path], typer.Argument(help="Image files and folders.")],
    top: Annotated[int, typer.Option(help="Classes to list for each image.", min=1)] = 1,
    views: Annotated[
        int,
        typer.Option(help="Views of each image to take the mean over; 1 is the plain one.", min=1),
    ] = 1,
    form: Annotated[str, typer.Option("--format", help="csv or jsonl.")] = "csv",
    map_folder: Annotated[
        Path | None,
        typer.Option(
            "--map",
            help="Also draw over each photo, as a PNG in this folder, where in it its classes are"
            " seen. Its short side is brought to twice the network's input size, less if the long"
            " side would have more than eight times that size.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Predict the labels of images; print a row for each as soon as it is known."""
    from topwork.data.items import images_from_paths
    from topwork.data.loading import untracked
    from topwork.errors import DataError, UsageError
    from topwork.network.predictor import load
    from topwork.report.class_map import open_map_folder
    from topwork.report.predictions import columns, print_csv, print_lines

    if form not in ("csv", "jsonl"):
        raise UsageError(f"--format {form!r} is unknown; choose csv or jsonl")
    found = images_from_paths(images)
    predictor = load(model, device)
    maps = open_map_folder(predictor, map_folder) if map_folder else None
    top = min(top, len(predictor.labels))
    for name, reason in found.skipped:
        note(f"{name}: {reason}")
    unread: list[str] = []
    # Rows that appear show the progress; a bar of rich's would catch them on their way to stdout.
    tracked = track if as_json else untracked
    answers = predictor.predict_set(found, range(len(found)), track=tracked, views=views)
    rows = predicted(predictor, found, answers, top, maps, unread)
    if as_json:
        print_json({"model": str(model), "predictions": list(rows)})
    elif form == "jsonl":
        print_lines(rows)
    else:
        print_csv(rows, columns(predictor.kind, predictor.labels, top))
    if len(unread) == len(found.items):
        raise DataError(f"none of the {len(unread)} images can be read")


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="A run folder, or the model/ in one.")],
    data: Annotated[Path, typer.Argument(help="Labeled images; all are scored.")],
    seed: Annotated[
        int, typer.Option(help="Seed of the draws that intervals are made from.", min=0)
    ] = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score a model on labeled images, with intervals."""
    verbs = import_verbs("scoring")
    result = verbs.evaluate_model(model, data, seed=seed, device=device, track=track)
    if as_json:
        print_json(result)
        return
    for name, reason in result["left_out"]:
        note(f"not scored: {name}: {reason}")
    if result["learned_from"]:
        note(
            f"{result['learned_from']} of these images were there when the model was fitted, which"
            " flatters it; its own test score is in the run's record.json"
        )
    print_metrics(result["test"])


@app.command()
def inspect(
    backbone: Annotated[str, typer.Argument(help="A network, as for fit --backbone.")],
    size: Size = None,
    runtimes: Annotated[
        bool,
        typer.Option("--runtimes", help="Also try what could run its layers here; a minute."),
    ] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print a network's depth axis: its cut points, their shapes and costs."""
    facts = import_verbs("showing").inspect(backbone, size=size, runtimes=runtimes, device=device)
    if as_json:
        print_json(facts)
        return
    print_axis(facts)
    if runtimes:
        print_runtimes(facts["runtimes"])


@app.command()
def zoo(
    name: Annotated[str | None, typer.Argument(help="One network, to see all about it.")] = None,
    as_json: Json = False,
) -> None:
    """List backbones to choose from; any other name of timm or torchvision works too."""
    from dataclasses import asdict

    from topwork.network.catalog import catalog

    if name is not None:
        from topwork.network.zoo import find_backbone

        found = find_backbone(name)
        facts = {
            "name": found.name,
            **found.spec.to_dict(),
            "preprocessing": found.preprocessing.to_dict(),
            "weights": found.weights.describe() if found.weights else None,
            "about": found.about,
        }
        print_json(facts)
        return
    entries = [asdict(entry) for entry in catalog()]
    if as_json:
        print_json({"backbones": entries})
        return
    print_zoo(entries)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A run folder, or the model/ in one.")],
    form: Annotated[str, typer.Option("--format", help="onnx, pt2 or timm.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="File or folder to write; without it named after model and format, in this folder."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model for other programs."""
    from topwork.network.export import SUFFIX, export_model
    from topwork.network.folder import open_model

    target = out or Path(f"{model.name}-{form}{SUFFIX.get(form, '')}")
    written = export_model(open_model(model), form, target)
    if as_json:
        print_json({"model": str(model), "format": form, "path": str(written)})
        return
    print(f"wrote {written}")


def predicted(
    predictor: Predictor,
    images: ImageSet,
    answers: Iterable[tuple[int, np.ndarray | ImageError]],
    top: int,
    maps: MapFolder | None,
    unread: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, its map drawn; list those that cannot be read in ``unread``."""
    from topwork.errors import ImageError
    from topwork.report.predictions import prediction

    for index, result in answers:
        name = images.items[index].name
        if isinstance(result, ImageError):
            note(str(result))
            unread.append(name)
            yield {"path": name, "error": result.reason}
            continue
        row = prediction(name, predictor.kind, predictor.labels, result, top)
        if maps:
            try:
                row["map"] = str(maps.draw(images, index))
            except ImageError as error:
                note(str(error))
        yield row


def stop_on_sigterm() -> None:
    """Leave by an exception on SIGTERM, so that unfinished files are removed."""

    def leave(signum: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)


class StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time: decoding puts another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        print(self.format(record), file=sys.stderr)


def main() -> None:
    """Run the command line."""
    stop_on_sigterm()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # A file's name may hold what the terminal's encoding does not; that must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[StderrHandler()])
    logging.getLogger("topwork").setLevel(logging.INFO)
    try:
        code = app(prog_name="topwork", standalone_mode=False)
        sys.stdout.flush()
    except TopworkError as error:
        fail(str(error), 2)
    except TyperException as error:
        fail_usage(error)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"out of memory ({first_line(error)}); {LESS_MEMORY}", 2)
    except OSError as error:  # such as a full disk
        fail(f"{error.filename or 'a file'}: {error.strerror or error}; free space or permit it", 2)
    if code == INTERRUPTED:
        fail("interrupted; what was cached stays", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def is_out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out; torch says so by a class of its own, or in words."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run() -> NoReturn:
    """Run the command line as a process of its own.

    Leaves without tearing the interpreter down: with torch in it that takes a second, and
    everything that must be kept has been written and closed.
    """
    try:
        main()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fail_usage(error: TyperException) -> NoReturn:
    """Refuse a command line that makes no sense, and name the help that would make it clear."""
    text = error.format_message().rstrip(".")
    if not text:  # nothing was given, and the help has been printed
        sys.exit(2)
    context = getattr(error, "ctx", None)
    fail(f"{text}; see {context.command_path if context else 'topwork'} --help", 2)


def fail(text: str, code: int) -> NoReturn:
    """Print one line on stderr and leave."""
    print(f"topwork: {text}".replace("\n", " "), file=sys.stderr)
    sys.exit(code)
