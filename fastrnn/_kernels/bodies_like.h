/* What an instruction set has of its own that is like another one but for its products of 8-bit weights: FRNN_LIKE names
 * the other. Its words are included before. dispatch.c makes its table. */
#include "frnn.h"
#include "blocks.h"
#include "cells.h"
#if FRNN_LANES > 8
#define VEC_W 8
#include "bodies_like_width.h"
#undef VEC_W
#endif
#define VEC_W 4
#include "bodies_like_width.h"
#undef VEC_W
#define VEC_W FRNN_LANES
#include "bodies_like_width.h"
#include "body_round.h"
#undef VEC_W
#include "body_products.h"
