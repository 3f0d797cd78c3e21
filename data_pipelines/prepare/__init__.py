"""Shards made from other data, on one machine or on many."""
