"""``topwork cache``: what the cache holds, whether it is whole, and why a key is another."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from topwork.report.terminal import note, number, out_console, print_json

if TYPE_CHECKING:
    from topwork.trunk.explain import Comparison

cache_app = typer.Typer(no_args_is_help=True, help="Look after the cached outputs of trunks.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Keys = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY]...", help="Beginnings of keys, as ls prints them, or run folders."
    ),
]


@cache_app.command(name="ls")
def list_command(as_json: Json = False) -> None:
    """List what the cache holds."""
    from topwork.trunk.cache import cache_folder, list_stores

    stores = [asdict(store) for store in list_stores()]
    if as_json:
        print_json({"folder": str(cache_folder()), "stores": stores})
        return
    print(f"{cache_folder()}: {len(stores)} stores, {size(sum(s['bytes'] for s in stores))}")
    print_stores(stores)


@cache_app.command(name="verify")
def verify_command(keys: Keys = None, as_json: Json = False) -> None:
    """Read all of the cache, or of some stores; name what is damaged, and then exit with 1.

    Nothing is changed.
    """
    from topwork.trunk.care import find_stores, verify

    folders = find_stores(keys or ())
    problems = [asdict(problem) for problem in verify(folders)]
    if as_json:
        print_json({"stores": len(folders), "damaged": problems})
    else:
        for problem in problems:
            print(f"{problem['path']} {problem['problem']}")
        print(f"{len(folders)} stores read: {damage(problems)}")
    if problems:
        raise typer.Exit(1)


@cache_app.command(name="repair")
def repair_command(keys: Keys = None, as_json: Json = False) -> None:
    """Take what is damaged out of use; remove what dead processes have left."""
    from topwork.trunk.care import find_stores, repair

    folders = find_stores(keys or ())
    done = repair(folders)
    if as_json:
        print_json({"stores": len(folders), **asdict(done)})
        return
    for problem in done.problems:
        print(f"{problem.path} {problem.problem}")
    print(f"{len(folders)} stores read: {damage(done.problems)}; {len(done.removed)} files removed")
    if done.problems:
        print("What is lost is computed again when it is next needed.")


@cache_app.command(name="prune")
def prune_command(
    keys: Keys = None,
    limit: Annotated[
        str | None, typer.Option(help="Bytes that may stay, such as 5GB; the newest used do.")
    ] = None,
    older: Annotated[
        str | None, typer.Option(help="Remove what was not used for so long, such as 30d or 12h.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what would be removed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove stores and compiled trunks: those named, those too old, and beyond a size the oldest.

    Without any of these, what is beyond the limit that holds always: TOPWORK_CACHE_LIMIT, or half
    of what would be free on the disk if the cache were empty. What dead processes have left and
    damaged files go too.
    """
    from topwork.trunk.care import find_stores, parse_age, prune
    from topwork.trunk.limit import parse_size

    gone = prune(
        find_stores(keys) if keys else (),
        limit=parse_size(limit) if limit is not None else None,
        older=parse_age(older) if older is not None else None,
        dry_run=dry_run,
    )
    freed = sum(removal.bytes for removal in gone)
    if as_json:
        removed = [asdict(removal) for removal in gone]
        print_json({"dry_run": dry_run, "bytes": freed, "removed": removed})
        return
    for removal in gone:
        print(f"{removal.path} ({size(removal.bytes)}): {removal.why}")
    print(f"{'would free' if dry_run else 'freed'} {size(freed)}")


@cache_app.command(name="explain")
def explain_command(
    first: Annotated[
        str, typer.Argument(metavar="A", help="The beginning of a key, or a run folder.")
    ],
    second: Annotated[
        str | None, typer.Argument(metavar="[B]", help="Likewise; without it the most similar.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why the codes of A are not those of B: the first thing that made their keys differ."""
    from topwork.trunk.explain import explain

    comparisons = explain(first, second)
    if as_json:
        print_json({"comparisons": [asdict(comparison) for comparison in comparisons]})
        return
    for comparison in comparisons:
        print_comparison(comparison)


def print_stores(stores: list[dict[str, Any]]) -> None:
    """Print what the cache holds."""
    if not stores:
        return
    titles = ("key", "cut", "pool", "view", "kept as", "run by", "images", "size", "last used")
    table = Table(*titles, box=None)
    for store in stores:
        table.add_row(
            store["key"][:12],
            escape(store["cut"]),
            store["pool"],
            store["view"],
            store["dtype"],
            store["runtime"] or "-",
            str(store["images"]),
            size(store["bytes"]),
            datetime.fromtimestamp(store["used"]).isoformat(" ", "minutes"),
        )
    out_console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print in what two stores differ, the first thing first."""
    from topwork.trunk.explain import shortened

    names = f"{comparison.first[:12]} and {comparison.second[:12]}"
    if not comparison.differences:
        print(f"{names} are the same store")
        return
    reason = comparison.differences[0]
    print(f"{names} differ in {reason.fact}: {reason.meaning}")
    table = Table("", comparison.first[:12], comparison.second[:12], box=None)
    for difference in comparison.differences:
        values = (shortened(difference.first), shortened(difference.second))
        table.add_row(difference.fact, *map(escape, values))
    out_console.print(table)
    if any(difference.fact == "canary" for difference in comparison.differences[1:]):
        note("the canary follows from the others")


def damage(problems: Any) -> str:
    """Say how much is damaged."""
    return f"{len(problems)} files are damaged or gone" if problems else "all is whole"


def size(count: float) -> str:
    """Write a number of bytes.

    >>> size(1_810_000)
    '1.81 MB'
    """
    return f"{number(count)}B"
