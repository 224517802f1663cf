"""Operations whose compiled form XLA does not find: one folder an operation.

A folder holds `__init__.py`, the public function with its derivatives (a `custom_vjp`, and inside it the choice among
the forms: `choice.Op`); one file for each form, named after where it runs (`xla.py` for what is left to the compiler,
`cpu.py`, `native.py`, `mosaic_gpu.py`, `pallas_tpu.py`); and `reference.py`, the definition in float64 numpy loops that
every form is tested against. Models call the public function and know nothing of platforms.
"""

import importlib
import pkgutil

for _found in pkgutil.iter_modules(__path__):
  if _found.ispkg:  # so that --kernels knows every operation
    importlib.import_module(f"{__name__}.{_found.name}")
