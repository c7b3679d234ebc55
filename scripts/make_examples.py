"""Write the example scenes that ``lrp-jax explain`` shows when it is given no image."""

from pathlib import Path

import numpy as np
from PIL import Image

import lrp_jax
from lrp_jax.datasets import SCENE_MEAN, SCENE_STD, digit_scenes


def main() -> None:
    """Write four scenes of held-out digits."""
    folder = Path(lrp_jax.__file__).parent / "data" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(digit_scenes(4, seed=2026, split="test").images, start=1):
        pixels = ((image * SCENE_STD + SCENE_MEAN) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"scene-{i}.png")


if __name__ == "__main__":
    main()
