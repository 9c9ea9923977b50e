// SIMD load, widen and store for float32, bfloat16 and int8. For gemv.cpp and gemm.cpp.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifdef _WIN32
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C"
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
#ifdef __AVX512F__  // widening by single instructions: from the general form below GCC makes five for bfloat16, ten for int8
static inline Floats load(const bfloat16* p) {
    return Floats(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
}
static inline Floats load(const int8_t* p) {
    return Floats(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))));
}
#elif defined(__AVX2__)
static inline Floats load(const bfloat16* p) {
    return Floats(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
static inline Floats load(const int8_t* p) {
    return Floats(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))));
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

static inline Floats clamp(Floats x, float low, float high) {
    x = x < low ? low + Floats{} : x;
    return x > high ? high + Floats{} : x;
}

// e^x = 2^n * e^r with |r| <= ln(2) / 2, and e^r by the polynomial of Cephes' expf: not every compiler has an exp for
// vectors. The relative error is below 1e-6 for |x| < 20; beyond +-87 the result stays where it is there.
static inline Floats vector_exp(Floats x) {
    x = clamp(x, -87.0f, 87.0f);
    Ints n = __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? -0.5f + Floats{} : 0.5f + Floats{}), Ints);
    Floats whole = __builtin_convertvector(n, Floats);
    Floats r = x - whole * 0.69314718f;
    Floats p = 1.9875691500e-4f + Floats{};
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) p = p * r + c;
    return (p * r * r + r + 1.0f) * copy_bits<Floats>((n + 127) << 23);
}

static inline Floats gelu(Floats x) {  // the tanh form: 0.5 x (1 + tanh z) = x / (1 + e^(-2z))
    Floats z = 0.7978845608f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
    return x / (1.0f + vector_exp(-2.0f * z));
}
static inline float gelu(float x) { return gelu(Floats{x})[0]; }
