/* One activation on one vector, chosen at run time; included once per width. */
#define vec_activate FRNN_WIDE(vec_activate)

/* fn(x); fn is any unary function of list_functions.h. Not inlined: the usual cells never call it. */
static __attribute__((noinline, unused)) vec vec_activate(frnn_act act, vec x) {
    vec alpha = vec_splat(act.alpha), beta = vec_splat(act.beta);
    switch (act.fn) {
#define UNARY(code, name, value)                                                                                       \
    case FRNN_##code:                                                                                                  \
        return value;
#define BINARY(code, name, value)
#define TERNARY(code, name, value)
#include "list_functions.h"
#undef UNARY
#undef BINARY
#undef TERNARY
    default:
        return x;
    }
    (void)alpha, (void)beta;
}
