"""Volumes as files: what an output will be, its journal while it is written, and a writer for each format."""
