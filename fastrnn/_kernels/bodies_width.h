/* All bodies that exist once per width, in the order in which they build on each other. VEC_W is the width. */
#include "words.h"
#include "body_math.h"
#include "body_activate.h"
#include "body_tile.h"
#include "body_tile_bfloat16.h"
#include "body_tile_int8.h"
#include "body_cell.h"
#include "body_linear.h"
