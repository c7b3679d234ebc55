"""Published weights to a checkpoint: the same as ``lrp-jax convert``.

python scripts/convert_weights.py SOURCE DEST.safetensors [options]
"""

import sys

from lrp_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
