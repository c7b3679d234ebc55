"""Write the example scenes that ``lrp-jax explain`` shows when it is given no image."""

from pathlib import Path

from PIL import Image

import lrp_jax
from lrp_jax.datasets import example_scenes, scene_pixels


def main() -> None:
    """Write four scenes of held-out digits."""
    folder = Path(lrp_jax.__file__).parent / "data" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(scene_pixels(example_scenes()), start=1):
        Image.fromarray(pixels).save(folder / f"scene-{i}.png")


if __name__ == "__main__":
    main()
