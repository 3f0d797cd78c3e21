"""One module per command of `python -m xmodal`: `add_arguments(parser)` and `run(args)`."""
