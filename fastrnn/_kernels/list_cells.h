/* Every fused cell: FORM(code, update, members of frnn_form). If two forms share a kind, `variant` is the value of
 * linear_before_reset. `update` makes new states of a tile's sums: EACH(function) runs a function of
 * body_cell.h for each vector of units of each row, one function after the other, so that no update waits for the
 * previous one. frnn.h explains the members. Included wherever code is generated for each form. */
/* clang-format off */
FORM(RNN, EACH(vec_rnn),
     .kind = "rnn", .gates = 1, .products = 1, .units = 4, .states = 1, .recurrent = 1, .phases = 1,
     .sums = {{{0, 0}}}, .counts = {1}, .usual = {FRNN_TANH})
FORM(LSTM, EACH(vec_lstm_state) EACH(vec_lstm_output),
     .kind = "lstm", .gates = 4, .products = 1, .units = 1, .states = 2, .recurrent = 1, .phases = 1,
     .gate_of = {{0, 1, 2, 3}, {0, 1, 2, 3}}, .sums = {{{0, 0}}}, .counts = {1},
     .usual = {FRNN_SIGMOID, FRNN_TANH, FRNN_TANH})
/* GRU that resets after the product: r multiplies R h + Rb of n, so W's vectors are n z r and R's z r n */
FORM(GRU_AFTER, EACH(vec_gru_gates) EACH(vec_gru_output),
     .kind = "gru", .variant = 1, .gates = 3, .products = 1, .units = 1, .states = 1, .recurrent = 1, .apart = 1,
     .phases = 1, .gate_of = {{2, 0, 1}, {0, 1, 2}}, .sums = {{{0, 0}}}, .counts = {1},
     .usual = {FRNN_SIGMOID, FRNN_TANH})
/* GRU that resets before it: r must be known for all units before the hidden half of n can start */
FORM(GRU_BEFORE, if (phase == 0) { EACH(vec_gru_reset) } else { EACH(vec_gru_mix) },
     .kind = "gru", .gates = 3, .products = 3, .units = 4, .states = 1, .recurrent = 1, .phases = 2,
     .gate_of = {{1, 0, 2}, {1, 0, 2}}, .sums = {{{0, 0}}, {{1, 0}, {2, 1}}}, .counts = {1, 2},
     .usual = {FRNN_SIGMOID, FRNN_TANH})
/* clang-format on */
#undef FORM
