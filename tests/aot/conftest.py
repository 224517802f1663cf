"""Compilation for TPUs and GPUs that are not here: `make test-aot` installs what it needs."""

import os

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}  # research.aot.ENVIRONMENT
