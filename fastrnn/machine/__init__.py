"""What this machine offers. Imports errors, and knows nothing about graphs.

_isa.pyx            the kernel table of one instruction set, chosen at import; packs weights for it
_kernel_calls.pyx   single kernels on arrays, for tests and measurements
_roofline.pyx       measures the machine: probes for its limits, and steps of a cell for tuning.py
_region.pyx         memory that grows without being copied
cpu.py              what this process may use: threads, quota
hardware.py         the name of the CPU, its caches
tuning.py           how products of float32 prefetch: measured once a machine
workers.py          whether a team of our own or OpenMP's threads share calls; _openmp.pyx: the latter
threadpools.py      makes the team of threads visible to threadpoolctl
forks.py            locks that no other thread holds during a fork; _forks.pyx: the locks themselves
files.py            atomic writing of files
"""
