/* Makes the tiles of one product of reduced precision, of all heights, and their table; included once per width and
 * product. Set before: TILES, the table's name; TILE_KIND, a word for the names of the functions; TILE_BODY(t, from, mr,
 * nb, nv), the sums of rows [from, from + mr); TILE_ROWS, the most rows of one block; TILE_PAIR_ROWS, those of two.
 * A tail of a narrower width goes row by row, because it is at most one vector of units. */
#define TILE_NAME(mr, nb, nv) FRNN_JOIN(FRNN_WIDE(FRNN_JOIN(TILE_KIND, mr##x##nb##x##nv)), FRNN_ISA)
#define TILE(mr, nb, nv)                                                                                               \
    static __attribute__((noinline, unused)) void TILE_NAME(mr, nb, nv)(const frnn_tile *t) {                          \
        TILE_BODY(t, 0, mr, nb, nv);                                                                                   \
    }
#define EACH_ROW(nv)                                                                                                   \
    static __attribute__((noinline, unused)) void TILE_NAME(1, 1, nv)(const frnn_tile *t) {                            \
        for (int64_t r = 0; r < t->rows; r++) TILE_BODY(t, r, 1, 1, nv);                                               \
    }
#define NAMES(mr) {TILE_NAME(mr, 1, 1), TILE_NAME(mr, 1, 2), TILE_NAME(mr, 1, 3), TILE_NAME(mr, 1, 4)}
#define PAIR_NAMES(mr) {NULL, NULL, TILE_NAME(mr, 2, 3), TILE_NAME(mr, 2, 4)}
#define HEIGHT(mr) TILE(mr, 1, 1) TILE(mr, 1, 2) TILE(mr, 1, 3) TILE(mr, 1, 4)
#define PAIRS(mr) TILE(mr, 2, 3) TILE(mr, 2, 4)
/* clang-format off */
#if VEC_W < FRNN_LANES
EACH_ROW(1) EACH_ROW(2) EACH_ROW(3) EACH_ROW(4)
static frnn_tiles TILES = {{NAMES(1), NAMES(1), NAMES(1), NAMES(1), NAMES(1), NAMES(1)}};
#else
HEIGHT(1) HEIGHT(2) HEIGHT(3)
#if TILE_ROWS > 3
HEIGHT(4)
#endif
#if TILE_ROWS > 4
HEIGHT(5) HEIGHT(6)
#endif
#if TILE_PAIR_ROWS > 0
PAIRS(1)
#endif
#if TILE_PAIR_ROWS > 1
PAIRS(2)
#endif
#if TILE_PAIR_ROWS > 2
PAIRS(3)
#endif
static frnn_tiles TILES = {
    {NAMES(1), NAMES(2), NAMES(3),
#if TILE_ROWS > 3
     NAMES(4),
#endif
#if TILE_ROWS > 4
     NAMES(5), NAMES(6),
#endif
    },
#if TILE_PAIR_ROWS > 0
    {PAIR_NAMES(1),
#if TILE_PAIR_ROWS > 1
     PAIR_NAMES(2),
#endif
#if TILE_PAIR_ROWS > 2
     PAIR_NAMES(3),
#endif
    },
#endif
};
#endif
/* clang-format on */
#undef TILE_NAME
#undef TILE
#undef EACH_ROW
#undef NAMES
#undef PAIR_NAMES
#undef HEIGHT
#undef PAIRS
#undef TILES
#undef TILE_KIND
#undef TILE_BODY
#undef TILE_ROWS
#undef TILE_PAIR_ROWS
