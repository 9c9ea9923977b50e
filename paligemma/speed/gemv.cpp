// One step of the decoder: a token in, the logits of the next token out, for all rows of a batch.
//
// The arithmetic is that of modeling_gemma.py and modeling_gemma2.py for L = 1, written as loops. Two things make it
// fast. Each weight is read from memory once, in order, and nothing else of any size is: at one token a time the weights
// are nearly all the work. And no Python runs between the layers. Numbers are float32 from the embedding to the logits;
// weights and cache are widened as they are read. fast.py compiles this file and calls `decode_step`.
//
// Symbols as in the course: B rows, T tokens in all (the new one is the last), D width, H query heads, H_kv key/value
// heads, d head size, V vocabulary.

#include <algorithm>
#include <vector>

#include "simd.h"

// ----------------------------------------------------------------------------------------- matrix times a few vectors

struct Matrix {
    const void* weights;  // [rows, columns], as nn.Linear keeps them
    const float* scale;   // [rows] for int8 weights, else null
    int32_t type;         // 0: float32, 1: bfloat16, 2: int8
};

// sums[r][b][a] += row r of the matrix, columns k to k + LANES, times vector b
template <int R, int B, int A, class W>
static inline void multiply_add(const W* w, const float* x, size_t K, size_t k, int a, Floats (&sums)[R][B][A]) {
    Floats weights[R];
    for (int r = 0; r < R; r++) weights[r] = load(w + r * K + k);
    for (int b = 0; b < B; b++) {
        Floats values = load(x + b * K + k);
        for (int r = 0; r < R; r++) sums[r][b][a] += weights[r] * values;
    }
}

// R rows of a matrix [.., K] times B vectors [B, K]: R * B dot products whose accumulators do not wait for one another
// (one vector alone has two for each row). Prefetches the rows after these, 8 KB ahead or more, into L2, which has more
// outstanding-miss slots than L1: so a matrix is read at the speed of the memory.
template <int R, int B, class W>
static void dot_products(const W* w, const float* x, size_t K, float (&out)[R][B]) {
    // Weights that are taken at a time: a cache line, so that each is prefetched once; or one vector, where 32 registers
    // are filled by the accumulators of many vectors.
    constexpr int CHUNK = B <= 2 || LANES == 8 ? 64 / sizeof(W) : LANES;
    constexpr int ACCUMULATORS = B == 1 && CHUNK > LANES ? 2 : 1;
    Floats sums[R][B][ACCUMULATORS] = {};
    const size_t ahead = std::max<size_t>(R, 8192 / (K * sizeof(W))) * K;
    size_t k = 0;
    for (; k + CHUNK <= K; k += CHUNK) {
        for (int r = 0; r < R; r++) __builtin_prefetch(w + r * K + k + ahead, 0, 2);
#pragma GCC unroll 8
        for (int i = 0; i < CHUNK / LANES; i++) multiply_add(w, x, K, k + i * LANES, i % ACCUMULATORS, sums);
    }
    for (; k + LANES <= K; k += LANES) multiply_add(w, x, K, k, 0, sums);
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++) {
            Floats total = sums[r][b][0];
            for (int a = 1; a < ACCUMULATORS; a++) total += sums[r][b][a];
            out[r][b] = sum(total);
            for (size_t i = k; i < K; i++) out[r][b] += widen(w[r * K + i]) * x[b * K + i];
        }
}

// `rows` rows of a matrix times x [B, K] -> y [B, .] whose rows are `stride` apart.
template <int R, int B, class W>
static void gemv_rows(const W* w, const float* scale, const float* x, size_t K, int rows, float* y, size_t stride) {
    int row = 0;
    for (; row + R <= rows; row += R) {
        float out[R][B];
        dot_products(w + row * K, x, K, out);
        for (int r = 0; r < R; r++)
            for (int b = 0; b < B; b++) y[b * stride + row + r] = out[r][b] * (scale ? scale[row + r] : 1.0f);
    }
    if (R > 1) gemv_rows<1, B, W>(w + row * K, scale ? scale + row : nullptr, x, K, rows - row, y + row, stride);
}

// The same for any B: eight, four or two vectors share each weight that is read.
template <class W>
static void gemv_batch(const W* w, const float* scale, const float* x, int B, size_t K, int rows, float* y, size_t stride) {
    constexpr int R = LANES == 16 ? 3 : 4;  // 3 rows times 8 vectors are 24 accumulators, of 32 registers
    int b = 0;
    for (; b + 8 <= B; b += 8) gemv_rows<R, 8, W>(w, scale, x + b * K, K, rows, y + b * stride, stride);
    for (; b + 4 <= B; b += 4) gemv_rows<4, 4, W>(w, scale, x + b * K, K, rows, y + b * stride, stride);
    for (; b + 2 <= B; b += 2) gemv_rows<4, 2, W>(w, scale, x + b * K, K, rows, y + b * stride, stride);
    for (; b < B; b++) gemv_rows<4, 1, W>(w, scale, x + b * K, K, rows, y + b * stride, stride);
}

// Rows `first` to `first + rows` of the matrix, of whatever type, times x [B, K] -> y [B, .]
static void gemv_dispatch(const Matrix& m, const float* x, int B, size_t K, int first, int rows, float* y, size_t stride) {
    const size_t skip = first * K;
    const float* scale = m.scale ? m.scale + first : nullptr;
    if (m.type == 0) gemv_batch((const float*)m.weights + skip, scale, x, B, K, rows, y, stride);
    if (m.type == 1) gemv_batch((const bfloat16*)m.weights + skip, scale, x, B, K, rows, y, stride);
    if (m.type == 2) gemv_batch((const int8_t*)m.weights + skip, scale, x, B, K, rows, y, stride);
}

// The rows of a matrix [rows, K], each times its weight, added up -> y [K]. Four rows at once: y is fetched less often.
template <class W>
static void weighted_sum(const W* w, const float* weight, int rows, int K, float* y) {
    std::fill(y, y + K, 0.0f);
    int row = 0;
    for (; row + 4 <= rows; row += 4, w += 4 * K, weight += 4) {
        int k = 0;
        for (; k + LANES <= K; k += LANES) {
            Floats total = read<Floats>(y + k);
            for (int r = 0; r < 4; r++) total += load(w + r * K + k) * weight[r];
            store(y + k, total);
        }
        for (; k < K; k++)
            for (int r = 0; r < 4; r++) y[k] += widen(w[r * K + k]) * weight[r];
    }
    for (; row < rows; row++, w += K, weight++)
        for (int k = 0; k < K; k++) y[k] += widen(w[k]) * *weight;
}

constexpr int BLOCK = 32;  // rows that a thread takes at a time: they stay in its L2 cache for all B vectors

// The whole matrix [rows, K] times x [B, K] -> y [B, rows], rows shared out among the threads.
static void linear(const Matrix& matrix, const float* x, int B, size_t K, int rows, float* y) {
#pragma omp for schedule(static)
    for (int first = 0; first < rows; first += BLOCK)
        gemv_dispatch(matrix, x, B, K, first, std::min(BLOCK, rows - first), y + first, rows);
}

// -------------------------------------------------------------------------------------------------------- small parts

// The library's tanh here: what is rounded is multiplied by the cap.
static inline float softcap(float x, float cap) { return cap > 0 ? cap * std::tanh(x / cap) : x; }

// x [B, D] -> y [B, D], or added to y. `factor` is 1 + weight.
static void rms_norm(const float* x, const float* factor, float eps, int B, int D, float* y, bool add) {
#pragma omp for
    for (int b = 0; b < B; b++) {
        const float* row = x + (size_t)b * D;
        float squares = 0;
        for (int i = 0; i < D; i++) squares += row[i] * row[i];
        float scale = 1 / std::sqrt(squares / D + eps);
        float* to = y + (size_t)b * D;
        for (int i = 0; i < D; i++) to[i] = row[i] * scale * factor[i] + (add ? to[i] : 0.0f);
    }
}

// gate = gelu(gate) * up, `count` numbers
static void gated(float* gate, const float* up, int count) {
    int i = 0;
    for (; i + LANES <= count; i += LANES) store(gate + i, gelu(load(gate + i)) * load(up + i));
    for (; i < count; i++) gate[i] = gelu(gate[i]) * up[i];
}

static void add(float* x, const float* y, int count) {
#pragma omp for
    for (int i = 0; i < count; i++) x[i] += y[i];
}

// ---------------------------------------------------------------------------------------------------------- the model

struct Layer {
    Matrix q, k, v, o, gate, up, down;
    const float *before_attention, *after_attention, *before_mlp, *after_mlp;  // 1 + weight [D]; null: no such norm
    int32_t sliding;                                                           // does this layer look back a window only?
};

struct Model {
    const Layer* layers;
    const void* embedding;  // [V, D]
    Matrix head;            // [V, D]: the embedding again, or its 8-bit form
    const float* final_norm;
    const float* inv_freq;  // [d / 2]
    float embedding_scale, eps, attention_scale, attention_cap, final_cap;  // a cap of 0: none
    int32_t num_layers, D, I, H, H_kv, d, V, window;                        // I: width of the MLP. window 0: none
};

struct Step {
    const int64_t *tokens, *attention_mask, *token_type_ids;  // [B], and two [B, T] whose rows are `stride` apart
    int64_t stride;
    void *keys, *values;  // the cache, [layers, B, H_kv, max_length, d]; column T - 1 is written here
    float* logits;        // [B, V]
    int32_t B, T, max_length, threads;
};

// Which keys the new token sees, [B, T]: no padding, and with a window only the last `window` tokens and those of its
// own step (make_attn_mask in modeling_gemma.py). The new token is the latest, so nothing is hidden as "later".
static void find_visible(const Step& step, int window, uint8_t* visible) {
    for (int b = 0; b < step.B; b++) {
        bool same_step = true;
        for (int t = step.T - 1; t >= 0; t--) {
            bool near = !window || step.T - 1 - t < window || same_step;
            visible[(size_t)b * step.T + t] = near && step.attention_mask[b * step.stride + t];
            if (step.token_type_ids[b * step.stride + t]) same_step = false;  // it began a step; t - 1 is before it
        }
    }
}

// C: type of the embedding and of the cache
template <class C>
static void run(const Model& m, const Step& step) {
    const int B = step.B, D = m.D, H = m.H, H_kv = m.H_kv, d = m.d, T = step.T, G = H / H_kv, half = d / 2;
    std::vector<float> x(B * D), y(B * D), z(B * D), q(B * H * d), k(B * H_kv * d), v(B * H_kv * d), heads(B * H * d);
    std::vector<float> scores((size_t)B * H * T), hidden((size_t)B * m.I), up(hidden), cosines(B * half), sines(B * half);
    std::vector<uint8_t> sees_all((size_t)B * T), sees_window((size_t)B * T), everything(T, 1);
    find_visible(step, 0, sees_all.data());
    find_visible(step, m.window, sees_window.data());

    for (int b = 0; b < B; b++) {
        const C* row = (const C*)m.embedding + (size_t)step.tokens[b] * D;
        for (int i = 0; i < D; i++) x[b * D + i] = widen(row[i]) * m.embedding_scale;
        int64_t position = 0;  // counts the real tokens from 1
        for (int t = 0; t < T; t++) position += step.attention_mask[b * step.stride + t];
        for (int i = 0; i < half; i++) {
            float angle = std::max<int64_t>(position, 1) * m.inv_freq[i];
            cosines[b * half + i] = std::cos(angle), sines[b * half + i] = std::sin(angle);
        }
    }

#pragma omp parallel num_threads(step.threads)
    for (int i = 0; i < m.num_layers; i++) {
        const Layer& layer = m.layers[i];
        const uint8_t* visible = (layer.sliding ? sees_window : sees_all).data();
        auto column = [&](void* cache, int b, int head) {  // where this layer's tokens begin, [max_length, d]
            return (C*)cache + (((size_t)i * B + b) * H_kv + head) * step.max_length * d;
        };

        rms_norm(x.data(), layer.before_attention, m.eps, B, D, y.data(), false);
        linear(layer.q, y.data(), B, D, H * d, q.data());
        linear(layer.k, y.data(), B, D, H_kv * d, k.data());
        linear(layer.v, y.data(), B, D, H_kv * d, v.data());

#pragma omp for
        for (int n = 0; n < B * (H + H_kv); n++) {  // turn every head; keys and values go into the cache
            int b = n / (H + H_kv), head = n % (H + H_kv);
            bool is_query = head < H;
            float* vector = is_query ? &q[(b * H + head) * d] : &k[(b * H_kv + head - H) * d];
            for (int j = 0; j < half; j++) {
                float first = vector[j], second = vector[j + half];
                float cosine = cosines[b * half + j], sine = sines[b * half + j];
                vector[j] = first * cosine - second * sine;
                vector[j + half] = second * cosine + first * sine;
            }
            if (is_query) continue;
            C *key = column(step.keys, b, head - H) + (size_t)(T - 1) * d;
            C *value = column(step.values, b, head - H) + (size_t)(T - 1) * d;
            for (int j = 0; j < d; j++) store(key + j, vector[j]), store(value + j, v[(b * H_kv + head - H) * d + j]);
        }

        // Attention: the keys are a matrix [T, d], a query is a vector. G queries share the keys, which are not copied.
        const int blocks = (T + BLOCK - 1) / BLOCK;
#pragma omp for
        for (int n = 0; n < B * H_kv * blocks; n++) {
            int b = n / (H_kv * blocks), head = n / blocks % H_kv, first = n % blocks * BLOCK;
            const int count = std::min(BLOCK, T - first);
            const C* keys = column(step.keys, b, head) + (size_t)first * d;
            float* score = &scores[(size_t)(b * H + head * G) * T + first];  // of the first query; others lie T apart
            gemv_batch(keys, nullptr, &q[(b * H + head * G) * d], G, d, count, score, T);
            for (int g = 0; g < G; g++)
                for (int t = 0; t < count; t++)
                    score[g * T + t] = softcap(score[g * T + t] * m.attention_scale, m.attention_cap);
        }
#pragma omp for
        for (int h = 0; h < B * H; h++) {  // softmax over what is visible, then the weighted sum of the values
            float* weight = &scores[(size_t)h * T];
            const uint8_t* sees = visible + (size_t)(h / H) * T;
            float largest = -3e38f, total = 0;
            if (std::find(sees, sees + T, 1) == sees + T) {  // nothing: all of it alike, as in additive_mask
                std::fill(weight, weight + T, 0.0f);
                sees = everything.data();
            }
            for (int t = 0; t < T; t++) largest = sees[t] ? std::max(largest, weight[t]) : largest;
            for (int t = 0; t < T; t++) weight[t] = sees[t] ? std::exp(weight[t] - largest) : 0.0f;
            for (int t = 0; t < T; t++) total += weight[t];
            const C* value = column(step.values, h / H, h % H / G);
            float* out = &heads[(size_t)h * d];
            for (int t = 0; t < T; t++) weight[t] /= total;
            weighted_sum(value, weight, T, d, out);
        }

        linear(layer.o, heads.data(), B, H * d, D, y.data());
        if (layer.after_attention) rms_norm(y.data(), layer.after_attention, m.eps, B, D, x.data(), true);
        else add(x.data(), y.data(), B * D);

        rms_norm(x.data(), layer.before_mlp, m.eps, B, D, y.data(), false);
#pragma omp for schedule(static)
        for (int first = 0; first < m.I; first += BLOCK) {
            const int rows = std::min(BLOCK, m.I - first);
            float* gate = &hidden[first];
            gemv_dispatch(layer.gate, y.data(), B, D, first, rows, gate, m.I);
            gemv_dispatch(layer.up, y.data(), B, D, first, rows, &up[first], m.I);
            for (int b = 0; b < B; b++) gated(gate + (size_t)b * m.I, &up[(size_t)b * m.I + first], rows);
        }
        linear(layer.down, hidden.data(), B, m.I, D, y.data());
        if (layer.after_mlp) rms_norm(y.data(), layer.after_mlp, m.eps, B, D, x.data(), true);
        else add(x.data(), y.data(), B * D);

        if (i + 1 == m.num_layers) {
            rms_norm(x.data(), m.final_norm, m.eps, B, D, z.data(), false);
            linear(m.head, z.data(), B, D, m.V, step.logits);
            if (m.final_cap > 0) {
#pragma omp for
                for (int64_t n = 0; n < (int64_t)B * m.V; n++) step.logits[n] = softcap(step.logits[n], m.final_cap);
            }
        }
    }
}

// `is_float32`: are embedding and cache float32, or bfloat16? Returns 0, or what is wrong and nothing was done:
// 1 a token that is not in the vocabulary, 2 a negative token type.
EXPORT int32_t decode_step(const Model* model, const Step* step, int32_t is_float32) {
    for (int b = 0; b < step->B; b++) {
        if (step->tokens[b] < 0 || step->tokens[b] >= model->V) return 1;
        const int64_t* types = step->token_type_ids + b * step->stride;
        if (std::any_of(types, types + step->T, [](int64_t type) { return type < 0; })) return 2;
    }
    is_float32 ? run<float>(*model, *step) : run<bfloat16>(*model, *step);
    return 0;
}

// For the benchmark: read a matrix once, as above, and do nothing else. Returns a sum, so that nothing is left out.
EXPORT float read_matrix(const float* weights, int64_t rows, int64_t K, int32_t threads) {
    float total = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : total) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        Floats sums[4] = {};
        for (int64_t k = 0; k + 4 * LANES <= K; k += 4 * LANES)
            for (int i = 0; i < 4; i++) {
                sums[i] += load(weights + row * K + k + i * LANES);
                __builtin_prefetch(weights + (row + 1) * K + k + i * LANES);
            }
        for (int i = 0; i < 4; i++) total += sum(sums[i]);
    }
    return total;
}
