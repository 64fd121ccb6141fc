/* What the memory allows: loops in the manner of STREAM that read and write as the kernels do, and compute next to
 * nothing.
 *
 * Arrays are bytes: words are added as integers, which costs the same for every element type and cannot be a subnormal.
 * Each array is cut into one contiguous part a thread, always the same part. Two ways to read (plain, or with software
 * prefetch `ahead` bytes in front) and two to write (ordinary, or `nt`: past the caches). Built by stream.py.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* The widest vector of the machine, unaligned loads. */
#if defined(__AVX512F__)
#include <immintrin.h>
typedef __m512i word;
#define LOAD(p) _mm512_loadu_si512((const void *)(p))
#define ADD(a, b) _mm512_add_epi64(a, b)
#define STORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define STREAM(p, v) _mm512_stream_si512((void *)(p), v)
#define ZERO _mm512_setzero_si512()
#define FENCE _mm_sfence()
#elif defined(__AVX2__)
#include <immintrin.h>
typedef __m256i word;
#define LOAD(p) _mm256_loadu_si256((const __m256i *)(p))
#define ADD(a, b) _mm256_add_epi64(a, b)
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(p), v)
#define STREAM(p, v) _mm256_stream_si256((__m256i *)(p), v)
#define ZERO _mm256_setzero_si256()
#define FENCE _mm_sfence()
#elif defined(__SSE2__)
#include <emmintrin.h>
typedef __m128i word;
#define LOAD(p) _mm_loadu_si128((const __m128i *)(p))
#define ADD(a, b) _mm_add_epi64(a, b)
#define STORE(p, v) _mm_storeu_si128((__m128i *)(p), v)
#define STREAM(p, v) _mm_stream_si128((__m128i *)(p), v)
#define ZERO _mm_setzero_si128()
#define FENCE _mm_sfence()
#else /* any other: vectors of 16 bytes, which gcc and clang know (NEON); no stores past the caches */
typedef uint64_t word __attribute__((vector_size(16), aligned(1), may_alias));
#define LOAD(p) (*(const word *)(p))
#define ADD(a, b) ((a) + (b))
#define STORE(p, v) (*(word *)(p) = (v))
#define STREAM(p, v) STORE(p, v)
#define ZERO ((word){0, 0})
#define FENCE
#endif

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE __asm__ volatile("yield")
#else
#define PAUSE
#endif

enum { WIDTH = sizeof(word), LINE = 64, MOST = 8, MOST_THREADS = 64, SPIN_NS = 30000 };

static _Atomic uint64_t sink; /* takes the sums, so that no loop can be left out */

static void swallow(word sum) {
    union { word whole; uint64_t part[WIDTH / 8]; } of = {.whole = sum};
    uint64_t total = 0;
    for (size_t i = 0; i < WIDTH / 8; ++i) total += of.part[i];
    atomic_fetch_add_explicit(&sink, total, memory_order_relaxed);
}

/* Sum of k arrays over bytes [0, n), four chains in all. Always inlined with k and ahead known. */
static inline __attribute__((always_inline)) word read_k(int k, const char *const *a, size_t n, size_t ahead) {
    word s[4] = {ZERO, ZERO, ZERO, ZERO};
    size_t i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int j = 0; j < k; ++j) {
            if (ahead)
                for (size_t line = 0; line < 4 * WIDTH; line += LINE) __builtin_prefetch(a[j] + i + ahead + line, 0, 2);
            for (int u = 0; u < 4; ++u) s[u] = ADD(s[u], LOAD(a[j] + i + (size_t)u * WIDTH));
        }
    uint64_t rest = 0;
    for (; i < n; ++i)
        for (int j = 0; j < k; ++j) rest += (unsigned char)a[j][i];
    atomic_fetch_add_explicit(&sink, rest, memory_order_relaxed);
    return ADD(ADD(s[0], s[1]), ADD(s[2], s[3]));
}

/* What fills an array: no zeros, which a memory controller may treat in its own way. */
static const unsigned char fill[LINE] = {
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
    17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
    33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48,
    49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64,
};

/* out = sum of k arrays over bytes [0, n), or that. */
static inline __attribute__((always_inline)) void combine_k(int k, const char *const *a, char *out, size_t n,
                                                            size_t ahead, int nt) {
    size_t i = 0;
    for (; i < n && ((uintptr_t)(out + i) % LINE); ++i) { /* stores past the caches are aligned */
        char sum = 0;
        for (int j = 0; j < k; ++j) sum = (char)(sum + a[j][i]);
        out[i] = sum;
    }
    for (; i + LINE <= n; i += LINE) {
        if (ahead)
            for (int j = 0; j < k; ++j) __builtin_prefetch(a[j] + i + ahead, 0, 2);
        for (size_t u = 0; u < LINE; u += WIDTH) {
            word sum = k ? ZERO : LOAD(fill);
            for (int j = 0; j < k; ++j) sum = ADD(sum, LOAD(a[j] + i + u));
            if (nt)
                STREAM(out + i + u, sum);
            else
                STORE(out + i + u, sum);
        }
    }
    for (; i < n; ++i) {
        char sum = 0;
        for (int j = 0; j < k; ++j) sum = (char)(sum + a[j][i]);
        out[i] = sum;
    }
    if (nt) FENCE;
}

/* ---- the patterns: each a function of one thread's part ---- */

typedef struct job {
    void (*part)(const struct job *, int index, int threads);
    int k;                /* arrays read; in `columns` the number of columns */
    const char *in[MOST]; /* in `columns`: y, g, x */
    char *out;            /* in `columns` none: only reads */
    size_t bytes;         /* of each array; in `columns` of y */
    size_t ahead;
    int nt;
    int rows; /* `columns`: x is (n, k) in C order, else (k, n) */
} job;

/* Part of n bytes in whole pieces of `unit`: the last part takes the rest. */
static void partition(size_t n, size_t unit, int index, int threads, size_t *begin, size_t *end) {
    size_t units = n / unit;
    *begin = units * (size_t)index / (size_t)threads * unit;
    *end = index + 1 == threads ? n : units * (size_t)(index + 1) / (size_t)threads * unit;
}

#define BY_COUNT(k, ahead, CALL) \
    switch (k) { \
    case 0: CALL(0, ahead); break; \
    case 1: CALL(1, ahead); break; \
    case 2: CALL(2, ahead); break; \
    case 3: CALL(3, ahead); break; \
    default: CALL(4, ahead); break; \
    }

static void read_part(const job *j, int index, int threads) {
    size_t begin, end;
    partition(j->bytes, 4096, index, threads, &begin, &end);
    const char *a[MOST];
    for (int i = 0; i < j->k; ++i) a[i] = j->in[i] + begin;
    word sum = ZERO;
#define READ(count, ahead) sum = read_k(count, a, end - begin, ahead)
    if (j->ahead) {
        BY_COUNT(j->k, j->ahead, READ)
    } else {
        BY_COUNT(j->k, 0, READ)
    }
    swallow(sum);
}

static void combine_part(const job *j, int index, int threads) {
    size_t begin, end;
    partition(j->bytes, 4096, index, threads, &begin, &end);
    const char *a[MOST];
    for (int i = 0; i < j->k; ++i) a[i] = j->in[i] + begin;
#define COMBINE_NT(count, ahead) combine_k(count, a, j->out + begin, end - begin, ahead, 1)
#define COMBINE(count, ahead) combine_k(count, a, j->out + begin, end - begin, ahead, 0)
    if (j->nt && j->ahead) {
        BY_COUNT(j->k, j->ahead, COMBINE_NT)
    } else if (j->nt) {
        BY_COUNT(j->k, 0, COMBINE_NT)
    } else if (j->ahead) {
        BY_COUNT(j->k, j->ahead, COMBINE)
    } else {
        BY_COUNT(j->k, 0, COMBINE)
    }
}

/* The first offset from `at` on where a cache line of `out` begins. */
static size_t line_above(const char *out, size_t at) { return at + (LINE - (uintptr_t)(out + at) % LINE) % LINE; }

/* Two narrow arrays beside one of k columns: pieces of 4 KiB of y and g, and what belongs to them of x and out. */
static void columns_part(const job *j, int index, int threads) {
    size_t begin, end, piece = 4096;
    partition(j->bytes, piece, index, threads, &begin, &end);
    word sum = ZERO;
    for (size_t i = begin; i < end; i += piece) {
        size_t n = end - i < piece ? end - i : piece;
        const char *narrow[2] = {j->in[0] + i, j->in[1] + i};
        sum = ADD(sum, read_k(2, narrow, n, 0));
        for (int c = 0; c < j->k; ++c) {
            size_t at = j->rows ? i * (size_t)j->k + (size_t)c * n : (size_t)c * j->bytes + i;
            const char *x = j->in[2] + at;
            if (!j->out) {
                sum = ADD(sum, j->ahead ? read_k(1, &x, n, j->ahead) : read_k(1, &x, n, 0));
                continue;
            }
            /* Pieces of out meet between two lines, so that no line is written in two ways. */
            int first = i == begin && (c == 0 || !j->rows), last = i + n == end && (c + 1 == j->k || !j->rows);
            size_t low = first ? at : line_above(j->out, at), high = last ? at + n : line_above(j->out, at + n);
            x = j->in[2] + low;
            if (j->nt)
                combine_k(1, &x, j->out + low, high - low, j->ahead, 1);
            else
                combine_k(1, &x, j->out + low, high - low, j->ahead, 0);
        }
    }
    swallow(sum);
}

/* ---- threads: started once; after a job a worker looks for the next one for a while, then sleeps ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_uint generation;
    atomic_int left;
    atomic_int caller_cpu;
    int started, threads;
    job now;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* Linux may wake a worker on the CPU of its caller and leave it there: it moves away. */
static void leave_cpu_of_caller(void) {
#ifdef __linux__
    int caller = atomic_load(&pool.caller_cpu);
    cpu_set_t allowed, others;
    if (caller < 0 || sched_getcpu() != caller || sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    CPU_CLR(caller, &others);
    if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others))
        sched_setaffinity(0, sizeof allowed, &allowed);
#endif
}

static void *worker(void *arg) {
    int index = (int)(intptr_t)arg;
    unsigned seen = 0;
    for (;;) {
        int64_t until = now_ns() + SPIN_NS;
        while (atomic_load_explicit(&pool.generation, memory_order_acquire) == seen && now_ns() < until) PAUSE;
        pthread_mutex_lock(&pool.lock);
        while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = atomic_load(&pool.generation);
        job mine = pool.now;
        int threads = pool.threads;
        pthread_mutex_unlock(&pool.lock);
        if (index >= threads) continue; /* not counted in `left` */
        leave_cpu_of_caller();
        mine.part(&mine, index, threads);
        atomic_fetch_sub_explicit(&pool.left, 1, memory_order_release);
    }
    return NULL;
}

/* One caller at a time, as the benchmarks are. Returns the number of threads that took part. */
static int perform(const job *j, int threads) {
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (; pool.started < threads - 1; ++pool.started) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.started + 1))) {
            threads = pool.started + 1;
            break;
        }
        pthread_detach(thread);
    }
    if (threads <= 1) {
        j->part(j, 0, 1);
        return 1;
    }
    pthread_mutex_lock(&pool.lock);
    pool.now = *j;
    pool.threads = threads;
#ifdef __linux__
    atomic_store(&pool.caller_cpu, sched_getcpu());
#else
    atomic_store(&pool.caller_cpu, -1);
#endif
    atomic_store(&pool.left, threads - 1);
    atomic_fetch_add_explicit(&pool.generation, 1, memory_order_release);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    j->part(j, 0, threads);
    int rounds = 0;
    while (atomic_load_explicit(&pool.left, memory_order_acquire)) {
        PAUSE;
        if (++rounds % 4096 == 0) sched_yield();
    }
    return threads;
}

/* ---- what stream.py calls ---- */

/* Sum of all that was only read, as words of 64 bits; what is left over at an end counts byte by byte. */
uint64_t stream_total(void) { return atomic_load(&sink); }

/* Reads k arrays (1 to 4). */
int stream_read(int threads, int k, const void *const *in, size_t bytes, size_t ahead) {
    if (k < 1 || k > 4) return -1;
    job j = {.part = read_part, .k = k, .bytes = bytes, .ahead = ahead};
    for (int i = 0; i < k; ++i) j.in[i] = in[i];
    return perform(&j, threads);
}

/* Reads k arrays (0 to 4) and writes one. */
int stream_combine(int threads, int k, const void *const *in, void *out, size_t bytes, size_t ahead, int nt) {
    if (k < 0 || k > 4) return -1;
    job j = {.part = combine_part, .k = k, .out = out, .bytes = bytes, .ahead = ahead, .nt = nt};
    for (int i = 0; i < k; ++i) j.in[i] = in[i];
    return perform(&j, threads);
}

/* Reads two arrays of `bytes` and one of k times as many, and writes another such where `out` is not null. */
int stream_columns(int threads, int k, const void *y, const void *g, const void *x, void *out, size_t bytes, int rows,
                   size_t ahead, int nt) {
    job j = {.part = columns_part, .k = k, .in = {y, g, x}, .out = out, .bytes = bytes, .ahead = ahead, .nt = nt,
             .rows = rows};
    return perform(&j, threads);
}
