"""Bytes: files here and far away, tars, lists and tables."""
