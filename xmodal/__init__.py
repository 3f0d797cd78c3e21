"""xmodal: large-scale cross-modal pretraining in JAX and Flax."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from xmodal.inference import Model, load

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Model", "load"):  # these import JAX, which takes seconds that nobody else should wait for
        from xmodal import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'xmodal' has no attribute {name!r}")
