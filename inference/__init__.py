"""From a trained run to whole volumes: the commands of infer.py, also as functions on arrays.

The path of one volume through ``infer.py enhance``::

    api.py          enhance, encode, decode: one verb each, for arrays and for files; what is recorded about the result
      run.py          the training's folder: the model with its weights, made fast; device and precision
      outputs.py      which volumes a command reads, which files it writes (room writing)
      source.py       the volume as the slices that the network reads: opened, measured and placed once, and handed on
      encoding.py       slices → codes, when somebody asks for them
      fields.py         any box of an output, from exact tiles or from blended ones
        decoding.py       codes → the isotropic volume, or the slices as the 2-D decoder has them
        restoring.py      volume → volume: IsoREF and the lateral model
        passes.py         the one way of tiles through a network: several per pass, recent ones kept, halved where memory ends
        tiling.py         the lattice of these tiles: cores, windows, halos
      uncertainty.py    the spread over passes; what texture invented
      work.py         piece after piece to an array, or to a file that appears when it is whole (room writing): the next one is
                      read, the last ones are stitched and written while one is computed
      trust.py        what speaks for the result: consistency with the input, a picture (seams: volumes/seams.py)

``encode`` stops after encoding.py and writes a store (the room codes), from which ``decode`` goes on at decoding.py;
operating_points.py decodes a store at every rate that it allows. info, verify, export and view are the room sharing.
"""

from inference.api import decode, encode, enhance
from inference.options import Options
from inference.run import Run
from utils.machine import Engine
from utils.processes import Processes
from writing.outputs import Output, inputs_and_outputs, refuse_inputs

__all__ = [
    "Engine",
    "Options",
    "Output",
    "Processes",
    "Run",
    "decode",
    "encode",
    "enhance",
    "inputs_and_outputs",
    "refuse_inputs",
]
