/* Callers that fight for the workers of calls, for ThreadSanitizer: test_calls.py compiles it with threads.c and, if the
 * compiler has OpenMP, openmp.c. */
#define _POSIX_C_SOURCE 200809L
#include "threads.h"

#ifdef _OPENMP
#include "openmp.h"
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLERS 3
#define CALLS 600
#define MOST 40

typedef struct {
    unsigned seed;
    int64_t got[MOST], want[MOST];
} work;

static void chunk(void *context, int64_t i, int64_t chunks) { ((work *)context)->got[i] += i + chunks; }

/* Some loops, of random sizes; every chunk must run once, and be seen by the caller. */
static void loops(frnn_team *team, void *context) {
    work *w = context;
    for (int n = 1 + rand_r(&w->seed) % 5; n > 0; n--) {
        int64_t chunks = 1 + rand_r(&w->seed) % MOST;
        for (int64_t i = 0; i < chunks; i++) w->want[i] += i + chunks;
        frnn_team_for(team, chunks, chunk, w);
    }
}

static void *calls(void *number) {
    work w = {(unsigned)(intptr_t)number, {0}, {0}};
    for (int k = 0; k < CALLS; k++) {
        memset(w.got, 0, sizeof(w.got));
        memset(w.want, 0, sizeof(w.want));
        frnn_team_call(1 + rand_r(&w.seed) % 4, loops, &w);
        if (memcmp(w.got, w.want, sizeof(w.got)) != 0) abort();
        if (k % 97 == 0) frnn_set_thread_limit(rand_r(&w.seed) % 4);
        if (k % 171 == 0) frnn_set_threading(rand_r(&w.seed) % 2);
        if (k % 301 == 0) nanosleep(&(struct timespec){0, 200000}, NULL); /* workers fall asleep */
    }
    return NULL;
}

int main(void) {
    pthread_t callers[CALLERS];
    int64_t openmp, own;
#ifdef _OPENMP
    frnn_openmp_joins(frnn_use_openmp(frnn_openmp_region));
#endif
    for (int round = 0; round < 3; round++) { /* threads that end take OpenMP's workers with them */
        for (intptr_t i = 0; i < CALLERS; i++) pthread_create(&callers[i], NULL, calls, (void *)(i + 1));
        for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    }
    frnn_shared_calls(&openmp, &own);
    printf("all chunks ran once, in calls of our own%s\n", own == 0 ? "?" : openmp > 0 ? " and of OpenMP" : "");
    return 0;
}
