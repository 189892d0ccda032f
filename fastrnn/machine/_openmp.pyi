"""Nothing to call: importing the module makes OpenMP usable (`_isa.has_openmp`)."""
