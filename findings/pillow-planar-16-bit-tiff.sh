#!/usr/bin/env bash
# Pillow 13.0.0 (and 11.3.0) reads an uncompressed TIFF of 16-bit colours whose channels lie in planes, one after the
# other, as other pixels, without an error or a warning.
#
# The file is valid TIFF 6.0: PhotometricInterpretation 2, BitsPerSample 16 16 16, PlanarConfiguration 2, no compression.
# One would guess that it is read as its twin with interleaved channels (the upper 8 bits of each sample), or refused.
# Seen: hardly any pixel is that of the twin. Pillow reads each plane with the unpacker of 8 bits ("R", "G", "B"), so the
# bytes of a sample become two pixels next to each other. The same samples compressed (deflate) are read right.
#
# Output seen, with both versions:
#   interleaved: 100.0% of the pixels are the upper 8 bits of the samples
#   planes, deflate: 100.0% of the pixels are the upper 8 bits of the samples
#   planes: 0.5% of the pixels are the upper 8 bits of the samples
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q "pillow==${PILLOW:-11.3.0}" "numpy==2.3.5" "tifffile==2025.10.16"
cd "$folder"
"$folder/env/bin/python" - <<'PYTHON'
import sys

import numpy as np
import tifffile
from PIL import Image

samples = np.random.default_rng(0).integers(0, 65536, (3, 35, 47)).astype(np.uint16)
tifffile.imwrite("interleaved.tif", np.ascontiguousarray(samples.transpose(1, 2, 0)), photometric="rgb")
tifffile.imwrite("planes, deflate.tif", samples, photometric="rgb", planarconfig="separate", compression="zlib")
tifffile.imwrite("planes.tif", samples, photometric="rgb", planarconfig="separate")
right = {}
for name in ("interleaved", "planes, deflate", "planes"):
    pixels = np.asarray(Image.open(f"{name}.tif")).transpose(2, 0, 1)
    right[name] = (pixels == samples >> 8).mean()
    print(f"{name}: {100 * right[name]:.1f}% of the pixels are the upper 8 bits of the samples")
sys.exit(not (right["interleaved"] == right["planes, deflate"] == 1 and right["planes"] < 0.05))
PYTHON
