/* The kernels of NEON on AArch64. */
#include "words_neon.h"
#include "bodies.h"
