/* The emulated tile unit beside the vectors of 8 floats. */
#define FRNN_ISA emulated_8
#include "words_avx2.h"
#include "words_emulated.h"
#include "bodies_tiled.h"
