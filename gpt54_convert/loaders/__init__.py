"""From a path to a checkpoint; each file beside this one reads one container.

A loader has `matches(path) -> bool`, `load(path) -> Checkpoint`, `DESCRIPTION` (what it looks for) and,
where the order matters, `RANK`: those with a lower one are asked first.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType

from gpt54_convert.core import discover
from gpt54_convert.core.checkpoint import Checkpoint
from gpt54_convert.errors import InputError

__all__ = ["load", "loaders"]

_HUB = "; to use a model of a hub, download it first and name its folder"


def loaders() -> list[ModuleType]:
    """All loaders, in the order in which they are asked."""
    found = [discover.load(__name__, name) for name in discover.names(__name__)]
    return sorted(found, key=lambda module: (getattr(module, "RANK", 50), module.__name__))


def load(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`, whatever container it is in, with its tensors unread.

    Raises InputError where nothing is there or no loader knows it, and whatever the loader raises.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: does not exist{_near(path)}")
    for loader in loaders():
        if loader.matches(path):
            checkpoint: Checkpoint = loader.load(path)
            return checkpoint
    inside = _inside(path)
    if inside:
        raise InputError(f"{path}: is a folder of models, no model; name one of {', '.join(inside)}")
    looked_for = "; ".join(loader.DESCRIPTION for loader in loaders())
    raise InputError(f"{path}: is no checkpoint of a known kind; looked for {looked_for}")


def _inside(folder: Path) -> list[str]:
    """Subfolders that are models themselves, as in the output of an earlier run."""
    try:
        entries = [*folder.iterdir(), *(folder / "snapshots").glob("*")]  # the latter: Hugging Face's cache
        folders = sorted(entry for entry in entries if entry.is_dir())[:50]
        return [str(each) for each in folders if any(loader.matches(each) for loader in loaders())][:5]
    except OSError:
        return []


def _near(path: Path) -> str:
    """A hint at what may have been meant, from the names that lie beside it."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        if path.parent.exists():
            return ""
        if not path.is_absolute() and len(path.parts) == 2:  # looks like the name of a hub's repository
            return _HUB
        return f", and neither does the folder {path.parent}"
    close = difflib.get_close_matches(path.name, names, 3, 0.6)
    if close:
        return f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?"
    return _HUB
