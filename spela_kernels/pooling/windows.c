/* What lies between a convolution and the product with its pooled map, in four passes: window maxima and moments of
 * the map, the affine map of batch norm with LeakyReLU, the gradient of that, and the gradient of the convolution.
 *
 * Optional: `functional.py` does the same by operators of torch where this was not built or does not fit. float32;
 * the caller (`compiled.py`) has checked dtypes and strides. Every pass runs over images side by side and sums each
 * one's share on its own, so results do not depend on the number of threads.
 * Axes: B batch, K kernels, H, W map, h, w its windows (H / window, W / window), D pixels of a pooled map. Maps are
 * channels last in memory, (B, H, W, K); the product takes kernels first, (K, B, D).
 */
#include "../cpu/forks.h"
#include "../cpu/passes.h"
#include <string.h>

/* Whether x takes the place of the maximum so far, as in torch: the first of equals stays, NaN wins. */
#define TAKES(x, most) ((x) > (most) || (x) != (x))

/* Bodies with the window's size a constant: their loops over the window vanish, and those over k are vectorised. */
#define INLINE static inline __attribute__((always_inline))
#define OF_SIZE(body, window, ...) ((window) == 2 ? body(2, __VA_ARGS__) : body(3, __VA_ARGS__))

/* The window after the next: the processor's own prefetching starts anew with every page, which is a few windows. */
INLINE void fetch_ahead(const float *corner, int64_t window, int64_t down, int64_t kernels)
{
    for (int64_t i = 0; i < window; i++)
        for (int64_t k = 0; k < window * kernels; k += 64 / sizeof(float))
            __builtin_prefetch(corner + i * down + 2 * window * kernels + k);
}

INLINE void maximum(int window, const float *corner, int64_t down, int64_t kernels, const float *restrict centre,
                    float *restrict most, float *restrict sums, float *restrict squares)
{
#pragma omp simd
    for (int64_t k = 0; k < kernels; k++) {
        float top = corner[k], sum = 0, square = 0;
        for (int i = 0; i < window; i++)
            for (int j = 0; j < window; j++) {
                float x = corner[i * down + j * kernels + k], from = x - centre[k];
                sum += from;
                square += from * from;
                top = TAKES(x, top) ? x : top;
            }
        most[k] = top;
        sums[k] += sum;
        squares[k] += square;
    }
}

/* Maximum of one window whose rows lie `down` apart; sums of x - centre and its square, added up. */
FOR_EVERY_PROCESSOR
void spela_maximum(const float *corner, int64_t window, int64_t down, int64_t kernels, const float *centre, float *most,
                   float *sums, float *squares)
{
    fetch_ahead(corner, window, down, kernels);
    OF_SIZE(maximum, window, corner, down, kernels, centre, most, sums, squares);
}

/* The same sums of `width` pixels that are in no window. */
FOR_EVERY_PROCESSOR
void spela_moments(const float *restrict row, int64_t width, int64_t kernels, const float *restrict centre,
                   float *restrict sums, float *restrict squares)
{
    for (int64_t j = 0; j < width; j++, row += kernels)
        for (int64_t k = 0; k < kernels; k++) {
            float from = row[k] - centre[k];
            sums[k] += from;
            squares[k] += from * from;
        }
}

/* total += values, which become zero. */
FOR_EVERY_PROCESSOR
void spela_empty(float *restrict values, int64_t size, double *restrict total)
{
    for (int64_t k = 0; k < size; k++) {
        total[k] += values[k];
        values[k] = 0;
    }
}

/* out (columns, rows) = in (rows, columns), whose rows lie that far apart. */
FOR_EVERY_PROCESSOR
void spela_turn(const float *restrict in, int64_t in_stride, int64_t rows, int64_t columns, float *restrict out,
                int64_t out_stride)
{
    enum { TILE = 16 };
    int64_t down = (rows + TILE - 1) / TILE, across = (columns + TILE - 1) / TILE;
    for (int64_t tile = 0; tile < down * across; tile++) {
        /* Along the rows that lie further apart: those lines of the cache are used up before others come. */
        int64_t row = TILE * (in_stride > out_stride ? tile / across : tile % down);
        int64_t column = TILE * (in_stride > out_stride ? tile % across : tile / down);
        int64_t high = rows - row < TILE ? rows - row : TILE;
        int64_t wide = columns - column < TILE ? columns - column : TILE;
        const float *from = in + row * in_stride + column;
        float *to = out + column * out_stride + row;
        if (high == TILE && wide == TILE)
            for (int i = 0; i < TILE; i++)
                for (int j = 0; j < TILE; j++)
                    to[i * out_stride + j] = from[j * in_stride + i];
        else
            for (int64_t i = 0; i < wide; i++)
                for (int64_t j = 0; j < high; j++)
                    to[i * out_stride + j] = from[j * in_stride + i];
    }
}

/* y = leaky_relu(scale x + shift) of `size` pixels. */
FOR_EVERY_PROCESSOR
void spela_activate(const float *restrict x, int64_t size, int64_t kernels, const float *restrict scale,
                    const float *restrict shift, float slope, float *restrict y)
{
    for (int64_t j = 0; j < size; j++, x += kernels, y += kernels)
        for (int64_t k = 0; k < kernels; k++) {
            float z = scale[k] * x[k] + shift[k];
            y[k] = z > 0 ? z : slope * z;
        }
}

/* dy becomes dx = scale dz with z = scale x + shift, of `size` pixels; sums of dz and of dz (x - centre), added up. */
FOR_EVERY_PROCESSOR
void spela_descend(const float *restrict x, const float *restrict y, int64_t size, int64_t kernels,
                   const float *restrict scale, const float *restrict centre, float slope, float *restrict dy,
                   float *restrict sums, float *restrict along)
{
    for (int64_t j = 0; j < size; j++, x += kernels, y += kernels, dy += kernels)
        for (int64_t k = 0; k < kernels; k++) {
            float derivative = y[k] > 0 ? 1.0f : slope, dz = dy[k] * derivative;
            sums[k] += dz;
            along[k] += dz * (x[k] - centre[k]);
            dy[k] = scale[k] * dz;
        }
}

/* x = slope x + offset of `size` pixels, where a slope of 0 leaves nothing of x, even if that is infinite. */
FOR_EVERY_PROCESSOR
void spela_affine(float *restrict x, int64_t size, int64_t kernels, const float *restrict slope,
                  const float *restrict offset)
{
    for (int64_t j = 0; j < size; j++, x += kernels)
        for (int64_t k = 0; k < kernels; k++)
            x[k] = (slope[k] != 0 ? slope[k] * x[k] : 0) + offset[k];
}

INLINE void gradient(int window, float *corner, int64_t down, int64_t kernels, const float *restrict dmost,
                     const float *restrict slope, const float *restrict offset)
{
#pragma omp simd
    for (int64_t k = 0; k < kernels; k++) {
        float top = corner[k], extra = dmost[k], factor = slope[k], shift = offset[k], own[9];
        int where = 1; /* a bit for each place: comparing numbers, GCC would branch */
        for (int i = 0; i < window * window; i++) {
            float x = own[i] = corner[i / window * down + i % window * kernels + k];
            where = TAKES(x, top) ? 1 << i : where;
            top = TAKES(x, top) ? x : top;
        }
        for (int i = 0; i < window * window; i++)
            corner[i / window * down + i % window * kernels + k] =
                (factor != 0 ? factor * own[i] : 0) + shift + (where >> i & 1 ? extra : 0);
    }
}

/* The same of one window's pixels, with dmost on top of the maximum. */
FOR_EVERY_PROCESSOR
void spela_gradient(float *corner, int64_t window, int64_t down, int64_t kernels, const float *dmost,
                    const float *slope, const float *offset)
{
    fetch_ahead(corner, window, down, kernels);
    OF_SIZE(gradient, window, corner, down, kernels, dmost, slope, offset);
}

typedef struct {
    int64_t batch, height, width, kernels, window;
} Shape;

static int64_t map_size(Shape s) { return s.height * s.width * s.kernels; }
static int64_t pooled_size(Shape s) { return s.height / s.window * (s.width / s.window); }

/* Maxima (h, w, K) of one image's windows; sums over it of x - centre and its square, (2, K) float64. */
static void image_maxima(const float *map, Shape s, const float *centre, float *maxima, double *total, float *sums)
{
    int64_t h = s.height / s.window, w = s.width / s.window, down = s.width * s.kernels;
    float *squares = sums + s.kernels;
    memset(total, 0, 2 * s.kernels * sizeof(double));
    memset(sums, 0, 2 * s.kernels * sizeof(float));
    for (int64_t i = 0; i < h; i++) {
        const float *strip = map + i * s.window * down;
        for (int64_t j = 0; j < w; j++, maxima += s.kernels)
            spela_maximum(strip + j * s.window * s.kernels, s.window, down, s.kernels, centre, maxima, sums, squares);
        for (int64_t line = 0; line < s.window; line++)
            spela_moments(strip + line * down + w * s.window * s.kernels, s.width - w * s.window, s.kernels, centre,
                          sums, squares);
        spela_empty(sums, 2 * s.kernels, total);
    }
    for (int64_t line = h * s.window; line < s.height; line++) {
        spela_moments(map + line * down, s.width, s.kernels, centre, sums, squares);
        spela_empty(sums, 2 * s.kernels, total);
    }
}

/* dx (D, K) of one image from dy (K, D), whose rows lie `stride` apart; sums (2, K) float64 as `spela_descend`'s. */
static void image_descent(const float *x, const float *y, const float *dy, int64_t stride, int64_t size,
                          int64_t kernels, const float *scale, const float *centre, float slope, float *dx,
                          double *total, float *sums)
{
    enum { AT_ONCE = 64 }; /* pixels that are summed in float32 */
    spela_turn(dy, stride, kernels, size, dx, kernels);
    memset(total, 0, 2 * kernels * sizeof(double));
    memset(sums, 0, 2 * kernels * sizeof(float));
    for (int64_t j = 0; j < size; j += AT_ONCE) {
        int64_t first = j * kernels, pixels = size - j < AT_ONCE ? size - j : AT_ONCE;
        spela_descend(x + first, y + first, pixels, kernels, scale, centre, slope, dx + first, sums, sums + kernels);
        spela_empty(sums, 2 * kernels, total);
    }
}

/* One image's map, in place, becomes slope x + offset, with dmaxima (D, K) added where the maxima are. */
static void image_gradient(float *map, Shape s, const float *dmaxima, const float *slope, const float *offset)
{
    int64_t h = s.height / s.window, w = s.width / s.window, down = s.width * s.kernels;
    for (int64_t i = 0; i < h; i++) {
        float *strip = map + i * s.window * down;
        for (int64_t j = 0; j < w; j++, dmaxima += s.kernels)
            spela_gradient(strip + j * s.window * s.kernels, s.window, down, s.kernels, dmaxima, slope, offset);
        for (int64_t line = 0; line < s.window; line++)
            spela_affine(strip + line * down + w * s.window * s.kernels, s.width - w * s.window, s.kernels, slope,
                         offset);
    }
    spela_affine(map + h * s.window * down, (s.height - h * s.window) * s.width, s.kernels, slope, offset);
}

/* Arguments called `shape`: B, H, W, K, window. */
static Shape shape(PyObject *const *args)
{
    return (Shape){integer(args[0]), integer(args[1]), integer(args[2]), integer(args[3]), integer(args[4])};
}

/* window_maxima(map, centre (K,), maxima (B, h, w, K), moments (B, 2, K) float64, scratch (B, 2, K), shape,
 *               threads) */
static PyObject *window_maxima(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 11))
        return NULL;
    const float *map = address(args[0]), *centre = address(args[1]);
    float *maxima = address(args[2]), *scratch = address(args[4]);
    double *moments = address(args[3]);
    Shape s = shape(args + 5);
    int threads = at_hand(integer(args[10]));
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < s.batch; b++)
        image_maxima(map + b * map_size(s), s, centre, maxima + b * pooled_size(s) * s.kernels,
                     moments + b * 2 * s.kernels, scratch + b * 2 * s.kernels);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* scatter_to_maxima(map, dmaxima (B, h, w, K), slope (K,), offset (K,), shape, threads): the map is
 * overwritten. */
static PyObject *scatter_to_maxima(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 10))
        return NULL;
    float *map = address(args[0]);
    const float *dmaxima = address(args[1]), *slope = address(args[2]), *offset = address(args[3]);
    Shape s = shape(args + 4);
    int threads = at_hand(integer(args[9]));
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < s.batch; b++)
        image_gradient(map + b * map_size(s), s, dmaxima + b * pooled_size(s) * s.kernels, slope, offset);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* activate(x (B, D, K), scale (K,), shift (K,), negative slope, y (B, D, K), rows (K, B, D), B, D, K, threads) */
static PyObject *activate(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 10))
        return NULL;
    const float *x = address(args[0]), *scale = address(args[1]), *shift = address(args[2]);
    float slope = (float)real(args[3]), *y = address(args[4]), *rows = address(args[5]);
    int64_t batch = integer(args[6]), size = integer(args[7]), kernels = integer(args[8]);
    int threads = at_hand(integer(args[9]));
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < batch; b++) {
        int64_t first = b * size * kernels;
        spela_activate(x + first, size, kernels, scale, shift, slope, y + first);
        spela_turn(y + first, kernels, size, kernels, rows + b * size, batch * size);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* descend(x (B, D, K), y (B, D, K), dy (B, K, D), its strides along B and K, scale (K,), centre (K,), negative slope,
 *         dx (B, D, K), total (B, 2, K) float64, scratch (B, 2, K), B, D, K, threads) */
static PyObject *descend(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    if (!has(count, 15))
        return NULL;
    const float *x = address(args[0]), *y = address(args[1]), *dy = address(args[2]);
    int64_t step = integer(args[3]), stride = integer(args[4]);
    const float *scale = address(args[5]), *centre = address(args[6]);
    float slope = (float)real(args[7]), *dx = address(args[8]), *scratch = address(args[10]);
    double *total = address(args[9]);
    int64_t batch = integer(args[11]), size = integer(args[12]), kernels = integer(args[13]);
    int threads = at_hand(integer(args[14]));
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
#pragma omp parallel for num_threads(threads)
    for (int64_t b = 0; b < batch; b++) {
        int64_t first = b * size * kernels, own = b * 2 * kernels;
        image_descent(x + first, y + first, dy + b * step, stride, size, kernels, scale, centre, slope, dx + first,
                      total + own, scratch + own);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    METHOD(window_maxima), METHOD(activate), METHOD(descend), METHOD(scatter_to_maxima), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_windows", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__windows(void) { return mind_forks() == 0 ? module_of(&definition) : PyErr_NoMemory(); }
