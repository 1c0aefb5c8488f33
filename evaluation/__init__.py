"""Numbers on a restored volume: against its truth, or against itself where there is none; always beside interpolation.

``opening`` lays the files on one grid (``grids`` says how, ``baselines`` interpolates). ``measure`` collects what ``metrics``,
``fsc``, ``spectra``, ``resolution`` and ``consistency`` say. ``verdict``, ``table``, ``figures`` and ``report`` show it, and
``run`` is the whole way.
"""
