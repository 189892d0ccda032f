/* Callers that fight for the team of threads, for ThreadSanitizer: test_calls.py compiles it with threads.c. */
#define _POSIX_C_SOURCE 200809L
#include "threads.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLERS 3
#define CALLS 1500
#define MOST 40

static void chunk(void *context, int64_t i, int64_t chunks) { ((int64_t *)context)[i] += i + chunks; }

/* Calls of some loops each, of random sizes and threads; every chunk must run once, and be seen by the caller. */
static void *call(void *number) {
    unsigned seed = (unsigned)(intptr_t)number;
    for (int k = 0; k < CALLS; k++) {
        int64_t got[MOST] = {0}, want[MOST] = {0};
        frnn_team *team = frnn_team_begin(1 + rand_r(&seed) % 4);
        for (int loops = 1 + rand_r(&seed) % 5; loops > 0; loops--) {
            int64_t chunks = 1 + rand_r(&seed) % MOST;
            for (int64_t i = 0; i < chunks; i++) want[i] += i + chunks;
            frnn_team_for(team, chunks, chunk, got);
        }
        if (memcmp(got, want, sizeof(got)) != 0) abort();
        frnn_team_end(team);
        if (k % 97 == 0) frnn_set_thread_limit(rand_r(&seed) % 4);
        if (k % 301 == 0) nanosleep(&(struct timespec){0, 200000}, NULL); /* workers fall asleep */
    }
    return NULL;
}

int main(void) {
    pthread_t callers[CALLERS];
    for (intptr_t i = 0; i < CALLERS; i++) pthread_create(&callers[i], NULL, call, (void *)(i + 1));
    for (int i = 0; i < CALLERS; i++) pthread_join(callers[i], NULL);
    puts("all chunks ran once");
    return 0;
}
