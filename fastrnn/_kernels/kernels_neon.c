/* The kernels of NEON on AArch64. */
#include "frnn.h"
#include "words.h"
#if defined(__aarch64__)
#include "words_neon.h"
#include "blocks.h"
#include "cells.h"
#define VEC_W 4 /* the widest: whole arrays */
#include "bodies.h"
#include "body_array.h"
#include "body_window.h"
#include "body_attention.h"
#undef VEC_W
#include "body_table.h"
#endif
