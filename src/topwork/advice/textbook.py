"""The textbook's rule for when and how to fine-tune: a table of size and similarity.

After the table that is taught everywhere, such as in Stanford's CS231n ("Transfer Learning").
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from topwork.advice import candidates as known

Corner = tuple[str, str]

SAYS: dict[Corner, tuple[str, ...]] = {
    ("small", "similar"): (known.TOP, known.SEVERAL, known.VIEWS),
    ("small", "different"): (known.BEST, known.SEVERAL, known.DROP),
    ("large", "similar"): (known.TWO_THIRDS, known.ALL),
    ("large", "different"): (known.ALL, known.REPLACE, known.SCRATCH),
}

IN_WORDS: dict[Corner, str] = {
    ("small", "similar"): "a linear classifier on the uppermost features",
    ("small", "different"): "a linear classifier on features from further down",
    ("large", "similar"): "fine-tuning the network",
    ("large", "different"): "fine-tuning all of the network, or training it from scratch",
}


@dataclass(frozen=True)
class Textbook:
    """What the textbook's table says about data of a size and similarity.

    Attributes:
        size: "small", "large" or "cannot tell".
        similarity: "similar", "different" or "cannot tell".
        says: names of the candidates that it stands for.
        words: the rule in a sentence.
        agrees: whether the recommended candidate is one of these; None if the table has no answer.
    """

    size: str
    similarity: str
    says: tuple[str, ...]
    words: str
    agrees: bool | None

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        return {**vars(self), "says": list(self.says)}


def textbook(size: str, similarity: str, recommended: str) -> Textbook:
    """Look up the textbook's table.

    Where size or similarity cannot be told, all that it could be is listed.

    Args:
        size: "small", "large" or "cannot tell".
        similarity: "similar", "different" or "cannot tell".
        recommended: the name of the candidate that the measurement recommends.

    >>> found = textbook("small", "similar", "features at the top")
    >>> found.words, found.agrees
    ('Small and similar: a linear classifier on the uppermost features.', True)
    >>> textbook("cannot tell", "cannot tell", "fine-tune all").agrees is None
    True
    """
    sizes = ("small", "large") if size == "cannot tell" else (size,)
    likenesses = ("similar", "different") if similarity == "cannot tell" else (similarity,)
    corners = list(product(sizes, likenesses))
    says = tuple(dict.fromkeys(name for corner in corners for name in SAYS[corner]))
    words = " ".join(
        f"{own_size.capitalize()} and {likeness}: {IN_WORDS[own_size, likeness]}."
        for own_size, likeness in corners
    )
    agrees = None if len(corners) == len(SAYS) else recommended in says
    return Textbook(size, similarity, says, words, agrees)
