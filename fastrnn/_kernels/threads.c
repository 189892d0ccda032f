#define _POSIX_C_SOURCE 200809L /* pthread_sigmask, which C99 alone does not have */

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

/* A loop is announced by its ticket: loop number (24 bits), chunks (20), next chunk to take (20). Taking a chunk is
 * one compare-and-swap of the whole, so a worker that read an old ticket can't take a chunk of a newer loop; and
 * once it has taken one, fn and context stay as they are until that chunk is done. */
#define TICKET(loop, chunks, next) ((uint64_t)(loop) << 40 | (uint64_t)(chunks) << 20 | (uint64_t)(next))
#define TICKET_CHUNKS(ticket) ((int64_t)((ticket) >> 20 & 0xfffff))
#define TICKET_NEXT(ticket) ((int64_t)((ticket) & 0xfffff))
#define MOST_CHUNKS 0xfffff
#define POLLS                                                                                                          \
    2000 /* about 50 us of polling before a thread lets others run: more threads than free cores must not hang */

struct frnn_team {
    uint64_t ticket __attribute__((aligned(64))); /* a cache line of its own: every thread polls it */
    int64_t done __attribute__((aligned(64)));    /* chunks of this loop that are finished */
    frnn_chunk_fn fn;
    void *context;
    uint64_t loop;
    int threads;             /* of the current call; 0: none, workers sleep */
    int workers;             /* made so far */
    pthread_mutex_t sleep;   /* guards threads and call for sleeping and waking */
    pthread_cond_t wake;
    uint64_t call;           /* number of the current call */
};

static frnn_team the_team = {.sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
static int taken;           /* 0: free; set by the caller that has the team */
static int fork_watched;
static int limit; /* of the threads of a call; 0: none */

void frnn_set_thread_limit(int threads) { __atomic_store_n(&limit, threads > 0 ? threads : 0, __ATOMIC_RELAXED); }

int frnn_thread_limit(void) { return __atomic_load_n(&limit, __ATOMIC_RELAXED); }

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Take and run chunks of the current loop until none is left; 0 if there was none. */
static int work(frnn_team *team) {
    int any = 0;
    uint64_t ticket = __atomic_load_n(&team->ticket, __ATOMIC_ACQUIRE);
    while (TICKET_NEXT(ticket) < TICKET_CHUNKS(ticket)) {
        if (!__atomic_compare_exchange_n(&team->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            continue; /* ticket now holds what is there */
        }
        team->fn(team->context, TICKET_NEXT(ticket), TICKET_CHUNKS(ticket));
        __atomic_fetch_add(&team->done, 1, __ATOMIC_RELEASE);
        any = 1;
        ticket = __atomic_load_n(&team->ticket, __ATOMIC_ACQUIRE);
    }
    return any;
}

static void *worker(void *number) {
    frnn_team *team = &the_team;
    int index = (int)(intptr_t)number;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&team->sleep);
        while (team->call == seen || index >= __atomic_load_n(&team->threads, __ATOMIC_RELAXED) - 1) {
            seen = team->call;
            pthread_cond_wait(&team->wake, &team->sleep);
        }
        seen = team->call;
        pthread_mutex_unlock(&team->sleep);
        for (int idle = 0; __atomic_load_n(&team->threads, __ATOMIC_ACQUIRE) > 0; idle++) {
            if (work(team)) {
                idle = 0;
            } else if (idle > POLLS) {
                sched_yield();
            } else {
                pause_briefly();
            }
        }
    }
    return NULL;
}

/* The child of a fork has only this thread: it starts with no workers and a free team. */
static void forget_workers(void) {
    static const pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    the_team.sleep = mutex;
    the_team.wake = cond;
    the_team.threads = the_team.workers = 0;
    the_team.ticket = 0;
    taken = 0;
}

/* One more worker; 0 if it can't be made. Workers block signals, which belong to the program: if it blocks one in
 * its own threads (to wait with sigwait), an older worker must not receive it, because the default action ends the
 * process. Faults of the worker itself stay unblocked, or they could not be reported. */
static int add_worker(frnn_team *team) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* a thread inherits its creator's mask */
    int failed = pthread_create(&thread, NULL, worker, (void *)(intptr_t)team->workers);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return 0;
    pthread_detach(thread);
    team->workers++;
    return 1;
}

frnn_team *frnn_team_begin(int threads) {
    frnn_team *team = &the_team;
    int free_now = 0;
    if (frnn_thread_limit() && threads > frnn_thread_limit()) threads = frnn_thread_limit();
    if (threads > FRNN_MAX_THREADS) threads = FRNN_MAX_THREADS;
    if (threads < 2 || !__atomic_compare_exchange_n(&taken, &free_now, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        return NULL;
    }
    if (!fork_watched) fork_watched = pthread_atfork(NULL, NULL, forget_workers) == 0;
    int can_add = fork_watched;
    while (can_add && team->workers < threads - 1) can_add = add_worker(team);
    if (team->workers == 0) {
        __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
        return NULL;
    }
    pthread_mutex_lock(&team->sleep);
    __atomic_store_n(&team->threads, threads - 1 < team->workers ? threads : team->workers + 1, __ATOMIC_RELEASE);
    team->call++;
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->sleep);
    return team;
}

void frnn_team_end(frnn_team *team) {
    if (!team) return;
    __atomic_store_n(&team->threads, 0, __ATOMIC_RELEASE); /* no loop is under way, so no worker is inside a chunk */
    __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
}

int frnn_team_size(const frnn_team *team) { return team ? __atomic_load_n(&team->threads, __ATOMIC_RELAXED) : 1; }

void frnn_team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) {
    if (!team || chunks < 2 || chunks > MOST_CHUNKS) {
        for (int64_t i = 0; i < chunks; i++) fn(context, i, chunks);
        return;
    }
    team->fn = fn;
    team->context = context;
    __atomic_store_n(&team->done, 0, __ATOMIC_RELAXED);
    team->loop++;
    __atomic_store_n(&team->ticket, TICKET(team->loop, chunks, 0), __ATOMIC_RELEASE);
    work(team);
    for (int idle = 0; __atomic_load_n(&team->done, __ATOMIC_ACQUIRE) < chunks; idle++) {
        if (idle > POLLS) {
            sched_yield();
        } else {
            pause_briefly();
        }
    }
}
