#include "openmp.h"

#include <omp.h>

static frnn_join_fn join; /* not an argument of the region: ThreadSanitizer does not see how libgomp hands those over */

void frnn_openmp_joins(frnn_join_fn fn) { join = fn; }

void frnn_openmp_region(int threads) {
#pragma omp parallel num_threads(threads)
    join(omp_get_thread_num() == 0);
}
