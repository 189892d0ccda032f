/* The team of worker threads: at most one per process, made when first needed, asleep between calls.
 * A call takes the team (frnn_team_begin), hands it one loop after another (frnn_team_for) and lets it go
 * (frnn_team_end). Only the caller's thread goes from loop to loop. Workers join the current loop chunk by chunk, so
 * a worker that wakes late costs nothing: the caller has done its chunks by then. Between the loops of one call
 * workers poll. When the call ends they sleep; none spins. If another thread has the team, or it can't be made, the
 * caller continues alone. After a fork the child makes its own.
 * Why not OpenMP's team: docs/decisions/0005-own-threads.md.
 */
#ifndef FRNN_THREADS_H
#define FRNN_THREADS_H

#include <stdint.h>

#define FRNN_MAX_THREADS 64
/* Least work of a thread, in floating-point operations: 25 us, if workers are awake from the call before. */
#define FRNN_FLOPS_A_THREAD 2000000

typedef struct frnn_team frnn_team;
/* One chunk of a loop. context: the caller's; it must not change before the loop ends. */
typedef void (*frnn_chunk_fn)(void *context, int64_t chunk, int64_t chunks);

/* The team with threads - 1 workers awake or waking; NULL if the caller must continue alone. Give it back. */
frnn_team *frnn_team_begin(int threads);
void frnn_team_end(frnn_team *team);
/* fn(context, i, chunks) for i in 0..chunks-1, in any order, by any thread; returns when all are done. team may be
 * NULL. */
void frnn_team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context);
/* No call uses more threads than this; 0: no limit. For threadpoolctl, which finds these two by name. */
void frnn_set_thread_limit(int threads);
int frnn_thread_limit(void);
/* How many threads work for `team` (1 for NULL). */
int frnn_team_size(const frnn_team *team);

#endif
