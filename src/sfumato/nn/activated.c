/* The maps of activated.py, for channels that are multiples of 16.

   Pictures are (B, N, C), N places, contiguous, in float32, or with HALF in bfloat16; what belongs to a row and a
   channel is (B, C), and float32 like all that is worked out.  A vector is 16 channels
   of one place.  The picture x may lie in two parts, of which the first has `split` channels; else split is C.  First
   each channel of each row is summed over its places, in parts that the cache holds, then (B, C) numbers are worked
   out, then all places are written. */

#include "numbers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* exp x = 2^k exp r with |r| <= log(2)/2 and a polynomial for exp r; relative error 2e-7.  x is held in [-87, 88]. */
static inline vec exponential(vec x) {
    const vec magic = (vec){0} + 12582912.f; /* 1.5 2^23: adding it rounds to a whole number */
    x = chosen(x < -87.f, (vec){0} - 87.f, x);
    x = chosen(x > 88.f, (vec){0} + 88.f, x);
    const vec shifted = x * 1.44269504f + magic, k = shifted - magic;
    const vec r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    vec p = (vec){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    return p * (vec)(((ints)shifted - 0x4B400000 + 127) << 23);
}

/* x, and not a number where x is none */
static inline vec sigmoid(vec x) { return chosen(x == x, 1.f / (1.f + exponential(-x)), x); }

/* Dropout: 1 / keep where the hash of dropout.py is below `most`, else 0; place counts as in (C, N) */
typedef struct {
    const int32_t *keys; /* two a row, or NULL: nothing is dropped */
    int64_t stride;      /* from a row's keys to the next row's */
    int32_t most;
    float scale;
} drop;

static inline vec kept(const drop *d, int64_t b, int64_t place, int64_t c, int64_t places) {
    uints u;
    for (int lane = 0; lane < LANES; lane++) u[lane] = (uint32_t)((c + lane) * places + place);
    u ^= (uint32_t)d->keys[b * d->stride];
    const uints v = (u ^ (u >> 16)) * 0x7FEB352Du + (uint32_t)d->keys[b * d->stride + 1];
    const ints w = (ints)((v ^ (v >> 15)) * 0x846CA68Bu);
    return chosen(w < d->most, (vec){0} + d->scale, (vec){0});
}

#define PART 32768 /* numbers of a part */

/* 16 channels of a picture in two parts; `place` counts through all rows */
static inline const number *of(const number *x, const number *other, int64_t split, int64_t channels, int64_t place,
                               int64_t c) {
    return c < split ? x + place * split + c : other + place * (channels - split) + (c - split);
}

static float *zeros(int64_t n) {
    float *found = calloc((size_t)n, sizeof(float));
    if (found == NULL) abort(); /* there is no memory for a few thousand numbers */
    return found;
}

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* sum and squares: of MANY vectors of channels of n places, x being the first, their sums and their squares about the
   mean; by way of differences to the first place, so that nothing large cancels */
static inline __attribute__((always_inline)) void moments(const number *x, int64_t stride, int64_t n, float *sum,
                                                          float *squares, const int MANY) {
    vec first[4], s[4], q[4];
    for (int i = 0; i < MANY; i++) first[i] = read(x + LANES * i), s[i] = q[i] = (vec){0};
    for (int64_t p = 1; p < n; p++)
        for (int i = 0; i < MANY; i++) {
            const vec off = read(x + p * stride + LANES * i) - first[i];
            s[i] += off;
            q[i] += off * off;
        }
    for (int i = 0; i < MANY; i++) {
        store(sum + LANES * i, (float)n * first[i] + s[i]);
        store(squares + LANES * i, q[i] - s[i] * s[i] / (float)n);
    }
}

/* y = drop(silu(z)), or z if `bare`,  z = gain xhat + bias,  xhat = rstd x + offset,  by groups of channels
   coefficients (4, B, C) are written: rstd, offset, and z's slope and intercept in x */
void activate(const number *x, const number *other, int64_t split, const float *added, const float *gain,
              const float *bias, int64_t told_stride, float *coefficients, number *y, int64_t rows, int64_t places, int64_t channels, int64_t groups, float eps,
              int64_t bare, const int32_t *keys, int64_t keys_stride, int32_t most, float scale) {
    const drop dropped = {keys, keys_stride, most, scale};
    const int64_t all = rows * channels, each = channels / groups;
    float *rstd = coefficients, *offset = rstd + all, *slope = offset + all, *intercept = slope + all;
    const int64_t each_part = PART / channels ? PART / channels : 1, parts = (places + each_part - 1) / each_part;
    float *found = zeros(rows * parts * 2 * channels); /* sums; squares about the part's mean */
    _Pragma("omp parallel for collapse(2) schedule(static)")
    for (int64_t b = 0; b < rows; b++)
        for (int64_t k = 0; k < parts; k++) {
            float *sum = found + (b * parts + k) * 2 * channels, *squares = sum + channels;
            const int64_t first = k * each_part, n = least(each_part, places - first);
            for (int64_t c = 0; c < channels;) {
                const number *from = of(x, other, split, channels, b * places + first, c);
                const int64_t end = c < split ? split : channels, stride = c < split ? split : channels - split;
                if (c + 4 * LANES <= end) moments(from, stride, n, sum + c, squares + c, 4), c += 4 * LANES;
                else moments(from, stride, n, sum + c, squares + c, 1), c += LANES;
            }
        }
    for (int64_t b = 0; b < rows; b++)
        for (int64_t c = 0; c < channels; c += LANES) { /* each channel's mean and variance, of its parts' */
            vec sum = {0}, squares = {0};
            for (int64_t k = 0; k < parts; k++) sum += load(found + (b * parts + k) * 2 * channels + c);
            const vec mean = sum / (float)places;
            for (int64_t k = 0; k < parts; k++) {
                const float *part = found + (b * parts + k) * 2 * channels + c;
                const float n = (float)least(each_part, places - k * each_part);
                const vec off = load(part) / n - mean;
                squares += load(part + channels) + n * off * off;
            }
            store(slope + b * channels + c, mean);
            store(intercept + b * channels + c, squares / (float)places);
        }
    free(found);
    for (int64_t b = 0; b < rows; b++)
        for (int64_t g = 0; g < groups; g++) {
            const int64_t at = b * channels + g * each;
            double mean = 0, variance = 0;
            for (int64_t i = at; i < at + each; i++) mean += slope[i] + (added ? added[i] : 0.f);
            mean /= (double)each;
            for (int64_t i = at; i < at + each; i++) {
                const double off = slope[i] + (added ? added[i] : 0.f) - mean;
                variance += intercept[i] + off * off;
            }
            const double r = 1 / sqrt(variance / (double)each + eps);
            for (int64_t i = at, c = g * each; i < at + each; i++, c++) {
                rstd[i] = (float)r;
                offset[i] = (float)(((added ? added[i] : 0.f) - mean) * r);
                slope[i] = gain[b * told_stride + c] * rstd[i];
                intercept[i] = gain[b * told_stride + c] * offset[i] + bias[b * told_stride + c];
            }
        }
    _Pragma("omp parallel for collapse(2) schedule(static)")
    for (int64_t b = 0; b < rows; b++)
        for (int64_t p = 0; p < places; p++)
            for (int64_t start = 0, end = split; start < channels; start = end, end = channels) {
                const number *from = of(x, other, split, channels, b * places + p, start);
                const float *at = slope + b * channels;
                number *to = y + (b * places + p) * channels;
                if (bare || keys)
                    for (int64_t c = start; c < end; c += LANES) {
                        const vec z = load(at + c) * read(from + c - start) + load(at + all + c);
                        const vec answer = bare ? z : z * sigmoid(z);
                        write(to + c, keys ? answer * kept(&dropped, b, p, c, places) : answer);
                    }
                else
                    for (int64_t c = start; c < end; c += LANES) {
                        const vec z = load(at + c) * read(from + c - start) + load(at + all + c);
                        write(to + c, z * sigmoid(z));
                    }
            }
}

/* dL/dz at a place */
static inline vec back(vec x, vec grad, vec slope, vec intercept) {
    const vec z = slope * x + intercept, s = sigmoid(z);
    return grad * s * (1.f + z * (1.f - s));
}

/* From dL/dy: dL/dx; and (3, B, C) sums over places of dL/dz, of dL/dz xhat, and of dL/dx (which is dL/dadded) */
void activate_back(const number *x, const number *other, int64_t split, const number *grad, const float *gain,
                   int64_t told_stride, const float *coefficients, number *by_x, number *by_other, float *sums,
                   int64_t rows, int64_t places, int64_t channels, int64_t groups, int64_t bare, const int32_t *keys,
                   int64_t keys_stride, int32_t most, float scale) {
    const drop dropped = {keys, keys_stride, most, scale};
    const int64_t all = rows * channels, each = channels / groups;
    const float *rstd = coefficients, *offset = rstd + all, *slope = offset + all, *intercept = slope + all;
    float *by_z = sums, *by_gain = by_z + all, *total = by_gain + all; /* total: of xhat first */
    const int64_t each_part = PART / channels ? PART / channels : 1, parts = (places + each_part - 1) / each_part;
    float *found = zeros(rows * parts * 3 * channels); /* the three sums */
    _Pragma("omp parallel for collapse(2) schedule(static)")
    for (int64_t b = 0; b < rows; b++)
        for (int64_t k = 0; k < parts; k++) {
            float *first = found + (b * parts + k) * 3 * channels, *second = first + channels, *third = second + channels;
            for (int64_t p = k * each_part; p < least((k + 1) * each_part, places); p++)
                for (int64_t c = 0; c < channels; c += LANES) {
                    const int64_t at = (b * places + p) * channels + c, i = b * channels + c;
                    const vec here = read(of(x, other, split, channels, b * places + p, c));
                    const vec xhat = load(rstd + i) * here + load(offset + i);
                    vec g = read(grad + at);
                    if (keys) g *= kept(&dropped, b, p, c, places);
                    const vec dz = bare ? g : back(here, g, load(slope + i), load(intercept + i));
                    write((number *)of(by_x, by_other, split, channels, b * places + p, c), dz);
                    store(first + c, load(first + c) + dz);
                    store(second + c, load(second + c) + dz * xhat);
                    store(third + c, load(third + c) + xhat);
                }
        }
    memset(sums, 0, (size_t)(3 * all) * sizeof(float));
    for (int64_t b = 0; b < rows; b++)
        for (int64_t k = 0; k < parts; k++)
            for (int64_t which = 0; which < 3; which++)
                for (int64_t c = 0; c < channels; c++)
                    sums[which * all + b * channels + c] += found[((b * parts + k) * 3 + which) * channels + c];
    free(found);
    /* dL/dx = rstd (gain dL/dz - m1 - xhat m2), with m1 and m2 the means over a group of gain dL/dz and of that by xhat */
    _Pragma("omp parallel for schedule(static)")
    for (int64_t b = 0; b < rows; b++) {
        float first[channels], second[channels];
        for (int64_t g = 0; g < groups; g++) {
            double m1 = 0, m2 = 0;
            for (int64_t c = g * each; c < (g + 1) * each; c++) {
                m1 += (double)gain[b * told_stride + c] * by_z[b * channels + c];
                m2 += (double)gain[b * told_stride + c] * by_gain[b * channels + c];
            }
            m1 /= (double)(each * places);
            m2 /= (double)(each * places);
            for (int64_t c = g * each; c < (g + 1) * each; c++) {
                const int64_t i = b * channels + c;
                total[i] = (float)(slope[i] * by_z[i] - rstd[i] * ((double)places * m1 + m2 * total[i]));
                first[c] = (float)(-rstd[i] * (m1 + m2 * offset[i]));
                second[c] = (float)(-rstd[i] * m2 * rstd[i]);
            }
        }
        for (int64_t p = b * places; p < (b + 1) * places; p++)
            for (int64_t start = 0, end = split; start < channels; start = end, end = channels) {
                const number *from = of(x, other, split, channels, p, start);
                const float *gains = slope + b * channels + start;
                number *to = (number *)of(by_x, by_other, split, channels, p, start);
                for (int64_t c = 0; c < end - start; c += LANES)
                    write(to + c, load(gains + c) * read(to + c) + load(first + start + c) +
                                      load(second + start + c) * read(from + c));
            }
    }
}
