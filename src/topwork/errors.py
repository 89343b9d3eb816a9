"""Every error that topwork raises on purpose.

    TopworkError
    ├── UsageError         options that contradict each other or lack something
    ├── DataError          a folder, archive or manifest that cannot be used as data
    │   └── ImageError     one image that cannot be read; never ends a run by itself
    ├── BackboneError      a network that cannot be found or built
    │   └── WeightsError   a weights file that does not fit, or is not safe to open
    ├── ChainError         a depth that does not exist, or a cut that would be illegal
    ├── PlanError          a plan that makes no sense
    ├── CacheError         a cache that cannot be written, or is damaged beyond repair
    ├── ModelError         a model folder that cannot be opened
    └── UnsupportedError   a network that cannot do what is asked of it

Each message is one line: what is wrong, with which file or option, and what to do next.
The command line prints it as it stands and exits with code 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TopworkError(Exception):
    """Base of all errors raised on purpose; its text is meant for the user."""


class UsageError(TopworkError):
    """Options that contradict each other or lack something."""


class DataError(TopworkError):
    """A folder, archive or manifest that cannot be used as data."""


class ImageError(DataError):
    """One image that cannot be read.

    Attributes:
        name: the image's path or name, as the user knows it.
        reason: what is wrong with it, without the name.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class BackboneError(TopworkError):
    """A network that cannot be found or built."""


class WeightsError(BackboneError):
    """A weights file that does not fit its network, or is not safe to open."""


class ChainError(TopworkError):
    """A depth that does not exist, or a cut that would be illegal."""


class PlanError(TopworkError):
    """A plan that makes no sense."""


class CacheError(TopworkError):
    """A cache that cannot be written, or is damaged beyond repair."""


class ModelError(TopworkError):
    """A model folder that cannot be opened."""


class UnsupportedError(TopworkError):
    """A network that cannot do what is asked of it, such as to slide over a photo."""


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or ``""`` if none is near.

    >>> did_you_mean("resnet81", ["resnet18", "vgg11"])
    "; did you mean 'resnet18'?"
    >>> did_you_mean("zebra", ["resnet18"])
    ''
    """
    near = get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""
