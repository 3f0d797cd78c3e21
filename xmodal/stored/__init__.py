"""Models at rest: what one is, and the kinds of folders that hold one (`xmodal.stored.opening.KINDS`)."""
