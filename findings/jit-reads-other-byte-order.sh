#!/usr/bin/env bash
# jax.jit reads a NumPy array of the other byte order as if it were native, once it was called with a native one.
#
# Versions: jax 0.10.1 (jaxlib 0.10.1), numpy 2.4.6, CPython 3.11, on a little-endian CPU. The same with jax 0.12.0.1.
# What one would guess: JAX has no big-endian dtypes, so jax.jit(f)(big) either converts the values or raises TypeError.
# It does raise TypeError, where the array is the first that the function is called with.
# What happens after f(native): f(big) finds that compiled program and hands it the bytes as they are. There is no error
# and no warning, and the numbers are others: 1.0, big-endian, is read as 4.6e-41. (A function that has raised the
# TypeError once raises it afterwards too, whatever it is called with in between.)
#
# Output seen:
#   before: TypeError
#   native: [1. 2. 3.]
#   after: [1. 1. 1.] expected [1. 2. 3.]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet jax==0.10.1 jaxlib==0.10.1 numpy==2.4.6

"$folder/env/bin/python" - <<'PYTHON'
import jax
import numpy as np

native, big = np.arange(3, dtype="<f4"), np.arange(3, dtype=">f4")
assert np.array_equal(native, big)
try:
    jax.jit(lambda x: x + 1)(big)
    raise SystemExit("changed: the first call takes an array of the other byte order")
except TypeError:
    print("before: TypeError")
f = jax.jit(lambda x: x + 1)
print("native:", f(native))
after = np.asarray(f(big))
print("after:", after, "expected", native + 1)
assert not np.array_equal(after, native + 1), "changed: the values are read"
PYTHON
