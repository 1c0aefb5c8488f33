"""Numbers on a restored volume: against its truth, or against itself where there is none; always beside interpolation.

``grids`` says where the planes of one file lie in another, ``baselines`` interpolates, ``fsc``, ``spectra``, ``resolution``
and ``metrics`` measure, ``comparison`` opens the files, ``measure`` does the work, ``report`` and ``figures`` show it.
"""
