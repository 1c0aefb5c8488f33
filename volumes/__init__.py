"""Volumes from and to disc: a reader and a writer for every file format, behind volume_io, their only public face."""
