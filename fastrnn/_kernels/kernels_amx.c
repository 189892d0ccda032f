/* The tile unit of AMX beside the vectors of AVX-512 VNNI. */
#define FRNN_ISA amx
#include "words_avx512.h"
#include "words_amx.h"
#include "bodies_tiled.h"
