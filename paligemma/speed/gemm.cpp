// The products of a prompt: one matrix times many tokens, y = x W^T + bias.
//
// With one token the work is reading the matrix (gemv.cpp); with hundreds it is arithmetic. A processor reaches its
// full speed only on numbers in its registers, so the product is cut into tiles whose sums stay there, and what a tile
// needs next lies in order in the nearest cache (Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix
// Multiplication"). Sums are float32; bfloat16 weights are widened on their way in, so they need no copy in memory.
//
// M tokens of K numbers, `rows` rows of the matrix. fast.py calls `linear_of_many`.

#include <algorithm>
#include <cstddef>

#include "simd.h"

#ifdef __AVX512F__
constexpr int ROWS = 14;  // a tile: 14 rows times 2 vectors of tokens are 28 sums, of 32 registers
#else
constexpr int ROWS = 6;  // 12 sums, of 16 registers
#endif
constexpr int VECTORS = 2;
constexpr int PANEL = VECTORS * LANES;  // tokens of a tile
constexpr int DEPTH = 256;              // columns that are worked on at a time
constexpr int STRIDE = DEPTH + LANES;   // between widened rows: with a power of two they would compete for cache lines
constexpr int SUMS = 320 * 1024;        // sums that a thread keeps at a time: 1.25 MB
constexpr int AT_ONCE = 512;            // tokens, at most: a longer prompt goes through in parts

static int round_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Two vectors' numbers by turns, as two halves of a pack of cards are shuffled: the first half of the result, or the
// second.
#ifdef __AVX512F__
const Ints FIRST = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#else
const Ints FIRST = {0, 8, 1, 9, 2, 10, 3, 11};
#endif
const Ints SECOND = FIRST + LANES / 2;

static inline Floats by_turns(Floats a, Floats b, Ints half) {
#ifdef __clang__  // has no such built-in function, and needs none
    Floats mixed;
    for (int i = 0; i < LANES; i++) mixed[i] = half[i] < LANES ? a[half[i]] : b[half[i] - LANES];
    return mixed;
#else
    return __builtin_shuffle(a, b, half);
#endif
}

// LANES vectors as the rows of a square: its columns. Each shuffle doubles the distance of numbers that were neighbours
// in a row; after log2(LANES) of them they are a row apart.
static inline void transpose(Floats (&rows)[LANES]) {
    for (int distance = 1; distance < LANES; distance *= 2) {
        Floats mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = by_turns(rows[i], rows[i + LANES / 2], FIRST);
            mixed[2 * i + 1] = by_turns(rows[i], rows[i + LANES / 2], SECOND);
        }
        std::copy(mixed, mixed + LANES, rows);
    }
}

// Columns `first` to `first + depth` of the tokens, in the order in which the tiles read them: panel after panel, in
// each [depth, width of the panel]. What is missing to whole vectors is filled with zeros.
template <class N>
static void lay_out(const N* x, int M, int K, int first, int depth, float* to) {
    for (int token = 0; token < M; token += LANES) {
        const int panel = token / PANEL * PANEL, width = std::min(PANEL, round_up(M, LANES) - panel);
        const int count = std::min(LANES, M - token);
        const N* from = x + (size_t)token * K + first;
        float* out = to + (size_t)panel * depth + token - panel;
        int k = 0;
        for (; k + LANES <= depth; k += LANES) {
            Floats square[LANES] = {};
            for (int i = 0; i < count; i++) square[i] = load(from + (size_t)i * K + k);
            transpose(square);
            for (int i = 0; i < LANES; i++) store(out + (k + i) * width, square[i]);
        }
        for (; k < depth; k++)
            for (int i = 0; i < LANES; i++) out[k * width + i] = i < count ? widen(from[(size_t)i * K + k]) : 0.0f;
    }
}

// `count` rows of the matrix, `depth` of their columns, to float32; the rows after them are asked for in advance.
template <class N>
static void widen_rows(const N* w, int K, int count, int depth, float* to) {
    for (int r = 0; r < count; r++, w += K, to += STRIDE) {
        int k = 0;
        for (; k + LANES <= depth; k += LANES) {
            store(to + k, load(w + k));
            __builtin_prefetch(w + (size_t)ROWS * K + k, 0, 2);
        }
        for (; k < depth; k++) to[k] = widen(w[k]);
    }
}

// One tile: ROWS rows times V vectors of tokens, added to sums that lie `stride` apart. This is where the time goes.
template <int V>
static void add_tile(const float* w, const float* x, int depth, float* y, size_t stride) {
    Floats sums[ROWS][V];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < V; v++) sums[r][v] = load(y + r * stride + v * LANES);
    for (int k = 0; k < depth; k++) {
        Floats tokens[V];
        for (int v = 0; v < V; v++) {
            tokens[v] = load(x + (k * V + v) * LANES);
            __builtin_prefetch(x + ((k + 16) * V + v) * LANES);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < V; v++) sums[r][v] += w[r * STRIDE + k] * tokens[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < V; v++) store(y + r * stride + v * LANES, sums[r][v]);
}

// Finished sums [count, width] to the output [M, .] whose rows are `stride` apart.
template <class N>
static void write_out(const float* sums, int M, int width, int count, N* y, size_t stride) {
    for (int token = 0; token < M; token += LANES) {
        const int tokens = std::min(LANES, M - token);
        int r = 0;
        for (; r + LANES <= count; r += LANES) {
            Floats square[LANES];
            for (int i = 0; i < LANES; i++) square[i] = load(sums + (size_t)(r + i) * width + token);
            transpose(square);
            for (int i = 0; i < tokens; i++) store(y + (token + i) * stride + r, square[i]);
        }
        for (; r < count; r++)
            for (int i = 0; i < tokens; i++) store(y + (token + i) * stride + r, sums[(size_t)r * width + token + i]);
    }
}

// Memory that one thread works in: a tile's rows, and its sums.
static size_t numbers_of_a_thread(int width) { return ROWS * STRIDE + (size_t)std::max(SUMS, ROWS * width); }

// x [M, K] times the matrix [rows, K] -> y [M, rows]; each thread takes a share of the rows.
template <class N>
static void linear(const N* weights, const N* x, const N* bias, int M, int K, int rows, N* y, float* work, int threads) {
    const int width = round_up(M, LANES), groups = round_up(rows, ROWS) / ROWS;  // a group: the rows of a tile
    const int groups_at_once = std::max(1, SUMS / (ROWS * width));
    float* laid_out = work;  // [K / DEPTH] times what `lay_out` makes
    work += (size_t)K * width;

#pragma omp parallel for num_threads(threads) schedule(static)
    for (int first = 0; first < K; first += DEPTH)
        lay_out(x, M, K, first, std::min(DEPTH, K - first), laid_out + (size_t)first * width);

#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        float *wide = work + thread * numbers_of_a_thread(width), *sums = wide + ROWS * STRIDE;
        const int last_group = (int64_t)groups * (thread + 1) / threads;
        for (int start = (int64_t)groups * thread / threads; start < last_group; start += groups_at_once) {
            const int end = std::min(start + groups_at_once, last_group);
            const int first_row = start * ROWS, count = std::min(end * ROWS, rows) - first_row;
            for (int r = 0; r < (end - start) * ROWS; r++)
                std::fill_n(sums + (size_t)r * width, width, bias && r < count ? widen(bias[first_row + r]) : 0.0f);
            for (int first = 0; first < K; first += DEPTH) {
                const int depth = std::min(DEPTH, K - first);
                for (int row = 0; row < count; row += ROWS) {
                    const N* part = weights + (size_t)(first_row + row) * K + first;
                    widen_rows(part, K, std::min(ROWS, count - row), depth, wide);
                    for (int token = 0; token < width; token += PANEL) {
                        const float* tokens = laid_out + (size_t)first * width + (size_t)token * depth;
                        float* y = sums + (size_t)row * width + token;
                        if (token + PANEL <= width) add_tile<VECTORS>(wide, tokens, depth, y, width);
                        else add_tile<1>(wide, tokens, depth, y, width);
                    }
                }
            }
            write_out(sums, M, width, count, y + first_row, rows);
        }
    }
}

static int tokens_at_once(int M) {  // equal parts: a part of few tokens would read the whole matrix for them
    const int parts = round_up(M, AT_ONCE) / AT_ONCE;
    return round_up(round_up(M, parts) / parts, PANEL);
}

// float32 numbers of memory that `linear_of_many` needs for its work
extern "C" int64_t work_of_many(int32_t M, int32_t K, int32_t threads) {
    const int width = round_up(std::min(tokens_at_once(M), M), LANES);
    return (int64_t)K * width + threads * (int64_t)numbers_of_a_thread(width);
}

// x [M, K] times the matrix [rows, K], plus bias [rows] (null: none) -> y [M, rows]. All float32 if `wide`, else bfloat16.
extern "C" void linear_of_many(
    const void* weights, const void* x, const void* bias, int32_t M, int32_t K, int32_t rows, void* y, float* work,
    int32_t threads, int32_t wide
) {
    const int step = tokens_at_once(M);
    for (int start = 0; start < M; start += step) {
        const int count = std::min(step, M - start);
        const size_t in = (size_t)start * K, out = (size_t)start * rows;
        if (wide) {
            linear((const float*)weights, (const float*)x + in, (const float*)bias, count, K, rows, (float*)y + out, work, threads);
        } else {
            linear((const bfloat16*)weights, (const bfloat16*)x + in, (const bfloat16*)bias, count, K, rows, (bfloat16*)y + out, work, threads);
        }
    }
}

template <class N>
static void gelu(const N* x, N* y, int64_t count, int threads) {
    const int64_t whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < whole; start += LANES) {
        Floats values = load(x + start);
        for (int i = 0; i < LANES; i++) values[i] = gelu(values[i]);
        store(y + start, values);
    }
    for (int64_t i = whole; i < count; i++) store(y + i, gelu(widen(x[i])));
}

// GELU of `count` numbers, rounded once.
extern "C" void gelu_of_many(const void* x, void* y, int64_t count, int32_t threads, int32_t wide) {
    wide ? gelu((const float*)x, (float*)y, count, threads) : gelu((const bfloat16*)x, (bfloat16*)y, count, threads);
}
