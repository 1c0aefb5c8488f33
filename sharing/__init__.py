"""What leaves the program.

A store or run as one folder that needs nothing else (exporting.py, with its page, card.py); volumes and stores as linked layers
in a browser on this machine (view.py), stores also in napari (napari_reader.py), decoded where one looks; whether all of it
is as it was written (verify.py).
"""
