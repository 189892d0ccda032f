/* When a call goes to the tile unit. */
#include "tile_unit.h"

int frnn_tiles_pay(const frnn_product *product, int64_t rows, int64_t floats) {
    (void)product, (void)rows, (void)floats;
    return 1;
}
