/* The threads that share the loops of a call. Two kinds of workers (frnn_set_threading):
 *   - a team of our own, at most one per process, made when first needed, asleep between calls;
 *   - OpenMP's, if asked for, in one parallel region per call (openmp.c, a module of its own, so that libgomp may be
 *     missing).
 * Both do the same: the caller's thread alone goes from loop to loop (frnn_team_for), and workers join the current
 * loop chunk by chunk, so a worker that wakes late costs nothing: the caller has done its chunks by then. Between the
 * loops of one call workers poll. After the call our own poll for 20 us and sleep; the first loop of the next call wakes
 * them, if any loop is worth it. OpenMP's poll for 10 ms. At most one call has workers: if another thread has them, or
 * they can't be made, the caller continues alone. The child of a fork makes a team of its own, and never uses OpenMP,
 * which does not survive a fork.
 * Why: docs/decisions/0005-own-threads.md and 0021-openmp-on-request.md.
 */
#ifndef FRNN_THREADS_H
#define FRNN_THREADS_H

#include <stdint.h>

#define FRNN_MAX_THREADS 64
/* Least work of a thread, in floating-point operations, if workers are awake from the call before: 5 to 15 us. */
#define FRNN_FLOPS_A_THREAD 1000000

typedef struct frnn_team frnn_team;
/* One chunk of a loop. context: the caller's; it must not change before the loop ends. */
typedef void (*frnn_chunk_fn)(void *context, int64_t chunk, int64_t chunks);
typedef void (*frnn_call_fn)(frnn_team *team, void *context);

/* Run fn(team, context) in this thread. Up to threads - 1 workers join its loops; team is NULL if there are none. */
void frnn_team_call(int threads, frnn_call_fn fn, void *context);
/* fn(context, i, chunks) for i in 0..chunks-1, in any order, by any thread; returns when all are done. team may be
 * NULL. */
void frnn_team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context);
/* How many threads work for `team` (1 for NULL). */
int frnn_team_size(const frnn_team *team);
/* No call uses more threads than this; 0: no limit. For threadpoolctl, which finds these two by name. */
void frnn_set_thread_limit(int threads);
int frnn_thread_limit(void);

/* ---- the kind of workers ---- */

enum { FRNN_THREADING_TEAM, FRNN_THREADING_OPENMP };
void frnn_set_threading(int how);
/* A function that opens a parallel region of so many threads and calls the join function in each of them. */
typedef void (*frnn_region_fn)(int threads);
/* What each thread of a region does; first: it is the one that opened it. Returns when the call is over. */
typedef void (*frnn_join_fn)(int first);
/* From now on OpenMP can be used: region is openmp.c's. Returns the join function; NULL: it can't be used safely. */
frnn_join_fn frnn_use_openmp(frnn_region_fn region);
/* Calls that had OpenMP's workers and calls that had our own, so far. For tests and cpu_info. */
void frnn_shared_calls(int64_t *openmp, int64_t *own);
/* Whether OpenMP can be used: it was loaded, and this process is not a fork's child. */
int frnn_has_openmp(void);

#endif
