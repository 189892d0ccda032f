/* The emulated tile unit beside the vectors of 4 floats. */
#define FRNN_ISA emulated_4
#include "words_neon.h"
#include "words_emulated.h"
#include "bodies_tiled.h"
