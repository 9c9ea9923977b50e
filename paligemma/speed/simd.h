// Numbers in memory, float32, bfloat16 or 8-bit, as vectors of float32 and back. For gemv.cpp and gemm.cpp.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
constexpr int LANES = 16;  // numbers handled at once
#else
constexpr int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(2 * LANES)));
typedef uint16_t UnsignedShorts __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));

struct bfloat16 {
    uint16_t bits;  // the upper half of a float32
};

template <class To, class From>
static inline To copy_bits(const From& from) {
    To to;
    static_assert(sizeof to == sizeof from, "copy_bits needs equal sizes");
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class Vector, class Number>
static inline Vector read(const Number* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline Floats load(const float* p) { return read<Floats>(p); }
#ifdef __AVX512F__  // one instruction each for widening, which GCC does not find in the general form below
static inline Floats load(const bfloat16* p) {
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline Floats load(const int8_t* p) {
    return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))));
}
#else
static inline Floats load(const bfloat16* p) {
    return copy_bits<Floats>(__builtin_convertvector(read<UnsignedShorts>(p), Ints) << 16);
}
static inline Floats load(const int8_t* p) {
    Ints numbers = __builtin_convertvector(__builtin_convertvector(read<Bytes>(p), Shorts), Ints);
    return __builtin_convertvector(numbers, Floats);
}
#endif

static inline float widen(float x) { return x; }
static inline float widen(bfloat16 x) { return copy_bits<float>(uint32_t(x.bits) << 16); }
static inline float widen(int8_t x) { return x; }

static inline void store(float* p, float x) { *p = x; }
static inline void store(bfloat16* p, float x) {  // round to nearest, ties to even
    uint32_t bits = copy_bits<uint32_t>(x);
    p->bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

static inline void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }
static inline void store(bfloat16* p, Floats v) {
    Ints bits = copy_bits<Ints>(v);
    auto upper = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Shorts);
    std::memcpy(p, &upper, sizeof upper);
}

static inline float sum(Floats v) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += v[i];
    return total;
}

static inline float gelu(float x) {  // tanh by way of exp, which compilers have for many numbers at once
    float z = 0.7978845608f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
    float e = std::exp(2 * std::min(std::max(z, -15.0f), 15.0f));
    return 0.5f * x * (1 + (e - 1) / (e + 1));
}
