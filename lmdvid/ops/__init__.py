"""Operations with a faster form on some devices, each beside the plain one that defines it.

`reference` holds the definitions. On NVIDIA GPUs most run as kernels written in Triton instead, on
x86 CPUs outside training as convolutions of oneDNN, unless `use` or the environment variable
LMDVID_OPS says otherwise; `lmdvid doctor` tells which.
"""

from lmdvid.ops.dispatch import Impl, use

__all__ = ["Impl", "use"]
