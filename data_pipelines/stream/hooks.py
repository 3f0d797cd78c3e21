"""A user's own transforms of training samples, named in the config: "my_package.module:function".

    def add_noise(pixels, uniform):   # of an image input: after crop and resize, before the batch
        ...                           # uint8 [height, width, 3], float64 [16] -> the same; squares but for naflex

    def shorten(caption, uniform):    # of a text input: after the choice of a caption, before the tokenizer
        ...                           # str, float64 [16] -> str, not empty

`uniform` are 16 numbers in [0, 1) that belong to the row: a transform that takes its chance from nowhere else gives the
same samples on any number of hosts and after any resume, as everything else in the stream does. A transform is called
by several threads at once and must not change anything but its own result; it may overwrite the pixels it is given.
What it raises is a bug and ends the run, and is not counted as a bad sample. Evaluation data are not transformed.

Importing the module and calling the function executes the user's code. That happens for the name that stands in the
run's own config and for nothing else: no name is ever taken from data or from a checkpoint.
"""

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines import rng
from data_pipelines.errors import DataError, did_you_mean

_NUMBERS = 16  # for each transform of a row


def pixel_hook(option: str, name: str, shape: tuple[int, int], use: str) -> Callable[[np.ndarray, int, str], None]:
    """Returns what transforms pixels, uint8 [height, width, 3], in place: (pixels, 64 random bits, sample) -> None.

    Args:
        option: its path in the config, for messages.
        name: dotted name of the function; "" changes nothing.
        shape: height and width of an image to try it with.
        use: of the random numbers: the name of the input.

    Raises:
        DataError: the name cannot be imported, or the function fails on an example; the hook raises it where the
            function raises an exception, or returns something else than such pixels.
    """
    if not name:
        return lambda pixels, word, sample: None
    hook = _Hook(option, name, "(pixels, uniform)", _check_pixels)
    ramp = np.arange(3 * shape[0] * shape[1], dtype=np.uint32).reshape(*shape, 3)
    hook.probe(lambda: (ramp % 251).astype(np.uint8))

    def transform(pixels: np.ndarray, word: int, sample: str) -> None:
        pixels[:] = hook(pixels, _numbers(word, use), sample)

    return transform


def text_hook(option: str, name: str, use: str) -> Callable[[str, int, str], str]:
    """Returns what transforms a text: (text, 64 random bits, sample) -> text; arguments as for `pixel_hook`."""
    if not name:
        return lambda text, word, sample: text
    hook = _Hook(option, name, "(caption, uniform)", _check_caption)
    hook.probe(lambda: "a photo of two cats")
    return lambda text, word, sample: hook(text, _numbers(word, use), sample)


class _Hook:
    """One function and how it is called.

    Args:
        option: its option, for messages.
        name: its dotted name.
        expected: its arguments, for messages.
        check: (argument, result) -> what is wrong with the result, or "".
    """

    def __init__(self, option: str, name: str, expected: str, check: Callable[[Any, Any], str]):
        self._where, self._check = f"{option}={name!r}", check
        self._function = _load(name, self._where)
        try:
            inspect.signature(self._function).bind(None, None)
        except TypeError as error:
            raise DataError(f"{self._where} cannot be called as function{expected}: {error}") from None
        except ValueError:  # a function of a C extension that does not tell; the probe will
            pass

    def __call__(self, value: Any, uniform: np.ndarray, sample: str) -> Any:
        try:
            result = self._function(value, uniform)
        except (Exception, SystemExit) as error:  # exit() in a thread would end the run without a word
            raise DataError(f"{self._where} raised {type(error).__name__}: {error} ({sample})") from error
        wrong = self._check(value, result)
        if wrong:
            raise DataError(f"{self._where} {wrong} ({sample})")
        return result

    def probe(self, make: Callable[[], Any]) -> None:
        """Calls the function on an example, at both ends of the numbers and twice: the same must come out."""
        for word in range(2):
            uniform = np.zeros(_NUMBERS) if word else _numbers(word, "probe")
            first, again = (np.array(self(make(), uniform.copy(), "tried out on an example")) for _ in range(2))
            if not np.array_equal(first, again):
                raise DataError(
                    f"{self._where} does not return the same for the same arguments; take all chance from `uniform`, "
                    "or else a resumed run sees other samples"
                )


def _load(name: str, where: str) -> Callable:
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise DataError(f"{where} is not of the form 'my_package.module:function'")
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{where}: there is no module {error.name!r}; install its package (`pip install -e .`), or put its folder "
            "into PYTHONPATH"
        ) from error
    except (Exception, SystemExit) as error:
        raise DataError(f"{where}: importing {module_name} raised {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name in vars(module) if callable(getattr(module, name))]
        raise DataError(f"{where}: {module_name} has no {function_name!r}{did_you_mean(function_name, names)}")
    if not callable(function):
        raise DataError(f"{where}: {function_name} is of type {type(function).__name__} and cannot be called")
    return function


def _numbers(word: int, use: str) -> np.ndarray:
    return rng.uniform(rng.row_words(0, 1, _NUMBERS, word, "transform", use))[0]


def _check_pixels(pixels: np.ndarray, result: Any) -> str:
    if not isinstance(result, np.ndarray):
        return f"returned {type(result).__name__}; expected a numpy array, uint8 {list(pixels.shape)}"
    if result.dtype != np.uint8 or result.shape != pixels.shape:
        return f"returned {result.dtype} {list(result.shape)}; expected uint8 {list(pixels.shape)}"
    return ""


def _check_caption(caption: str, result: Any) -> str:
    if not isinstance(result, str):
        return f"returned {type(result).__name__}; expected a str"
    return "" if result.strip() else f"made an empty caption of {caption!r}"
