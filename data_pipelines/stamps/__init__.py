"""Spoken stamps: small images with their names in ten languages, written and spoken by a person."""
