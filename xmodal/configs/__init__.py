"""The recipes as modules: `from xmodal.configs import base, demo`.

Their files are in the top-level folder `configs/` of a checkout; a wheel holds them here, in place of this file.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "configs")]
