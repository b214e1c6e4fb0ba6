"""`import egad_jax.losses` is light: jax alone, no device, no flag."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import jax
flags = dict(jax.config.values)
import egad_jax.losses as losses
heavy = {"flax", "orbax", "tensorflow", "ml_collections", "optax", "grain", "absl.flags"}
loaded = sorted(name for name in sys.modules if name in heavy)
assert not loaded, loaded
ours = {n.split(".")[1] for n in sys.modules if n.startswith("egad_jax.")}
assert ours == {"losses", "types"}, ours
from jax._src import xla_bridge
assert not xla_bridge._backends, "importing started a backend"
assert dict(jax.config.values) == flags, "importing set a flag"
from egad_jax import methods
methods.make_egad()
loaded = sorted(name for name in sys.modules if name in heavy)
assert not loaded, loaded
assert not xla_bridge._backends, "making a method started a backend"
for name in losses.__all__:
  getattr(losses, name)
print("light")
"""


def test_import_is_light():
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=120
  )
  assert result.stdout.strip() == "light", result.stderr
