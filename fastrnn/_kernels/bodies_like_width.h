/* The bodies of bodies_like.h that exist once per width. VEC_W is the width. */
#include "words.h"
#include "body_math.h"
#include "body_tile.h"
#include "body_tile_int8.h"
