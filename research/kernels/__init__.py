"""Operations whose compiled form XLA does not find: one folder an operation.

A folder holds `__init__.py`, the public function with its derivatives and the choice by platform
(`lax.platform_dependent`, inside the `custom_vjp`); one file for each form, named after where it runs (`xla.py` for
what is left to the compiler, `cpu.py`, later `gpu.py` and `tpu.py`); and `reference.py`, the definition in float64
numpy loops that every form is tested against. Models call the public function and know nothing of platforms.
"""
