/* A linear layer's two products: x w^T + bias through LeakyReLU, and dz^T x with the update of w in the same pass, where
 * the gradient exists a tile at a time. What a tile reads is packed first, so that it reads it in order.
 *
 * Optional: a library makes the products where this was not built, does not fit or is slower (`gemm.py`). float32,
 * rows packed; the caller has checked shapes and strides.
 * Axes: B batch, O out, I in. The tiling is the usual one (Goto and van de Geijn 2008,
 * "Anatomy of high-performance matrix multiplication"), with bias and update for its last step.
 */
#include "forks.h"
#include "products.h"
#include <math.h>
#include <string.h>

static inline float leaky(float z, float slope) { return z > 0 ? z : slope * z; } /* NaN stays NaN */
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define WIDTHS 3
#define NAME(x) x##_512
#define TARGET __attribute__((target("arch=x86-64-v4")))
#define LANES 16
#define ROWS 6
#define VECTORS 4
#include "products_tile.h"
#define NAME(x) x##_256
#define TARGET __attribute__((target("arch=x86-64-v3")))
#define LANES 8
#define ROWS 4
#define VECTORS 3
#include "products_tile.h"
#else
#define WIDTHS 1
#endif
#define NAME(x) x##_128
#define TARGET
#define LANES 4
#define ROWS 4
#define VECTORS 3
#include "products_tile.h"

static const struct products kernels[WIDTHS] = {
    {at_hand, apply_128, update_128, linear_128, scratch_128},
#if WIDTHS == 3
    {at_hand, apply_256, update_256, linear_256, scratch_256},
    {at_hand, apply_512, update_512, linear_512, scratch_512},
#endif
};

/* The widest that this processor has: an index of `kernels`. */
static int widest(void)
{
#if WIDTHS == 3
    return __builtin_cpu_supports("x86-64-v4") ? 2 : __builtin_cpu_supports("x86-64-v3") ? 1 : 0;
#else
    return 0;
#endif
}

static int is_width(int64_t width)
{
    if (width >= 0 && width <= widest())
        return 1;
    PyErr_Format(PyExc_ValueError, "this processor has no vectors of width %lld", (long long)width);
    return 0;
}

/* scratch(width, B, O, I): floats of scratch memory that a call needs */
static PyObject *scratch(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 4))
        return NULL;
    int64_t width = integer(args[0]);
    struct shape shape = {integer(args[1]), integer(args[2]), integer(args[3])};
    if (PyErr_Occurred() || !is_width(width))
        return NULL;
    return PyLong_FromLongLong(kernels[width].scratch(shape));
}

/* What every other call begins with: width, B, O, I, threads, scratch memory. */
struct call {
    int64_t width, threads;
    struct shape shape;
    float *scratch;
};

/* Fewer products than this are not worth a second thread. */
#define WORTH 262144

static int begin(PyObject *const *args, struct call *call)
{
    struct shape shape = {integer(args[1]), integer(args[2]), integer(args[3])};
    *call = (struct call){integer(args[0]), integer(args[4]), shape, address(args[5])};
    if (PyErr_Occurred() || !is_width(call->width))
        return 0;
    call->threads = shape.batch * shape.outputs * shape.inputs < WORTH ? 1 : at_hand(call->threads);
    return 1;
}

/* Outputs that `linear` needs: a tile of the most rows. */
#define FEWEST 6

/* linear(..., x (B, I), w (O, I), bias (O,) or 0, slope, y (B, O)): y is written */
static PyObject *linear(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct call call;
    if (!has(count, 11) || !begin(args, &call))
        return NULL;
    const float *x = address(args[6]), *w = address(args[7]), *bias = address(args[8]);
    float slope = (float)real(args[9]), *y = address(args[10]);
    if (PyErr_Occurred())
        return NULL;
    if (call.shape.outputs < FEWEST)
        return PyErr_Format(PyExc_ValueError, "at least %d outputs are needed", FEWEST);
    Py_BEGIN_ALLOW_THREADS
    kernels[call.width].linear(call.shape, x, w, bias, slope, y, call.scratch, (int)call.threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *update(const struct call *call, const struct rule *rule, const float *dz, const float *x, float *w,
                        float *m, float *v)
{
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    kernels[call->width].update(rule, call->shape, dz, x, w, m, v, call->scratch, (int)call->threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* sgd(..., dz (B, O), x (B, I), w (O, I), beta, alpha): w is updated */
static PyObject *sgd(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct call call;
    if (!has(count, 11) || !begin(args, &call))
        return NULL;
    struct rule rule = {.kind = PLAIN, .beta = (float)real(args[9]), .alpha = (float)real(args[10])};
    float *w = address(args[8]);
    return update(&call, &rule, address(args[6]), address(args[7]), w, w, w);
}

/* momentum(..., dz (B, O), x (B, I), w, m (O, I), rate, momentum, decay, nesterov): w and m are updated */
static PyObject *momentum(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct call call;
    if (!has(count, 14) || !begin(args, &call))
        return NULL;
    struct rule rule = {.kind = MOMENTUM, .rate = (float)real(args[10]), .beta = (float)real(args[11]),
                        .decay = (float)real(args[12]), .nesterov = (int)integer(args[13])};
    float *w = address(args[8]);
    return update(&call, &rule, address(args[6]), address(args[7]), w, address(args[9]), w);
}

/* adam(..., dz (B, O), x (B, I), w, m, v (O, I), share1, share2, rate, spread, eps, decay): w, m, v are
 * updated */
static PyObject *adam(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    struct call call;
    if (!has(count, 17) || !begin(args, &call))
        return NULL;
    struct rule rule = {.kind = ADAM, .share1 = (float)real(args[11]), .share2 = (float)real(args[12]),
                        .rate = (float)real(args[13]), .spread = (float)real(args[14]), .eps = (float)real(args[15]),
                        .decay = (float)real(args[16])};
    return update(&call, &rule, address(args[6]), address(args[7]), address(args[8]), address(args[9]),
                  address(args[10]));
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    METHOD(scratch),
    METHOD(linear),
    METHOD(sgd),
    METHOD(momentum),
    METHOD(adam),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_products", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__products(void)
{
    PyObject *module = module_of(&definition);
    PyObject *shared = PyCapsule_New((void *)(kernels + widest()), PRODUCTS, NULL);
    if (module && (!shared || mind_forks() != 0 || PyModule_AddIntConstant(module, "WIDEST", widest()) < 0 ||
                   PyModule_AddIntConstant(module, "FEWEST", FEWEST) < 0 ||
                   PyModule_AddObjectRef(module, "products", shared) < 0))
        Py_CLEAR(module);
    Py_XDECREF(shared);
    return module;
}
