#define FRNN_ISA avx512_vnni
#define FRNN_LIKE avx512
#include "words_avx512.h"
#include "bodies_like.h"
