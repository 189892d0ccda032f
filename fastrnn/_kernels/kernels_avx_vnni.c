#define FRNN_ISA avx_vnni
#define FRNN_LIKE avx2
#include "words_avx2.h"
#include "bodies_like.h"
