"""The recipes; imported as `xmodal.configs`, never as `configs`, which may be a package of the user's project."""
