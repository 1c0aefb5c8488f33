"""Volumes from and to disc: open.py is the one door for reading; write.py and volume_target.py write."""
