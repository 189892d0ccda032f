#define _POSIX_C_SOURCE 200809L /* pthread_sigmask, which C99 alone does not have */
#define _DEFAULT_SOURCE         /* syscall */

#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <time.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* A loop is announced by its ticket: loop number (24 bits), chunks (20), next chunk to take (20). Taking a chunk is
 * one compare-and-swap of the whole, so a worker that read an old ticket can't take a chunk of a newer loop; and
 * once it has taken one, fn and context stay as they are until that chunk is done. */
#define TICKET(loop, chunks, next) ((uint64_t)(loop) << 40 | (uint64_t)(chunks) << 20 | (uint64_t)(next))
#define TICKET_CHUNKS(ticket) ((int64_t)((ticket) >> 20 & 0xfffff))
#define TICKET_NEXT(ticket) ((int64_t)((ticket) & 0xfffff))
#define MOST_CHUNKS 0xfffff
#define POLLS                                                                                                          \
    2000 /* about 50 us of polling before a thread lets others run: more threads than free cores must not hang */

/* About 20 us of polling for the next call before our own workers sleep. To wake one costs its caller 6 us, and the
 * worker comes 11 us later. */
#define POLLS_AFTER 800

struct frnn_team {
    uint64_t ticket __attribute__((aligned(64))); /* a cache line of its own: every thread polls it */
    int64_t done __attribute__((aligned(64)));    /* chunks of this loop that are finished */
    frnn_chunk_fn fn;
    void *context;
    uint64_t loop;
    int size;                /* threads of the current call, woken or not; only its caller reads it */
    int woken;               /* they were, by the first loop that is worth it; only its caller reads it */
    int threads;             /* of the current call of our own workers; 0: none, they sleep */
    int region;              /* 1: OpenMP's workers join loops; 0: their region ends */
    int workers;             /* our own, made so far */
    pthread_mutex_t sleep;   /* guards threads and call for sleeping and waking */
    pthread_cond_t wake;
    uint64_t call;           /* number of the current call */
};

static frnn_team the_team = {.sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};
static int taken; /* 0: free; set by the caller that has the workers */
static int fork_watched;
static int limit; /* of the threads of a call; 0: none */
static int threading = FRNN_THREADING_TEAM;
static int64_t openmp_calls, own_calls; /* written by the caller that has the workers */

/* OpenMP makes workers for each thread that opens a region, and they stay until that thread ends. So only a few
 * threads open regions; the calls of others use our own team. */
#define MOST_OPENERS 4
static frnn_region_fn open_region; /* NULL: OpenMP is not loaded, or this is the child of a fork */
static int openers, born_of_fork;
static pthread_key_t opener; /* of a thread that opened a region: the number of threads of its last one */
static struct {              /* the call in a region */
    frnn_call_fn fn;
    void *context;
    int forked; /* this process is a fork's child, born inside the region: its workers do not exist */
    jmp_buf out;
} region_call;

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

/* Join loops until *open is 0. */
static void join_loops(frnn_team *team, const int *open) {
    for (int idle = 0; __atomic_load_n(open, __ATOMIC_ACQUIRE) > 0; idle++) {
        if (work(team)) {
            idle = 0;
        } else if (idle > POLLS) {
            sched_yield();
        } else {
            pause_briefly();
        }
    }
}

static void *worker(void *number) {
    frnn_team *team = &the_team;
    int index = (int)(intptr_t)number;
    uint64_t seen = 0, call = 0;
    for (;;) {
        for (int idle = 0; idle < POLLS_AFTER && call == seen; idle++) {
            pause_briefly();
            call = __atomic_load_n(&team->call, __ATOMIC_ACQUIRE);
        }
        if (call == seen || index >= __atomic_load_n(&team->threads, __ATOMIC_RELAXED) - 1) {
            pthread_mutex_lock(&team->sleep);
            while (team->call == seen || index >= __atomic_load_n(&team->threads, __ATOMIC_RELAXED) - 1) {
                seen = team->call;
                pthread_cond_wait(&team->wake, &team->sleep);
            }
            call = team->call;
            pthread_mutex_unlock(&team->sleep);
        }
        seen = call;
        join_loops(team, &team->threads);
    }
    return NULL;
}

/* The child of a fork has only this thread: it starts with no workers and a free team. If the fork was in the middle
 * of a call (by a signal handler), the rest of the call runs alone. */
static void forget_workers(void) {
    static const pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    the_team.sleep = mutex;
    the_team.wake = cond;
    the_team.threads = the_team.workers = 0;
    the_team.size = 1;
    the_team.ticket = 0;
    region_call.forked = the_team.region;
    the_team.region = 0;
    open_region = NULL;
    born_of_fork = 1;
    taken = 0;
}

static int watch_forks(void) {
    if (!__atomic_load_n(&fork_watched, __ATOMIC_ACQUIRE) && pthread_atfork(NULL, NULL, forget_workers) == 0) {
        __atomic_store_n(&fork_watched, 1, __ATOMIC_RELEASE); /* two threads at once do no harm: it runs twice */
    }
    return __atomic_load_n(&fork_watched, __ATOMIC_ACQUIRE);
}

/* Block signals in this thread while it makes workers, which inherit its mask. Signals belong to the program: if it
 * blocks one in its own threads (to wait with sigwait), an older worker must not receive it, because the default action
 * ends the process. Faults of the worker itself stay unblocked, or they could not be reported. */
static void block_signals(sigset_t *before) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT};
    sigset_t all;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) sigdelset(&all, faults[i]);
    pthread_sigmask(SIG_SETMASK, &all, before);
}

/* One more worker; 0 if it can't be made. */
static int add_worker(frnn_team *team) {
    sigset_t before;
    pthread_t thread;
    block_signals(&before);
    int failed = pthread_create(&thread, NULL, worker, (void *)(intptr_t)team->workers);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) return 0;
    pthread_detach(thread);
    team->workers++;
    return 1;
}

/* Wake our own workers for the loops of a call. If there are none, the caller runs all chunks. */
static void wake_workers(frnn_team *team) {
    int can_add = 1;
    while (can_add && team->workers < team->size - 1) can_add = add_worker(team);
    __atomic_store_n(&own_calls, own_calls + 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&team->sleep);
    __atomic_store_n(&team->threads, team->size, __ATOMIC_RELEASE);
    __atomic_store_n(&team->call, team->call + 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&team->wake);
    pthread_mutex_unlock(&team->sleep);
}

/* ---- OpenMP ---- */

static void join_region(int first) {
    frnn_team *team = &the_team;
    if (!first) {
        join_loops(team, &team->region);
        return;
    }
    region_call.fn(team, region_call.context);
    /* The end of a region waits for its workers. A process that was forked inside has none, so it leaves by a jump. */
    if (region_call.forked) longjmp(region_call.out, 1);
    __atomic_store_n(&team->region, 0, __ATOMIC_RELEASE); /* no loop is under way, so no worker is inside a chunk */
}

static void forget_opener(void *threads) {
    (void)threads; /* the thread ends, and OpenMP's workers with it */
    __atomic_fetch_sub(&openers, 1, __ATOMIC_RELAXED);
}

frnn_join_fn frnn_use_openmp(frnn_region_fn region) {
    if (born_of_fork) return NULL;
    if (!open_region && (!watch_forks() || pthread_key_create(&opener, forget_opener) != 0)) return NULL;
    __atomic_store_n(&open_region, region, __ATOMIC_RELEASE);
    return join_region;
}

int frnn_has_openmp(void) { return __atomic_load_n(&open_region, __ATOMIC_ACQUIRE) != NULL; }

void frnn_set_threading(int how) { __atomic_store_n(&threading, how, __ATOMIC_RELAXED); }

void frnn_shared_calls(int64_t *openmp, int64_t *own) {
    *openmp = __atomic_load_n(&openmp_calls, __ATOMIC_RELAXED);
    *own = __atomic_load_n(&own_calls, __ATOMIC_RELAXED);
}

typedef struct {
    pthread_mutex_t gate;
    int count;
    long id[FRNN_MAX_THREADS];
} visitors;

static void *visit(void *context) {
    visitors *v = context;
    pthread_mutex_lock(&v->gate);
#ifdef __linux__
    v->id[v->count++] = syscall(SYS_gettid);
#endif
    pthread_mutex_unlock(&v->gate);
    return NULL;
}

/* Wait until the system no longer counts threads that were joined, for 100 ms at most; 0 if it still does. */
static int are_gone(const visitors *v) {
#ifdef __linux__
    for (int i = 0, waits = 0; i < v->count; i++) {
        while (syscall(SYS_tgkill, getpid(), v->id[i], 0) == 0) {
            if (++waits > 1000) return 0;
            nanosleep(&(struct timespec){0, 100000}, NULL);
        }
    }
#endif
    (void)v;
    return 1;
}

/* Whether so many threads can be made now. libgomp ends the process if it can't make a thread, so we try before it
 * does: all of them, at the same time. */
static int can_make_threads(int count) {
    visitors v = {.gate = PTHREAD_MUTEX_INITIALIZER};
    pthread_t made[FRNN_MAX_THREADS];
    int n = 0;
    sigset_t before;
    block_signals(&before);
    pthread_mutex_lock(&v.gate); /* none of them ends before the last one is made */
    while (n < count && pthread_create(&made[n], NULL, visit, &v) == 0) n++;
    pthread_mutex_unlock(&v.gate);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    for (int i = 0; i < n; i++) pthread_join(made[i], NULL);
    return n == count && are_gone(&v);
}

/* Whether this call uses OpenMP. */
static int can_use_openmp(int threads) {
    if (__atomic_load_n(&threading, __ATOMIC_RELAXED) != FRNN_THREADING_OPENMP || !frnn_has_openmp()) return 0;
    int before = (int)(intptr_t)pthread_getspecific(opener);
    if (before == 0 && __atomic_load_n(&openers, __ATOMIC_RELAXED) >= MOST_OPENERS) return 0;
    return threads <= before || can_make_threads(threads - (before ? before : 1));
}

static void run_region(frnn_team *team, int threads, frnn_call_fn fn, void *context) {
    region_call.fn = fn;
    region_call.context = context;
    region_call.forked = 0;
    __atomic_store_n(&team->region, 1, __ATOMIC_RELEASE);
    if (setjmp(region_call.out) == 0) open_region(threads);
}

static void no_loops(frnn_team *team, void *context) { (void)team, (void)context; }

static void call_in_region(frnn_team *team, int threads, frnn_call_fn fn, void *context) {
    int before = (int)(intptr_t)pthread_getspecific(opener);
    sigset_t signals;
    if (before == 0) __atomic_fetch_add(&openers, 1, __ATOMIC_RELAXED);
    if (before != threads) { /* a region of another size makes workers, and an empty one does so with signals blocked */
        pthread_setspecific(opener, (void *)(intptr_t)threads);
        block_signals(&signals);
        run_region(team, threads, no_loops, NULL);
        pthread_sigmask(SIG_SETMASK, &signals, NULL);
    }
    run_region(team, threads, fn, context);
}

/* ---- calls ---- */

void frnn_team_call(int threads, frnn_call_fn fn, void *context) {
    frnn_team *team = &the_team;
    int free_now = 0;
    if (frnn_thread_limit() && threads > frnn_thread_limit()) threads = frnn_thread_limit();
    if (threads > FRNN_MAX_THREADS) threads = FRNN_MAX_THREADS;
    if (threads < 2 || !watch_forks() ||
        !__atomic_compare_exchange_n(&taken, &free_now, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
        fn(NULL, context);
        return;
    }
    team->size = threads;
    team->woken = can_use_openmp(threads);
    if (team->woken) {
        __atomic_store_n(&openmp_calls, openmp_calls + 1, __ATOMIC_RELAXED);
        call_in_region(team, threads, fn, context);
    } else {
        fn(team, context);
        __atomic_store_n(&team->threads, 0, __ATOMIC_RELEASE); /* no loop is under way: no worker is inside a chunk */
    }
    __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
}

int frnn_team_size(const frnn_team *team) { return team ? team->size : 1; }

void frnn_team_for(frnn_team *team, int64_t chunks, frnn_chunk_fn fn, void *context) {
    if (!team || team->size < 2 || chunks < 2 || chunks > MOST_CHUNKS) {
        for (int64_t i = 0; i < chunks; i++) fn(context, i, chunks);
        return;
    }
    if (!team->woken) {
        team->woken = 1;
        wake_workers(team);
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
