/* Old versions of the functions of glibc that have new ones, so that a build on a new system loads on old ones, down to
 * glibc 2.17: same arguments, same results. setup.py includes this in every file, except in builds with checks.
 *
 * exp, log, pow and fmod no longer go through the error handling of SVID (2.29, 2.38); the pthread functions moved from
 * libpthread to libc (2.32, 2.34). A line for a function that a file does not call has no effect. */
#if defined(__x86_64__)
#define FRNN_OLDEST "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define FRNN_OLDEST "GLIBC_2.17"
#endif
#if defined(__linux__) && defined(FRNN_OLDEST)
#if __has_include(<gnu/libc-version.h>) /* not on musl, which has one version of everything */
#define FRNN_OLD(name) __asm__(".symver " #name "," #name "@" FRNN_OLDEST)
FRNN_OLD(exp);
FRNN_OLD(fmod);
FRNN_OLD(log);
FRNN_OLD(pow);
FRNN_OLD(pthread_create);
FRNN_OLD(pthread_detach);
FRNN_OLD(pthread_getspecific);
FRNN_OLD(pthread_join);
FRNN_OLD(pthread_key_create);
FRNN_OLD(pthread_key_delete);
FRNN_OLD(pthread_once);
FRNN_OLD(pthread_setspecific);
FRNN_OLD(pthread_sigmask);
#undef FRNN_OLD
#endif
#endif
#undef FRNN_OLDEST
