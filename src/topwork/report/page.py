"""The report's files: one page of HTML that needs nothing beside it, and Markdown.

The page runs no script and fetches nothing; its own policy says so to the browser. Names of
files and classes are other people's text: everything is escaped unless a template says otherwise.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topwork.data.files import write_atomically
from topwork.errors import DataError, UsageError
from topwork.report.markdown import Verbatim, escaped
from topwork.report.sections import sections
from topwork.report.words import Code, visible

if TYPE_CHECKING:
    from jinja2 import Environment

EVIDENCE, PAGE, MARKDOWN = "report.json", "report.html", "report.md"
BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|(?:s|min|points)\b)")
"""The space between a number and its unit."""

TEMPLATES = Path(__file__).parent / "templates"


def write_report(evidence: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write ``report.json``, and from it ``report.html`` and ``report.md``.

    Args:
        evidence: as `topwork.report.evidence.evidence_of` makes it.
        folder: the run folder.

    Returns:
        the paths of the page and of the Markdown, as ``html`` and ``markdown``.

    Raises:
        OSError: if they cannot be written.
    """
    text = json.dumps(evidence, allow_nan=False)
    write_atomically(folder / EVIDENCE, text.encode("utf-8"))
    return write_pages(evidence, folder, evidence["record"]["run"])


def write_pages(evidence: dict[str, Any], folder: Path, run: str) -> dict[str, str]:
    """Write the page and the Markdown; return their paths.

    Args:
        evidence: what they show.
        folder: where.
        run: the run folder as commands in them call it.
    """
    told = sections(evidence, run)
    page, markdown = folder / PAGE, folder / MARKDOWN
    for path, text in ((page, render_page(told)), (markdown, render_markdown(told))):
        # Names of files need not be UTF-8: what is not is shown as "\\udcff".
        write_atomically(path, text.encode("utf-8", "backslashreplace"))
    return {"html": str(page), "markdown": str(markdown)}


def rebuild(run: str | Path) -> dict[str, str]:
    """Make the pages of a run again from its ``report.json``.

    Args:
        run: the run folder.

    Returns:
        as `write_report`.

    Raises:
        UsageError: if it is no run folder, has no evidence, or cannot be written.
        DataError: if its evidence is damaged, or of another version of topwork.
    """
    from jinja2 import TemplateError

    folder = Path(run)
    evidence = read_evidence(folder)
    unfit = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
    try:
        return write_pages(evidence, folder, str(run))
    except (TemplateError, *unfit) as error:  # a template that is missing is an OSError too
        raise DataError(
            f"{folder / EVIDENCE} lacks what a report needs ({type(error).__name__}:"
            f" {' '.join(str(error).split())}); fit again"
        ) from error
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {(error.strerror or str(error)).lower()}; make it"
            " writable, or copy it to another place"
        ) from error


def read_evidence(folder: Path) -> dict[str, Any]:
    """Read what a report of a run is made from.

    Raises:
        UsageError: if the folder is no run folder, or has no evidence.
        DataError: if the evidence is damaged, or of another version of topwork.
    """
    from topwork.report.evidence import FORMAT
    from topwork.report.record import RECORD

    file = folder / EVIDENCE
    try:
        evidence = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not folder.exists():
            reason = "does not exist; give a run folder, what `topwork fit --out` named"
        elif (folder / RECORD).is_file():
            reason = f"has no {EVIDENCE}: no report was written with it; fit again"
        else:
            reason = f"is no run folder: it has no {RECORD}; give what `topwork fit --out` named"
        raise UsageError(f"{folder} {reason}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{file} cannot be read: {reason}; give a run folder") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged ({error}); fit again") from error
    written = evidence.get("format") if isinstance(evidence, dict) else None
    if written != FORMAT:
        raise DataError(f"{file} is of format {written!r}, this topwork shows {FORMAT}; fit again")
    return dict(evidence)


def render_page(told: dict[str, Any]) -> str:
    """Return the page, from what `topwork.report.sections.sections` says."""
    page = environment(autoescape=True, finalize=unbroken)
    return page.get_template("page.html.jinja").render(told)


def render_markdown(told: dict[str, Any]) -> str:
    """Return the Markdown; each name and number that is filled in loses its power as markup."""
    markdown = environment(autoescape=False, finalize=escaped)
    markdown.filters["code"] = Verbatim
    return markdown.get_template("page.md.jinja").render(told)


def unbroken(value: Any) -> Any:
    """Return a text with its numbers and their units kept on one line; all else as it came.

    Only topwork's own words are: code and names of files are copied, and so keep their spaces.

    >>> unbroken("95.4 % of 153 images") == "95.4\N{NO-BREAK SPACE}% of 153 images"
    True
    >>> unbroken(Code("convert 5 min.png"))
    'convert 5 min.png'
    """
    if isinstance(value, Code):
        return visible(value)
    if type(value) is str:
        return BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", visible(value))
    return value


def environment(**settings: Any) -> Environment:
    """Return what renders the templates; a name that they do not find is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **settings,
    )
