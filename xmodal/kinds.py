"""Descriptions of which there are several kinds: a config entry chooses one by its `type`."""

from collections.abc import Mapping
from typing import ClassVar


class Kind:
    """Base class of such descriptions, which are frozen dataclasses with a field `type: Literal["<name>"] = "<name>"`.

    `xmodal.config.make_spec` looks an entry up in `KINDS`, so a new kind is a class and one line in its registry.
    """

    KINDS: ClassVar[Mapping[str, type]]  # by `type`
    DEFAULT: ClassVar[str] = ""  # the kind of an entry without `type`; "" asks for one
