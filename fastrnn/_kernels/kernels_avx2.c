/* The kernels of AVX2 + FMA. */
#include "words_avx2.h"
#include "bodies.h"
