"""From a trained run to whole volumes: the commands of infer.py, also as functions on arrays.

The path of one volume through ``infer.py enhance``::

    run.py          opens the training's folder: the model with its weights, made fast; device and precision
    jobs.py         checks what is asked for and puts the parts below together
      source.py       the volume on disc as the slices that the network reads: thinned, interpolated, padded ...
      intensity.py    ... in the network's range, and back
      placement.py    where the voxels of input, codes and output lie, in µm
      encoding.py     slices → codes, tile by tile, when somebody asks for them
      decoding.py     codes → any box of the isotropic volume, from exact tiles
      blended.py      the same where tiles must overlap: IsoREF, and the raw grid
      tiling.py       the lattice of all these tiles
      transfer.py     arrays to the device and back, without waiting
      batches.py      several tiles per pass of a network; fewer, then parts, where memory does not suffice
    work.py         piece after piece: the next one is read, the last ones are put together and written while one is computed
    commands.py     ... by this process of several (processes.py), to a file that appears when it is whole (volumes)
    trust.py        what speaks for the result: seams, consistency with the input, a picture
    uncertainty.py  the spread over passes

``encode`` stops after encoding.py and writes a store (codes.py), from which ``decode`` goes on at decoding.py; info is info.py,
and api.py has the same commands for notebooks.
"""

from inference.api import decode, encode, enhance
from inference.jobs import Options
from inference.run import Engine, Run

__all__ = ["Engine", "Options", "Run", "decode", "encode", "enhance"]
