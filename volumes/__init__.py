"""Volumes from and to disc: open.py is the one door for reading; target.py and write.py write."""
