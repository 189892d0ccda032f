/* The kernels of baseline: what any CPU of the architecture has. */
#include "words_baseline.h"
#include "bodies.h"
