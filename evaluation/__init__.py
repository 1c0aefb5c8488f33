"""Numbers on a restored volume and on a run as a codec: against the truth, or against itself where there is none.

A restored volume (``run.evaluate``), always beside interpolation:
    ``opening`` lays the files on one grid, a ``comparison`` (``grids`` says where planes lie, ``baselines`` interpolates);
    ``measure`` collects what ``metrics``, ``fsc``, ``spectra`` and ``consistency`` say;
    ``verdict`` puts it into words, ``table`` and ``figures`` show it, ``report`` is the page.
A run as a codec (``compression.RateDistortion``), beside ``codecs`` at equal bytes:
    ``compression`` measures, ``compression_report`` draws and writes.
"""
