/* The kernels of AVX-512 (F, VL, BW, DQ). */
#include "words_avx512.h"
#include "bodies.h"
