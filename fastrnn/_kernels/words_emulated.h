/* Words of the tile unit (tile_unit.h) in plain C: tile_emulated.c. */
#define tile_config(config) frnn_emulated_config(config)
#define tile_release() frnn_emulated_release()
#define tile_zero(t) frnn_emulated_zero(t)
#define tile_load(t, from, stride) frnn_emulated_load(t, from, stride)
#define tile_store(t, to, stride) frnn_emulated_store(t, to, stride)
#define tile_dp_bf16(c, a, b) frnn_emulated_dp_bf16(c, a, b)
#define tile_dp_int8(c, a, b) frnn_emulated_dp_int8(c, a, b, FRNN_INT8_OFFSET)
