/* The kernels of AVX2 + FMA. */
#include "frnn.h"
#include "words.h"
#if defined(__AVX2__) && defined(__FMA__) /* setup.py compiles this file with both on x86-64 */
#include "words_avx2.h"
#include "blocks.h"
#include "cells.h"
#define VEC_W 4
#include "bodies.h"
#undef VEC_W
#define VEC_W 8 /* the widest: whole arrays */
#include "bodies.h"
#include "body_array.h"
#include "body_window.h"
#include "body_attention.h"
#undef VEC_W
#include "body_table.h"
#endif
