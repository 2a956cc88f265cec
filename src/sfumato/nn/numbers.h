/* What the C files of this room share: vectors of 16 float32, and pictures in float32 or, with HALF, in bfloat16. */

#include <stdint.h>

#define LANES 16
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t uints __attribute__((vector_size(4 * LANES), aligned(4)));

static inline vec load(const float *from) { return *(const vec *)from; }
static inline void store(float *to, vec x) { *(vec *)to = x; }
static inline vec chosen(ints yes, vec a, vec b) { return (vec)((yes & (ints)a) | (~yes & (ints)b)); }

/* 16 numbers of a picture */
#ifdef HALF
typedef uint16_t number;
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2)));

static inline vec read(const number *from) {
    return (vec)(__builtin_convertvector(*(const halves *)from, uints) << 16);
}

/* to the nearest, of two to the even one; what is no number stays none */
static inline void write(number *to, vec x) {
    const uints bits = (uints)x, rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    *(halves *)to = __builtin_convertvector((uints)chosen(x == x, (vec)rounded, (vec)((uints){0} + 0x7FC0)), halves);
}
#else
typedef float number;
static inline vec read(const number *from) { return load(from); }
static inline void write(number *to, vec x) { store(to, x); }
#endif
