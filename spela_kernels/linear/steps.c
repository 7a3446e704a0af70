/* Whole steps of a stack of linear layers, one batch after the other: in each layer the product with bias and
 * activation, the pass over rows, and the update of weight and bias, which is why the next layer can follow at once.
 * A step of one layer is the same call with one layer and one batch, so both have the same bits.
 *
 * Optional: `cpu.py` does the same operator by operator where this was not built or does not fit. float32, rows packed;
 * the caller (`steps.py`) has checked shapes, strides and labels.
 * Axes: B batch, I in, O out, C classes. Source: `reference.py` and `rules.py`, whose mathematics this is.
 */
#include "../cpu/products.h"
#include "rows.h"
#include <string.h>

static const struct products *products;

/* What `steps.py` packs, field by field. */
struct layer {
    int64_t inputs, outputs, classes, objective, activation, adam; /* objective: as in rows.h, or SOFTMAX */
    int64_t dropout;                                   /* whether its inputs are multiplied by masks */
    int64_t nesterov;                                  /* of SGD with momentum */
    float *weight, *bias;                              /* (O, I), (O,) or 0 */
    const float *vectors;                              /* (C, O) */
    float *first, *second, *bias_first, *bias_second;  /* momentum or moments, or 0 */
    double norm;                                       /* of the rows of the input, or 0 to leave them */
    double slope, scale;
    double momentum, weight_decay;   /* SGD */
    double share1, share2, adam_eps; /* Adam: 1 - beta1, 1 - beta2 */
};

#define SOFTMAX 5
enum { LEAKY, RELU, GELU }; /* LEAKY: with slope 1 none */

/* y = GELU(z) in the memory of z, and slopes = its derivative. The normal distribution within 1e-7: Abramowitz and
 * Stegun, Handbook of Mathematical Functions, 7.1.26. */
FOR_EVERY_PROCESSOR
void spela_gelu(float *restrict z, int64_t size, float *restrict slopes)
{
    for (int64_t j = 0; j < size; j++) {
        float a = 0.5f * z[j] * z[j], e = a < 87 ? exp_minus(a) : 0; /* times z, which may be huge */
        float t = 1 / (1 + 0.23164190f * fabsf(z[j]));
        float tail = 1.421413741f + t * (-1.453152027f + t * 1.061405429f);
        tail = 0.5f * e * t * (0.254829592f + t * (-0.284496736f + t * tail));
        float share = z[j] > 0 ? 1 - tail : tail;
        slopes[j] = share + z[j] * 0.39894228f * e;
        z[j] *= share; /* NaN stays NaN */
    }
}

/* The same of ReLU */
FOR_EVERY_PROCESSOR
void spela_relu(float *restrict z, int64_t size, float *restrict slopes)
{
    for (int64_t j = 0; j < size; j++) {
        slopes[j] = z[j] > 0 ? 1.0f : 0.0f;
        z[j] = z[j] <= 0 ? 0.0f : z[j]; /* NaN stays NaN */
    }
}

/* dz_j *= slopes_j */
FOR_EVERY_PROCESSOR
void spela_multiply(const float *restrict slopes, int64_t size, float *restrict dz)
{
    for (int64_t j = 0; j < size; j++)
        dz[j] *= slopes[j];
}

/* y_j = factor x_j */
FOR_EVERY_PROCESSOR
void spela_scale(const float *restrict x, int64_t size, float factor, float *restrict y)
{
    for (int64_t j = 0; j < size; j++)
        y[j] = factor * x[j];
}

/* y_j = factors_j x_j; y may be x */
FOR_EVERY_PROCESSOR
void spela_mask(const float *x, const float *restrict factors, int64_t size, float *y)
{
    for (int64_t j = 0; j < size; j++)
        y[j] = factors[j] * x[j];
}

/* y (B, I) = rows of x with the norm given */
static void norm_rows(const float *x, int64_t batch, int64_t inputs, double norm, float *y)
{
    for (int64_t i = 0; i < batch; i++, x += inputs, y += inputs) {
        float length = sqrtf(spela_dot(x, x, inputs));
        length = length < 1e-12f ? 1e-12f : length; /* NaN stays NaN */
        spela_scale(x, inputs, (float)norm / length, y);
    }
}

/* Multiply-adds of a product from which other threads take part; a smaller one waits for nobody on a busy machine. */
#define SHARED (4 << 20)

static int threads_for(struct shape s, int64_t threads)
{
    return s.batch * s.outputs * s.inputs < SHARED ? 1 : products->at_hand(threads);
}

/* Weight and bias from dz (B, O), its sums (O,) and x (B, I). `rate` and `spread`: of struct rule; SGD's rate is lr. */
static void descend(const struct layer *l, struct shape shape, const float *dz, const float *sums, const float *x,
                    double rate, double spread, float *scratch, int threads)
{
    struct rule rule = {.kind = l->adam ? ADAM : l->first ? MOMENTUM : PLAIN, .rate = (float)rate,
                        .decay = (float)l->weight_decay, .nesterov = (int)l->nesterov, .share1 = (float)l->share1,
                        .share2 = (float)l->share2, .spread = (float)spread, .eps = (float)l->adam_eps};
    rule.beta = (float)(rule.kind == MOMENTUM ? l->momentum : 1 - rate * l->weight_decay);
    rule.alpha = (float)-rate;
    float *m = l->first ? l->first : l->weight, *v = l->second ? l->second : l->weight; /* not read where absent */
    products->update(&rule, shape, dz, x, l->weight, m, v, scratch, threads);
    if (l->bias)
        products->apply(&rule, sums, l->outputs, l->bias, l->bias_first, l->bias_second);
}

/* Fewer classes than a tile's rows are multiplied one by one. */
#define TILE 6

/* dz (B, O) of softmax, before the activation, and the sum of losses. */
static double class_gradient(const struct layer *l, const int64_t *target, int64_t batch, const float *y, double eps,
                             float *dz, float *scratch, int64_t asked)
{
    float *dots = scratch, *factors = dots + batch * l->classes, *powers = factors + batch * l->classes;
    double total = 0;
    scratch = powers + l->classes;
    if (l->classes < TILE) {
        for (int64_t i = 0; i < batch; i++)
            for (int64_t k = 0; k < l->classes; k++)
                dots[i * l->classes + k] = spela_dot(y + i * l->outputs, l->vectors + k * l->outputs, l->outputs);
    } else {
        struct shape all = {batch, l->classes, l->outputs};
        products->linear(all, y, l->vectors, NULL, 1, dots, scratch, threads_for(all, asked));
    }
    for (int64_t i = 0; i < batch; i++) {
        const float *row = y + i * l->outputs;
        float along;
        total += softmax_loss(dots + i * l->classes, l->classes, target[i], inverse_norm(row, l->outputs, eps), l->scale,
                              1.0 / batch, powers, factors + i, batch, &along);
        spela_scale(row, l->outputs, -along, dz + i * l->outputs);
    }
    struct rule rule = {.kind = PLAIN, .beta = 1, .alpha = 1}; /* dz += factors^T vectors */
    struct shape pull = {l->classes, batch, l->outputs};
    products->update(&rule, pull, factors, l->vectors, dz, dz, dz, scratch, threads_for(pull, asked));
    return total;
}

/* One layer's step: its mean loss; y (B, O) is written. */
static double step(const struct layer *l, const float *x, const int64_t *target, int64_t batch, double rate,
                   double spread, double eps, double margin, float *y, float *scratch, int64_t asked)
{
    struct shape shape = {batch, l->outputs, l->inputs};
    int threads = threads_for(shape, asked);
    int64_t size = batch * l->outputs;
    float *dz = scratch, *slopes = dz + size, *sums = slopes + size;
    double total = 0;
    scratch = sums + l->outputs;
    products->linear(shape, x, l->weight, l->bias, (float)l->slope, y, scratch, threads);
    if (l->activation == GELU)
        spela_gelu(y, size, slopes);
    else if (l->activation == RELU)
        spela_relu(y, size, slopes);
    if (l->objective == SOFTMAX) {
        total = class_gradient(l, target, batch, y, eps, dz, scratch, asked);
        spela_activate(y, size, (float)l->slope, dz);
    } else
        for (int64_t i = 0; i < batch; i++) {
            int64_t at = i * l->outputs;
            total += label_row(y + at, l->vectors + target[i] * l->outputs, l->outputs, (int)l->objective, 1.0 / batch,
                               l->slope, eps, margin, dz + at);
        }
    if (l->activation != LEAKY)
        spela_multiply(slopes, size, dz);
    sum_rows(dz, batch, l->outputs, 1, sums);
    descend(l, shape, dz, sums, x, rate, spread, scratch, threads);
    return total / batch;
}

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

/* Floats of scratch memory for a batch: rows of a normed input and of two outputs, and what one step needs. */
static int64_t room(const struct layer *layers, int64_t depth, int64_t batch, int64_t *width)
{
    int64_t most = 0;
    *width = 0;
    for (const struct layer *l = layers; l < layers + depth; l++) {
        struct shape own = {batch, l->outputs, l->inputs}, dots = {batch, l->classes, l->outputs};
        struct shape pull = {l->classes, batch, l->outputs};
        int64_t inside = products->scratch(own);
        if (l->objective == SOFTMAX)
            inside = largest(inside, (2 * batch + 1) * l->classes +
                                         largest(products->scratch(dots), products->scratch(pull)));
        most = largest(most, (2 * batch + 1) * l->outputs + inside);
        *width = largest(*width, largest(l->inputs, l->outputs));
    }
    return most + 3 * batch * *width;
}

/* The layers in bytes of struct layer; 0 where these are none. */
static const struct layer *unpack(PyObject *bytes, int64_t *depth)
{
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "layers must be bytes");
        return NULL;
    }
    *depth = PyBytes_GET_SIZE(bytes) / (int64_t)sizeof(struct layer);
    return (const struct layer *)PyBytes_AS_STRING(bytes);
}

/* The batches' sizes in bytes of int64; 0 where these are none. */
static const int64_t *sizes_in(PyObject *bytes, int64_t *steps)
{
    if (!PyBytes_Check(bytes)) {
        PyErr_SetString(PyExc_TypeError, "sizes must be bytes");
        return NULL;
    }
    *steps = PyBytes_GET_SIZE(bytes) / (int64_t)sizeof(int64_t);
    return (const int64_t *)PyBytes_AS_STRING(bytes);
}

/* scratch(layers, B): floats of scratch memory that `run` needs */
static PyObject *scratch(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    int64_t depth, width;
    const struct layer *layers = has(count, 2) ? unpack(args[0], &depth) : NULL;
    if (!layers)
        return NULL;
    int64_t batch = integer(args[1]);
    return PyErr_Occurred() ? NULL : PyLong_FromLongLong(room(layers, depth, batch, &width));
}

/* run(layers, x (N, I), target (N,), sizes, rates (steps, depth, 2), masks, eps, margin, losses (steps, depth),
 *     y (B, O) of the last layer, scratch memory, threads): weights, biases and their state are updated, losses and y
 * written. `layers`: bytes of struct layer. `sizes`: bytes of each batch's number of samples, B the largest.
 * `masks`: (B, I) of each layer with dropout, batch by batch. y is the last batch's, each batch writes it. */
static PyObject *run(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    int64_t depth, width, steps = 0;
    const struct layer *layers = has(count, 12) ? unpack(args[0], &depth) : NULL;
    if (!layers)
        return NULL;
    const float *x = address(args[1]);
    const int64_t *target = address(args[2]), *sizes = sizes_in(args[3], &steps);
    const double *rates = address(args[4]);
    const float *mask = address(args[5]);
    double eps = real(args[6]), margin = real(args[7]);
    float *losses = address(args[8]), *last = address(args[9]), *memory = address(args[10]);
    int64_t threads = integer(args[11]), batch = 1;
    if (PyErr_Occurred())
        return NULL;
    for (int64_t k = 0; k < steps; k++)
        batch = largest(batch, sizes[k]);
    room(layers, depth, batch, &width);
    Py_BEGIN_ALLOW_THREADS
    float *normed = memory, *outputs = normed + batch * width, *scratch = outputs + 2 * batch * width;
    for (int64_t k = 0; k < steps; target += sizes[k], x += sizes[k] * layers->inputs, k++) {
        int64_t size = sizes[k];
        const float *input = x;
        for (int64_t i = 0; i < depth; i++, rates += 2) {
            float *y = i + 1 < depth ? outputs + (i % 2) * batch * width : last;
            if (layers[i].norm > 0) {
                norm_rows(input, size, layers[i].inputs, layers[i].norm, normed);
                input = normed;
            }
            if (layers[i].dropout) {
                spela_mask(input, mask, size * layers[i].inputs, normed);
                mask += size * layers[i].inputs;
                input = normed;
            }
            *losses++ = (float)step(layers + i, input, target, size, rates[0], rates[1], eps, margin, y, scratch,
                                    threads);
            input = y;
        }
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* norm(x (B, I), B, I, norm, y (B, I)): y is written */
static PyObject *norm(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 5))
        return NULL;
    const float *x = address(args[0]);
    int64_t batch = integer(args[1]), inputs = integer(args[2]);
    double length = real(args[3]);
    float *y = address(args[4]);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    norm_rows(x, batch, inputs, length, y);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    METHOD(scratch),
    METHOD(run),
    METHOD(norm),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_steps", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__steps(void)
{
    products = PyCapsule_Import(PRODUCTS, 0);
    if (!products)
        return NULL;
    PyObject *module = module_of(&definition);
    if (module && PyModule_AddIntConstant(module, "LAYER", sizeof(struct layer)) < 0)
        Py_CLEAR(module);
    return module;
}
