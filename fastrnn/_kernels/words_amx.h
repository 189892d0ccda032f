/* Words of the tile unit (tile_unit.h) in instructions of AMX. Assembly, because GCC 12's _tile_loadd does not say that
 * it reads memory, so stores before it may be moved behind it, and its _tile_loadconfig says that it reads 8 of the 64
 * bytes. */
#define tile_config(config) __asm__ volatile("ldtilecfg %0" : : "m"(*(config)) : "memory")
#define tile_release() __asm__ volatile("tilerelease" : : : "memory")
#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t : : : "memory")
#define tile_load(t, from, stride)                                                                                     \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define tile_store(t, to, stride)                                                                                      \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
#define tile_dp_bf16(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#define tile_dp_int8(c, a, b) __asm__ volatile("tdpbusd %%tmm" #b ", %%tmm" #a ", %%tmm" #c : : : "memory")
#if FRNN_INT8_OFFSET != 128
#error "TDPBUSD multiplies unsigned bytes of rows"
#endif
