"""Numbers on a restored volume and on a run as a codec: against the truth, or against itself where there is none.

A restored volume (``measure.evaluate``), always beside interpolation:
    ``grid`` opens the files and lays them on one grid as ``sections``, which are read and interpolated;
    ``sweep`` reads all voxels once; ``metrics`` and ``spectra`` say what they are worth, ``measure`` collects it;
    ``report`` puts it into words and on a page (report.html), ``figures`` shows it.
A run as a codec (``compression.RateDistortion``), beside ``codecs`` at equal bytes.
"""
