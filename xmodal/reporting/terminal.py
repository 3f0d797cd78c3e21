"""Standard output that people read."""

import errno
import os

from rich.console import Console


class Output(Console):
    """Standard output; a reader that went away is a BrokenPipeError, whose catcher says what that means."""

    def __init__(self, **options):
        super().__init__(highlight=False, **options)

    def on_broken_pipe(self) -> None:
        """See `Console`, which would end the process without a word."""
        self.quiet = True
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
