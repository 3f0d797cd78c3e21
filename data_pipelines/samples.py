"""From the members of a tar to a sample that can be used, or the reason why not."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from data_pipelines.errors import BadSample, DataError
from data_pipelines.io.tar import Group, Member
from data_pipelines.text.captions import Captions, Record

_MAX_TEXT_BYTES = 4 * 2**20  # of a .txt or .json member; more is an attack or a mistake
_MODALITIES = (("image", "text"), ("text",))
ORIGIN = "source_path"  # field of the json members that `data build` writes
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


class Sample(NamedTuple):
    """One image-text pair, or a text.

    Attributes:
        shard: path of its tar.
        key: name inside the tar.
        image: encoded image; empty where samples are texts alone.
        record: the text side, checked.
        fault: why the image could not be fetched, where it comes from far away; "" if it could.
        origin: path or url of the image as a list names it; "" where shard and key say where it lies.
    """

    shard: str
    key: str
    image: bytes | memoryview
    record: Record
    fault: str = ""
    origin: str = ""

    @property
    def path(self) -> str:
        """Where the sample once came from, as `data build` noted it, or its origin; "" where neither is known."""
        noted = self.record.fields.get(ORIGIN)
        return noted if isinstance(noted, str) else self.origin


def has_images(modalities: Sequence[str]) -> bool:
    """Whether samples have an image beside their text: what `data.modalities` says. Raises DataError for others."""
    if tuple(modalities) not in _MODALITIES:
        raise DataError(f"data.modalities is {modalities!r}; expected {' or '.join(map(repr, _MODALITIES))}")
    return "image" in modalities


def image_member(group: Group, needed: bool = True, extension: str = "") -> Member | None:
    """Returns the image of a group: the member of this extension, or else the first in the tar with an image's.

    Args:
        group: members of one key.
        needed: whether samples have images; if not, none is looked for.
        extension: that the image has; "" takes any of the usual ones.

    Raises:
        BadSample: there is none, it is empty, a link or a sparse member, or an extension occurs twice.
    """
    if group.repeated:
        raise BadSample("repeated member")
    if not extension and group.members and all("." in name for name in group.members):
        raise BadSample("dot in the name")  # which ends its key: of 22.05.jpg the key is 22
    if not needed:
        return None
    wanted = (extension,) if extension else IMAGE_EXTENSIONS
    for name, member in group.members.items():
        if name in wanted:
            if not member.size:
                raise BadSample("empty image")
            return member
    raise BadSample(next((group.without[name] for name in wanted if name in group.without), "no image"))


def read_record(group: Group, fetch: Callable[[Member], bytes], captions: Captions) -> Record:
    """Returns the text side of a group, unchecked. Raises BadSample as `Captions.read`."""

    def get(extension: str) -> bytes | None:
        member = group.members.get(extension)
        if member is None:
            if extension in group.without:
                raise BadSample(group.without[extension])
            return None
        if member.size > _MAX_TEXT_BYTES:
            raise BadSample(f"{extension} too large")
        return fetch(member)

    return captions.read(get)
