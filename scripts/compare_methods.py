"""Draw the maps of every method, for both classes of a scene that comes with the package, on one picture.

python scripts/compare_methods.py notebooks/images/methods.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

import lrp_jax

EDGE, MARGIN, COLUMNS = 112, 8, 3


def main() -> None:
    """Explain and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    scenes = Path(lrp_jax.__file__).parent / "data" / "examples"
    parser.add_argument("--picture", type=Path, default=scenes / "scene-3.png")
    options = parser.parse_args()
    model, params = lrp_jax.load("demo")
    picture = lrp_jax.read_image(options.picture)
    images = jnp.asarray(lrp_jax.preprocess(picture, model.config))[None]
    targets = np.argsort(-lrp_jax.explain(model, params, images, method="raw_attention").logits)[:, :2]
    picture = picture.resize((EDGE, EDGE), Image.Resampling.BICUBIC)
    first, second = (model.config.class_name(k) for k in targets[0])
    cells = [(f"{first}, {second}", [picture])]
    for name, method in lrp_jax.METHODS.items():
        score = {"score": "sigmoid"} if "score" in method.options and model.config.multi_label else {}
        maps = lrp_jax.explain(model, params, images, targets, method=name, **score).relevance[0]
        large = lrp_jax.heatmaps(maps, (EDGE, EDGE))
        cells.append((name, [lrp_jax.overlay(picture, heat, signed=method.signed) for heat in large]))

    font = ImageFont.load_default(14)
    width, height = 2 * EDGE + 2 * MARGIN, EDGE + 2 * MARGIN + 16
    out = Image.new("RGB", (COLUMNS * width + MARGIN, -(-len(cells) // COLUMNS) * height + MARGIN), "white")
    draw = ImageDraw.Draw(out)
    for i, (caption, pictures) in enumerate(cells):
        left, top = MARGIN + i % COLUMNS * width, MARGIN + i // COLUMNS * height
        for k, part in enumerate(pictures):
            out.paste(part, (left + k * (EDGE + 2), top))
        draw.text((left, top + EDGE + 4), caption, fill="black", font=font)
    out.save(options.output)


if __name__ == "__main__":
    main()
