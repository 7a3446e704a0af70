/* The products of `products.c` as other passes call them: those of the processor's widest vectors, in a capsule. */
#ifndef SPELA_PRODUCTS_H
#define SPELA_PRODUCTS_H

#include "passes.h"
#include <float.h>
#include <math.h>

struct shape {
    int64_t batch, outputs, inputs;
};

/* How a weight w follows from its gradient g. PLAIN: w = beta w + alpha g. MOMENTUM: torch.optim.SGD, where
 * m = beta m + (g + decay w) and w -= rate (m, or with Nesterov's g + decay w + beta m). ADAM: torch.optim.Adam, with
 * 1 - beta1, 1 - beta2, rate = lr / (1 - beta1^t) and spread = 1 / sqrt(1 - beta2^t). */
enum kind { PLAIN, MOMENTUM, ADAM };

struct rule {
    enum kind kind;
    float beta, alpha;
    int nesterov;
    float rate, decay, share1, share2, spread, eps;
};

/* Zero for a denormal number: momentum of weights that get no gradient any more would decay into these and stay (0.9
 * of the smallest rounds to itself), and some processors take far longer over them. NaN stays NaN. */
static inline float normal(float z) { return fabsf(z) < FLT_MIN ? 0 : z; }

typedef void (*apply_function)(const struct rule *, const float *, int64_t, float *, float *, float *);
typedef void (*update_function)(const struct rule *, struct shape, const float *, const float *, float *, float *,
                                float *, float *, int);
typedef void (*linear_function)(struct shape, const float *, const float *, const float *, float, float *, float *,
                                int);
typedef int64_t (*scratch_function)(struct shape);

typedef int (*threads_function)(int64_t);

struct products {
    threads_function at_hand;
    apply_function apply;
    update_function update;
    linear_function linear;
    scratch_function scratch;
};

/* The capsule's name: an attribute of the extension module. */
#define PRODUCTS "spela_kernels.cpu._products.products"

#endif
