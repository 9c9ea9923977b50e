// Matrix products of a prompt (GEMM): one matrix times many tokens, y = x W^T + bias.
//
// With one token the work is reading the matrix (gemv.cpp); with hundreds it is arithmetic. A processor reaches its
// full speed only on numbers in its registers, so the product is cut into tiles whose accumulators stay there, and the
// tokens are packed into panels in the order in which the tiles read them (Goto and van de Geijn 2008, "Anatomy of
// High-Performance Matrix Multiplication"; the innermost loop is the "micro-kernel" of BLIS, Van Zee and van de Geijn
// 2015). Accumulators are float32; bfloat16 weights are widened on their way in, so they need no copy in memory.
//
// M tokens of K numbers, `rows` rows of the matrix. fast.py calls `linear_tiled`.

#include <algorithm>
#include <cstddef>

#include "simd.h"

#ifdef __AVX512F__
constexpr int ROWS = 14;  // a tile: 14 rows times 2 vectors of tokens are 28 accumulators, of 32 registers
#else
constexpr int ROWS = 6;  // 12 accumulators, of 16 registers
#endif
constexpr int VECTORS = 2;
constexpr int PANEL = VECTORS * LANES;  // tokens of a tile
constexpr int DEPTH = 256;              // columns that are worked on at a time
constexpr int STRIDE = DEPTH + LANES;   // between widened rows: with a power of two they would compete for cache lines
constexpr int ACCUMULATORS = 320 * 1024;  // that a thread keeps in its L2 cache at a time: 1.25 MB
constexpr int AT_ONCE = 512;            // tokens, at most: a longer prompt goes through in parts

static int round_up(int number, int multiple) { return (number + multiple - 1) / multiple * multiple; }

// Interleave two vectors: a0 b0 a1 b1 ... The lower half of the result (LOW), or the upper half (HIGH).
#ifdef __AVX512F__
const Ints LOW = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#else
const Ints LOW = {0, 8, 1, 9, 2, 10, 3, 11};
#endif
const Ints HIGH = LOW + LANES / 2;

static inline Floats interleave(Floats a, Floats b, Ints half) {
#ifdef __clang__  // has no such built-in function, and needs none
    Floats mixed;
    for (int i = 0; i < LANES; i++) mixed[i] = half[i] < LANES ? a[half[i]] : b[half[i] - LANES];
    return mixed;
#else
    return __builtin_shuffle(a, b, half);
#endif
}

// A square of LANES rows, transposed in place. Each interleaving doubles the distance of numbers that were neighbours in
// a row; after log2(LANES) of them they are a row apart.
static inline void transpose(Floats (&rows)[LANES]) {
    for (int distance = 1; distance < LANES; distance *= 2) {
        Floats mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = interleave(rows[i], rows[i + LANES / 2], LOW);
            mixed[2 * i + 1] = interleave(rows[i], rows[i + LANES / 2], HIGH);
        }
        std::copy(mixed, mixed + LANES, rows);
    }
}

// Pack columns `first` to `first + depth` of the tokens into panels of PANEL tokens, each [depth, width of the panel]: the
// order in which the micro-kernel reads them. What is missing to whole vectors is filled with zeros.
template <class N>
static void pack_panels(const N* x, int M, int K, int first, int depth, float* to) {
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

// `count` rows of the matrix, `depth` of their columns, to float32; prefetches the rows after them into L2.
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

// One tile: ROWS rows of the matrix times V vectors of tokens, added to accumulators [ROWS, V * LANES] whose rows are
// `stride` apart in memory and which stay in registers for `depth` steps.
template <int V>
static void micro_kernel(const float* w, const float* x, int depth, float* y, size_t stride) {
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

// float32 numbers of workspace for one thread: a tile's widened rows, and its accumulators.
static size_t workspace_per_thread(int width) { return ROWS * STRIDE + (size_t)std::max(ACCUMULATORS, ROWS * width); }

// x [M, K] times the matrix [rows, K] -> y [M, rows]; each thread takes a share of the rows.
template <class N>
static void linear(
    const N* weights, const N* x, const N* bias, int M, int K, int rows, N* y, float* workspace, int threads
) {
    const int width = round_up(M, LANES), groups = round_up(rows, ROWS) / ROWS;  // a group: the rows of a tile
    const int groups_at_once = std::max(1, ACCUMULATORS / (ROWS * width));
    float* panels = workspace;  // [K / DEPTH] times what `pack_panels` writes
    workspace += (size_t)K * width;

#pragma omp parallel for num_threads(threads) schedule(static)
    for (int first = 0; first < K; first += DEPTH)
        pack_panels(x, M, K, first, std::min(DEPTH, K - first), panels + (size_t)first * width);

#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; thread++) {
        float *wide_rows = workspace + thread * workspace_per_thread(width), *sums = wide_rows + ROWS * STRIDE;
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
                    widen_rows(part, K, std::min(ROWS, count - row), depth, wide_rows);
                    for (int token = 0; token < width; token += PANEL) {
                        const float* tokens = panels + (size_t)first * width + (size_t)token * depth;
                        float* y = sums + (size_t)row * width + token;
                        if (token + PANEL <= width) micro_kernel<VECTORS>(wide_rows, tokens, depth, y, width);
                        else micro_kernel<1>(wide_rows, tokens, depth, y, width);
                    }
                }
            }
            write_out(sums, M, width, count, y + first_row, rows);
        }
    }
}

static int tokens_at_once(int M) {  // equal parts: a part of few tokens would read the whole matrix for them
    const int parts = std::max(1, round_up(M, AT_ONCE) / AT_ONCE);
    return round_up(round_up(M, parts) / parts, PANEL);
}

// float32 numbers of workspace that `linear_tiled` needs
EXPORT int64_t workspace_size(int32_t M, int32_t K, int32_t threads) {
    const int width = round_up(std::min(tokens_at_once(M), M), LANES);
    return (int64_t)K * width + threads * (int64_t)workspace_per_thread(width);
}

template <class N>
static void linear_in_parts(
    const N* weights, const N* x, const N* bias, int M, int K, int rows, N* y, float* workspace, int threads
) {
    const int step = tokens_at_once(M);
    for (int start = 0; start < M; start += step) {
        const int count = std::min(step, M - start);
        linear(weights, x + (size_t)start * K, bias, count, K, rows, y + (size_t)start * rows, workspace, threads);
    }
}

// x [M, K] times the matrix [rows, K], plus bias [rows] (null: none) -> y [M, rows]. All float32 if `is_float32`, else
// bfloat16.
EXPORT void linear_tiled(
    const void* weights, const void* x, const void* bias, int32_t M, int32_t K, int32_t rows, void* y, float* workspace,
    int32_t threads, int32_t is_float32
) {
    auto run = [&](auto type) {
        using N = decltype(type);
        linear_in_parts((const N*)weights, (const N*)x, (const N*)bias, M, K, rows, (N*)y, workspace, threads);
    };
    is_float32 ? run(float()) : run(bfloat16());
}

template <class N>
static void gelu(const N* x, N* y, int64_t count, int threads) {
    const int64_t whole = count / LANES * LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t start = 0; start < whole; start += LANES) store(y + start, gelu(load(x + start)));
    for (int64_t i = whole; i < count; i++) store(y + i, gelu(widen(x[i])));
}

// GELU of `count` numbers, rounded once.
EXPORT void gelu_tanh(const void* x, void* y, int64_t count, int32_t threads, int32_t is_float32) {
    is_float32 ? gelu((const float*)x, (float*)y, count, threads) : gelu((const bfloat16*)x, (bfloat16*)y, count, threads);
}
