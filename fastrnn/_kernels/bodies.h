/* All bodies of one instruction set, whose words are included before: products and cells for each width, the rest for
 * the widest, then the table. */
#include "frnn.h"
#include "blocks.h"
#include "cells.h"
#if FRNN_LANES > 8
#define VEC_W 8
#include "bodies_width.h"
#undef VEC_W
#endif
#if FRNN_LANES > 4
#define VEC_W 4
#include "bodies_width.h"
#undef VEC_W
#endif
#define VEC_W FRNN_LANES
#include "bodies_width.h"
#include "body_turn.h"
#include "body_array.h"
#include "body_window.h"
#include "body_winograd.h"
#include "body_scan.h"
#include "body_attention.h"
#include "body_probe.h"
#include "body_round.h"
#undef VEC_W
#include "body_products.h"
#include "body_table.h"
