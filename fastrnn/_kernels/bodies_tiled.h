/* What an instruction set with a tile unit has of its own: the products on that unit. Its words, of vectors and of tiles,
 * are included before. dispatch.c makes its table. */
#define FRNN_TILED
#include "blocks.h"
#include "tile_unit.h"
#define VEC_W FRNN_LANES
#include "words.h"
#include "body_math.h"
#include "body_tile.h"
#include "body_round.h"
#include "body_tile_unit.h"
#undef VEC_W
