/* The kernels of AVX-512 (F, VL, BW, DQ). */
#include "frnn.h"
#include "words.h"
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "words_avx512.h"
#include "blocks.h"
#include "cells.h"
#define VEC_W 8
#include "bodies.h"
#undef VEC_W
#define VEC_W 4
#include "bodies.h"
#undef VEC_W
#define VEC_W 16 /* the widest: whole arrays */
#include "bodies.h"
#include "body_array.h"
#include "body_window.h"
#include "body_attention.h"
#undef VEC_W
#include "body_table.h"
#endif
