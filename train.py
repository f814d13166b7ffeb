"""The training command: read the command line, build, and loop in plain sight.

    python train.py --dataset logs/pick --out runs/pick

The same command is `qtransformer train`. Every setting is a flag: `python train.py --help`.
"""

from __future__ import annotations

import sys

from qtransformer.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
