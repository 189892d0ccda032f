/* The emulated tile unit beside the vectors of 16 floats. */
#define FRNN_ISA emulated_16
#include "words_avx512.h"
#include "words_emulated.h"
#include "bodies_tiled.h"
