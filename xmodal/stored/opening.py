"""Opens a model wherever it lives: the registered kinds of folders are asked in turn which of them it is."""

from pathlib import Path

from xmodal.folders import not_local
from xmodal.interop.tables import InteropError
from xmodal.interop.weights import refuse_pickles
from xmodal.stored import huggingface, open_clip, project, run
from xmodal.stored.base import Choice, Kind, Stored

# A new kind of folder is one file and one line here. The first that holds a folder opens it.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (run.KIND, open_clip.KIND, huggingface.KIND, project.KIND)}


def open_stored(where: str | Path, *, step: int | None = None, ema: bool | None = None) -> Stored:
    """Opens a model wherever it lives.

    Args:
      where: a run folder, a folder that `import` made, "hf:DIR", or "open_clip:DIR"; without the prefix the files of
        the folder tell which it is.
      step: checkpoint of a run; None takes the newest good one.
      ema: averaged or trained weights of a run; None takes those that its evaluations used.

    Raises:
      InteropError: there is no such folder, it is incomplete, damaged or of an unknown kind, or its weights are not
        finite.
    """
    name, path = parse(where)
    choice = Choice(step, ema)
    if choice != Choice() and not KINDS[name].chooses:
        raise InteropError(f"{where} is not a run: it has no other steps and no averaged weights")
    return KINDS[name].open(path, choice, open_stored)


def split(where: str | Path) -> tuple[str, Path]:
    """Returns the name of the kind that "NAME:DIR" begins with, or "", and the folder or file."""
    name, colon, rest = str(where).partition(":")
    if not colon or name not in KINDS or not KINDS[name].prefixed:
        name, rest = "", str(where)
    return name, Path(rest).expanduser()


def whole_name(where: str | Path) -> str:
    """Returns what names a model from any working directory. Raises an InteropError as `parse`."""
    name, path = parse(where)
    return f"{name}:{path.resolve()}" if KINDS[name].prefixed else str(path.resolve())


def parse(where: str | Path) -> tuple[str, Path]:
    """Returns the name of a kind in `KINDS`, and the folder or file.

    Raises:
      InteropError: there is no such folder, or it is of no kind.
    """
    name, path = split(where)
    if not path.exists():
        text = str(where).removeprefix(f"{name}:")
        if problem := not_local(text):
            raise InteropError(problem)
        hint = ""
        if name == huggingface.KIND.name and text.count("/") == 1:
            hint = f". Nothing is downloaded here: `hf download {text} --local-dir DIR`, then name hf:DIR"
        raise InteropError(f"there is no folder {path}{hint}")
    refuse_pickles(path)
    if name:
        return name, path
    for kind in KINDS.values():
        if kind.holds(path):
            return kind.name, path
    if any(path.glob("*.jaxexport")):
        raise InteropError(
            f"{path} holds programs for JAX alone, not a model: its README.md says how to call them. `python -m xmodal "
            "export --to xmodal` makes a folder of the same model that can be opened here"
        )
    expected = ", ".join(kind.expects for kind in KINDS.values())
    raise InteropError(f"{path} is no model that is known here: expected one of {expected}")
