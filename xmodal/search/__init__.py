"""Embeddings of whole data sets: made in parts, searched exactly, used to choose data, shown on a local page."""
