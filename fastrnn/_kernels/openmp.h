/* OpenMP's side of threads.h. Linked into a module of its own (machine/_openmp.pyx): where libgomp is missing, only that
 * module can't be loaded. */
#ifndef FRNN_OPENMP_H
#define FRNN_OPENMP_H

#include "threads.h"

/* For frnn_use_openmp: a parallel region of up to so many threads. */
void frnn_openmp_region(int threads);
/* What each thread of a region calls; set it once, before the first region. */
void frnn_openmp_joins(frnn_join_fn join);

#endif
