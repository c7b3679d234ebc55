"""What a job costs beside `explain` alone on arrays in memory: rate, memory, and the overhead of many devices.

    python scripts/benchmark_jobs.py                    # 20,000 digit scenes, the packaged model
    python scripts/benchmark_jobs.py --images 2000 --batch-size 32

For each kind of input (pictures as bytes in a .npy, and .png in folders) a job and `explain` take turns: the job
explains a part of the images, then `explain` the same number, and so on, so that what else the machine does falls on
both; each is compiled before. Rates are images/s over all; their ratio is the median of the turns'. Memory is what the
process holds (resident) after each tenth of the job. The last table has the same job on 1 and on 8 simulated devices of
the same processor, each in a process of its own: the overhead of sharding.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("array", "pictures")


def resident() -> float:
    """What this process holds, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def make(folder: Path, kind: str, n: int) -> list[Path]:
    """Scenes on disk, as one input of a job."""
    import lrp_jax

    model, _ = lrp_jax.load("demo")
    out = folder / kind / ("x.npy" if kind == "array" else "x")
    out.parent.mkdir()
    pixels = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.uint8, (n, *model.config.image_shape))
    for start in range(0, n, 1000):
        scenes = lrp_jax.datasets.digit_scenes(min(1000, n - start), seed=start, split="test")
        for i, image in enumerate(np.asarray(scenes.images), start):
            picture = model.config.picture(image)
            pixels[i] = np.asarray(picture)
            if kind == "pictures":
                place = out / f"{i // 1000:03d}"
                place.mkdir(parents=True, exist_ok=True)
                picture.save(place / f"{i:06d}.png")
    pixels.flush()
    if kind == "array":
        (folder / f"{kind}.npy").rename(out)
    return [out]


def job(inputs: list[Path], out: Path, batch_size: int, turns: int) -> dict[str, Any]:
    """The job in turn with `explain` alone."""
    import jax

    import lrp_jax
    from lrp_jax import jobs

    model, params = lrp_jax.load("demo")
    source = jobs.open_source(inputs)
    n, devices = len(source.names), len(jax.devices())
    size = batch_size * devices
    images = [jobs.image_of(source.read(i), model.config, np.dtype("float32")) for i in range(min(n, 40 * size))]
    batches = [np.stack(images[i : i + size]) for i in range(0, len(images) - size + 1, size)]

    def alone(count: int) -> float:
        start = time.perf_counter()
        for i in range(count):
            jax.device_get(lrp_jax.explain(model, params, batches[i % len(batches)]))
        return time.perf_counter() - start

    alone(1)
    ratios, memory, spent = [], [], [0.0, 0.0]
    step, last = max(1, n // size // turns), [0, 0.0]
    paused = 0.0

    def progress(state: jobs.Progress) -> None:
        nonlocal paused
        if state.done >= (len(memory) + 1) * n / 10:
            memory.append(resident())
        if not last[0]:  # what came before the first batch was compiling
            last[:] = [state.done, state.seconds] if state.done else [0, 0.0]
        elif state.done - last[0] >= step * size:
            took = state.seconds - last[1] - paused
            rate = (state.done - last[0]) / took
            beside = alone(step)
            ratios.append(rate * beside / (step * size))
            spent[0], spent[1] = spent[0] + took, spent[1] + beside
            last[:], paused = [state.done, state.seconds], beside

    report = jobs.attribute(model, params, source, out, batch_size=batch_size, progress=progress)
    done = len(ratios) * step * size
    return {
        "job, images/s": f"{done / spent[0]:.0f}",
        "explain alone, images/s": f"{done / spent[1]:.0f}",
        "ratio": f"{np.median(ratios):.3f}",
        "waiting for": ", ".join(f"{k} {v / report.progress.seconds:.0%}" for k, v in report.progress.waited.items()),
        "resident, MB, after each tenth": " ".join(f"{m:.0f}" for m in memory),
    }


def on_devices(inputs: list[Path], out: Path, batch_size: int, devices: int) -> list[str]:
    """Rate of a job on so many simulated devices, the first compiled shard left aside."""
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import lrp_jax
    from lrp_jax import jobs

    model, params = lrp_jax.load("demo")
    marks: list[tuple[int, float]] = []
    jobs.attribute(
        *(model, params, jobs.open_source(inputs), out),
        batch_size=batch_size // devices,
        progress=lambda state: marks.append((state.done, state.seconds)) if state.done else None,
    )
    (first, begun), (last, ended) = marks[0], marks[-1]
    return [str(devices), str(batch_size // devices), f"{(last - first) / (ended - begun):.0f}"]


def apart(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, head = Path(name), False
        for kind in KINDS:
            inputs = apart(make, folder, kind, options.images)
            row = apart(job, inputs, folder / f"{kind}.zarr", options.batch_size, options.turns)
            if not head:
                print(
                    f"{options.images:,} images, batches of {options.batch_size}\n\n| input | " + " | ".join(row) + " |"
                )
                print("|---" * (len(row) + 1) + "|")
                head = True
            print(f"| {kind} | " + " | ".join(row.values()) + " |", flush=True)
        (folder / "few").mkdir()
        inputs = apart(make, folder / "few", "pictures", options.images // 5)
        print(f"\n{options.images // 5:,} of these pictures\n\n| devices | images on each | images/s |\n|---|---|---|")
        for turn in range(3):
            for devices in (1, 8):
                row = apart(on_devices, inputs, folder / f"{turn}-{devices}.zarr", 8 * options.batch_size, devices)
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
