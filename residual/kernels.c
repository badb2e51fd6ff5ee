/* Group norm and SiLU as one operation on images in channels-last layout, and its backward pass.
 *
 *     z = gain * (x - mean) * rstd + offset,  y = silu ? z / (1 + exp(-z)) : z
 *
 * x, y and their gradients are (n, p, c): images, pixels, channels, as float or bfloat16. Everything is computed in
 * float. gain and offset are (n, c); mean and rstd are (n, g).
 *
 * And dropout, whose mask is a function of a key and the position of each element.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 128 }; /* pixels that are summed in float; sums of blocks are in double */

#define INLINE static inline __attribute__((always_inline))

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

INLINE float load(const void *x, int64_t i, int bf16) {
    return bf16 ? as_float((uint32_t)((const uint16_t *)x)[i] << 16) : ((const float *)x)[i];
}

INLINE void store(void *x, int64_t i, float value, int bf16) {
    if (bf16) { /* rounded to the nearest, to even in the middle; NaN stays NaN */
        uint32_t bits = as_bits(value);
        ((uint16_t *)x)[i] = value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    } else {
        ((float *)x)[i] = value;
    }
}

/* 1 / (1 + exp(-z)), with a relative error of about 5e-7. exp(r) on [-ln 2 / 2, ln 2 / 2] is a polynomial. The size of
 * z is limited to 60, because products with a denormal number are slow; as whole numbers, floats compare faster. For
 * NaN the result is a number, which callers multiply by z. */
INLINE float sigmoid(float z) {
    uint32_t size = as_bits(z) & 0x7fffffff, sixty = 0x42700000;
    float t = as_float((size < sixty ? size : sixty) | (~as_bits(z) & 0x80000000));
    float shifted = t * 1.44269504f + 12582912.0f; /* the low bits are the nearest whole number */
    float whole = shifted - 12582912.0f;
    float r = t - whole * 0.693359375f + whole * 2.12194440e-4f;
    float e = 1.0f + r * (1.0f + r * (0.49999749f + r * (0.16666631f + r * (0.041833804f + r * 0.0083572001f))));
    return 1.0f / (1.0f + e * as_float((as_bits(shifted) << 23) + 0x3f800000u));
}

/* z, or -60 below it, where the sigmoid is limited; NaN stays NaN. */
INLINE float limited(float z) { return z < -60.0f ? -60.0f : z; }

/* z = a x + b, and the normalised x = slope x + shift. */
INLINE void affine(float *a, float *b, float *slope, float *shift, const float *gain, const float *offset,
                   const float *mean, const float *rstd, int64_t c, int64_t g) {
    for (int64_t k = 0, j = 0; k < g; k++)
        for (; j < (k + 1) * (c / g); j++) {
            slope[j] = rstd[k];
            shift[j] = -mean[k] * rstd[k];
        }
    for (int64_t j = 0; j < c; j++) {
        a[j] = gain[j] * slope[j];
        b[j] = gain[j] * shift[j] + offset[j];
    }
}

INLINE void forward(const void *x, void *y, const float *gain, const float *offset, float *mean, float *rstd, int64_t p,
                    int64_t c, int64_t g, float eps, int silu, int bf16) {
    float a[c], b[c], slope[c], shift[c], sum[c], square[c];
    double means[c], squares[c]; /* of each channel: the mean, and the sum of squared deviations from it */
    for (int64_t j = 0; j < c; j++) means[j] = squares[j] = 0;
    for (int64_t start = 0; start < p; start += BLOCK) {
        int64_t stop = start + BLOCK < p ? start + BLOCK : p;
        double count = stop - start, share = count / stop;
        memset(sum, 0, sizeof sum);
        memset(square, 0, sizeof square);
        for (int64_t i = start; i < stop; i++) /* differences to the block's first pixel: large means cost no accuracy */
            for (int64_t j = 0; j < c; j++) {
                float v = load(x, i * c + j, bf16) - load(x, start * c + j, bf16);
                sum[j] += v;
                square[j] += v * v;
            }
        for (int64_t j = 0; j < c; j++) { /* two groups become one (Chan et al. 1979) */
            double mean_difference = sum[j] / count;
            double away = load(x, start * c + j, bf16) + mean_difference - means[j];
            means[j] += away * share;
            squares[j] += square[j] - mean_difference * sum[j] + away * away * share * start;
        }
    }
    int64_t width = c / g;
    for (int64_t k = 0; k < g; k++) {
        double total = 0, deviation = 0;
        for (int64_t j = k * width; j < (k + 1) * width; j++) total += means[j];
        double middle = total / width;
        for (int64_t j = k * width; j < (k + 1) * width; j++) {
            double away = means[j] - middle;
            deviation += squares[j] + p * away * away;
        }
        mean[k] = (float)middle;
        rstd[k] = (float)(1.0 / sqrt(deviation / (p * width) + eps));
    }
    affine(a, b, slope, shift, gain, offset, mean, rstd, c, g);
    for (int64_t i = 0; i < p; i++)
        for (int64_t j = 0; j < c; j++) {
            float z = load(x, i * c + j, bf16) * a[j] + b[j];
            store(y, i * c + j, silu ? limited(z) * sigmoid(z) : z, bf16);
        }
}

INLINE float gradient_of_z(float z, float dy, int silu) {
    float s = sigmoid(z);
    return silu ? dy * s * (1.0f + limited(z) * (1.0f - s)) : dy;
}

INLINE void backward(const void *x, const void *dy, void *dx, const float *gain, const float *offset, const float *mean,
                     const float *rstd, float *dgain, float *doffset, float *dz, int64_t p, int64_t c, int64_t g,
                     int silu, int bf16) {
    float a[c], b[c], slope[c], shift[c], sum[c], product[c];
    affine(a, b, slope, shift, gain, offset, mean, rstd, c, g);
    memset(dgain, 0, c * sizeof(float));
    memset(doffset, 0, c * sizeof(float));
    for (int64_t start = 0; start < p; start += BLOCK) {
        int64_t stop = start + BLOCK < p ? start + BLOCK : p;
        memset(sum, 0, sizeof sum);
        memset(product, 0, sizeof product);
        for (int64_t i = start; i < stop; i++)
            for (int64_t j = 0; j < c; j++) {
                float v = load(x, i * c + j, bf16);
                float d = gradient_of_z(v * a[j] + b[j], load(dy, i * c + j, bf16), silu);
                dz[i * c + j] = d;
                sum[j] += d;
                product[j] += d * (v * slope[j] + shift[j]);
            }
        for (int64_t j = 0; j < c; j++) {
            doffset[j] += sum[j];
            dgain[j] += product[j];
        }
    }
    /* dx = rstd (gain dz - mean over the group of gain dz - normalised x * mean of gain dz normalised x) */
    int64_t width = c / g;
    float *factor = product, *summand = sum;
    for (int64_t k = 0; k < g; k++) {
        double first = 0, second = 0;
        for (int64_t j = k * width; j < (k + 1) * width; j++) {
            first += gain[j] * doffset[j];
            second += gain[j] * dgain[j];
        }
        first *= rstd[k] / (p * width);
        second *= rstd[k] / (p * width);
        for (int64_t j = k * width; j < (k + 1) * width; j++) {
            factor[j] = (float)(second * slope[j]);
            summand[j] = (float)(first + second * shift[j]);
        }
    }
    for (int64_t i = 0; i < p; i++)
        for (int64_t j = 0; j < c; j++) {
            float v = load(x, i * c + j, bf16);
            store(dx, i * c + j, a[j] * dz[i * c + j] - v * factor[j] - summand[j], bf16);
        }
}

#define EACH_IMAGE(call)                                          \
    _Pragma("omp parallel for num_threads(threads)")              \
    for (int64_t i = 0; i < n; i++) {                             \
        int64_t at = i * p * c * (bf16 ? 2 : 4);                  \
        if (bf16 && silu) call(1, 1);                             \
        else if (bf16) call(0, 1);                                \
        else if (silu) call(1, 0);                                \
        else call(0, 0);                                          \
    }

/* The rows of gain and offset are `row` numbers apart: c, or 0 if all images share one. */
void norm_act(const char *x, char *y, const float *gain, const float *offset, float *mean, float *rstd, int64_t n,
              int64_t p, int64_t c, int64_t g, int64_t row, float eps, int silu, int bf16, int threads) {
#define CALL(s, h) \
    forward(x + at, y + at, gain + row * i, offset + row * i, mean + g * i, rstd + g * i, p, c, g, eps, s, h)
    EACH_IMAGE(CALL)
#undef CALL
}

/* scratch holds an image for each thread. */
void norm_act_backward(const char *x, const char *dy, char *dx, const float *gain, const float *offset,
                       const float *mean, const float *rstd, float *dgain, float *doffset, float *scratch, int64_t n,
                       int64_t p, int64_t c, int64_t g, int64_t row, int silu, int bf16, int threads) {
#define CALL(s, h)                                                                                               \
    backward(x + at, dy + at, dx + at, gain + row * i, offset + row * i, mean + g * i, rstd + g * i, dgain + c * i, \
             doffset + c * i, scratch + p * c * omp_get_thread_num(), p, c, g, s, h)
    EACH_IMAGE(CALL)
#undef CALL
}

/* Two rounds of the hash "lowbias32" (Wellons 2018), with a word of the key before each. */
INLINE uint32_t random_bits(uint32_t position, uint32_t first, uint32_t second) {
    uint32_t h = position + first;
    for (int round = 0; round < 2; round++) {
        h = (h ^ h >> 16) * 0x7feb352du;
        h = (h ^ h >> 15) * 0x846ca68bu;
        h = (h ^ h >> 16) + second;
    }
    return h;
}

/* y = x * scale, or 0 where the random bits of a position are below the threshold. */
void dropout(const char *x, char *y, int64_t n, int64_t key, int64_t threshold, float scale, int bf16, int threads) {
    uint32_t first = (uint32_t)key, second = (uint32_t)(key >> 32), below = (uint32_t)threshold;
#define LOOP(h)                                                                                          \
    _Pragma("omp parallel for simd num_threads(threads)")                                                \
    for (int64_t i = 0; i < n; i++)                                                                      \
        store(y, i, random_bits((uint32_t)i, first, second) < below ? 0.0f : load(x, i, h) * scale, h)
    if (bf16) LOOP(1);
    else LOOP(0);
#undef LOOP
}
