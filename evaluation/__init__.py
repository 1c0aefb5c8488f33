"""Numbers on a restored volume and on a run as a codec: against the truth, or against itself where there is none.

A restored volume (``measure.evaluate``), always beside interpolation:
    ``grid`` opens the files and lays them on one grid (``sections`` says where planes lie, ``baselines`` interpolates);
    ``sweep`` reads all voxels once; ``metrics``, ``fsc`` and ``spectra`` say what they are worth, ``measure`` collects it;
    ``verdict`` puts it into words, ``figures`` shows it, ``report`` is the page (report.html).
A run as a codec (``compression.RateDistortion``), beside ``codecs`` at equal bytes:
    ``compression`` measures, ``compression_report`` draws and writes.
"""
