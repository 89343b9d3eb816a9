"""Getting weights from where they are; the only module that may touch the network.

It does so only for something that the user named, looks into the local caches first, and says what
it fetches, from where and how big it is before it starts (logger ``topwork``).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from topwork.errors import BackboneError

log = logging.getLogger("topwork")

SECONDS_TO_ANSWER = 15
OWN_FILE = "give a local file with --weights FILE"


@dataclass(frozen=True)
class WeightsSource:
    """Where pretrained weights are, or would be fetched from.

    Attributes:
        kind: ``"file"``, ``"hub"`` (a repository of the Hugging Face hub) or ``"url"``.
        location: the path, the repository as ``ORG/NAME`` or ``ORG/NAME@REVISION``, or the address.
        sha256: of the file's bytes, in hexadecimal, where it is known what they must be.
    """

    kind: Literal["file", "hub", "url"]
    location: str
    sha256: str | None = None

    def describe(self) -> str:
        """Return the place in words.

        >>> WeightsSource("hub", "timm/resnet18.a1_in1k").describe()
        'model.safetensors of huggingface.co/timm/resnet18.a1_in1k'
        """
        if self.kind == "hub":
            return f"model.safetensors of huggingface.co/{self.location}"
        return self.location


def weights_file(source: WeightsSource) -> Path:
    """Return the local file of these weights, fetching it only where no local copy exists.

    Raises:
        BackboneError: it is not there, or its host cannot be reached.
    """
    if source.kind == "file":
        return Path(source.location)
    if source.kind == "hub":
        return fetch_from_hub(source.location, "model.safetensors")
    return fetch_from_url(source.location)


def fetch_from_hub(repository: str, filename: str) -> Path:
    """Return a file of a Hugging Face repository: from the hub's local cache, else from the hub.

    Args:
        repository: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        filename: a ``.safetensors`` or ``.json`` file; nothing else is ever fetched.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not filename.endswith((".safetensors", ".json")):
        raise BackboneError(
            f"{repository}: refuses to fetch {filename}; only .safetensors and .json"
        )
    name, _, revision = repository.partition("@")
    version = revision or None
    what = f"{filename} of huggingface.co/{repository}"
    instead = "download the repository elsewhere and give its folder as --backbone"
    if filename.endswith(".safetensors"):
        instead = OWN_FILE
    try:
        return Path(
            huggingface_hub.hf_hub_download(name, filename, revision=version, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        pass
    except ValueError as error:
        raise BackboneError(
            f"hf-hub:{repository}: is not the name of a repository; it has the form hf-hub:ORG/NAME"
        ) from error
    try:
        address = huggingface_hub.hf_hub_url(name, filename, revision=version)
        metadata = huggingface_hub.get_hf_file_metadata(address, timeout=SECONDS_TO_ANSWER)
        _announce(what, metadata.size)
        return Path(huggingface_hub.hf_hub_download(name, filename, revision=version))
    except LocalEntryNotFoundError as error:
        _unreachable(what, error, instead)
    except EntryNotFoundError as error:
        raise BackboneError(
            f"hf-hub:{repository}: holds no {filename}; topwork reads repositories in timm's format"
            " (config.json and model.safetensors)"
        ) from error
    except Exception as error:  # the hub client's transport, and its errors, differ by version
        _unreachable(what, error, instead)


def fetch_from_url(address: str) -> Path:
    """Return a file of a web address: from torch.hub's checkpoint folder, else fetched into it.

    Where the file name carries a checksum (``resnet18-f37072fd.pth``) the download is held to it.
    """
    import torch.hub

    filename = Path(urlparse(address).path).name
    target = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if target.is_file():
        return target
    checksum = torch.hub.HASH_REGEX.search(filename)
    try:
        _announce(address, _size_of(address))
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            address, str(target), hash_prefix=checksum[1] if checksum else None, progress=False
        )
    except (OSError, RuntimeError) as error:  # RuntimeError: the checksum is wrong
        _unreachable(address, error, OWN_FILE)
    return target


def _size_of(address: str) -> int | None:
    with urlopen(Request(address, method="HEAD"), timeout=SECONDS_TO_ANSWER) as answer:
        length = answer.headers.get("Content-Length")
    return int(length) if length else None


def _announce(what: str, size: int | None) -> None:
    # A warning, because a download must be seen also where nobody has set up logging.
    log.warning("fetching %s (%s)", what, f"{size / 1e6:.1f} MB" if size else "size not stated")


def _unreachable(what: str, error: Exception, instead: str) -> NoReturn:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise BackboneError(f"cannot fetch {what} ({reason}); {instead}") from error
