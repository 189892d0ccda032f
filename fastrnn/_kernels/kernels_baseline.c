/* The kernels of baseline: what any CPU of the architecture has. */
#include "frnn.h"
#include "words.h"
#include "words_baseline.h"
#include "blocks.h"
#include "cells.h"
#define VEC_W 4 /* the widest: whole arrays */
#include "bodies.h"
#include "body_array.h"
#include "body_window.h"
#include "body_attention.h"
#undef VEC_W
#include "body_table.h"
