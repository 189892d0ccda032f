"""What this machine offers: knows errors, and nothing of graphs.

_isa.pyx            the table of kernels for one instruction set, chosen at import; packing weights for it
_kernel_calls.pyx   each kernel by itself on arrays, for tests and measurements
_roofline.pyx       the probe of the machine's limits
cpu.py              threads, quota, caches
threadpools.py      what threadpoolctl sees of the team of threads
forks.py            locks over a fork
files.py            files that are whole or not there
"""
