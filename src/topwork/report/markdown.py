"""Text that others wrote, made harmless in Markdown."""

from __future__ import annotations

import re
from typing import Any

from topwork.report.words import visible

SPECIAL = re.compile(r"[\\`*\[\]<>|#~$!]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|:(?=//)|(?<=www)\.", re.I)
"""What begins markup in a line, underscores at the edges of words and addresses among it."""

LIST = re.compile(r"^(\d*)([-+.)])(?= |$)")
"""What begins an item of a list."""


class Verbatim(str):
    """A line of code, which Markdown shows as it is anyway."""


def escaped(value: Any) -> str:
    r"""Return a value as one line of text that Markdown shows as it is.

    >>> print(escaped("a|b *c* <script> blocks.6_x"))
    a\|b \*c\* \<script\> blocks.6_x
    >>> print(escaped("see www.example.org or https://example.org"))
    see www\.example.org or https\://example.org
    """
    if isinstance(value, Verbatim):
        return visible(value)
    line = " ".join(visible(str(value)).split())
    line = SPECIAL.sub(lambda found: f"\\{found.group()}", line)
    return LIST.sub(r"\1\\\2", line)
