/* The products for one width of vectors; `products.c` includes this once a width, with
 *   NAME(x)  x under this width's name
 *   TARGET   what the compiler may use
 *   LANES    floats in a vector
 *   ROWS     rows of a tile, one factor each
 *   VECTORS  vectors of a tile's columns; ROWS * VECTORS sums and VECTORS + 1 more fit the registers.
 */
#define COLUMNS (VECTORS * LANES)

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(loose) __attribute__((vector_size(4 * LANES), aligned(4)));

/* g (ROWS, COLUMNS), `vectors` wide, = (`onto`: +=) the sum over k < count of factors[k * step + r * apart] times row k of
 * `packed` (count, COLUMNS). */
TARGET static inline __attribute__((always_inline)) void NAME(multiply)(const float *factors, int64_t step,
                                                                        int64_t apart, const float *packed,
                                                                        int64_t count, int vectors, int onto, float *g)
{
    NAME(vector) sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = onto ? *(const NAME(loose) *)(g + r * COLUMNS + v * LANES) : (NAME(loose)){0};
    for (int64_t k = 0; k < count; k++, factors += step, packed += COLUMNS) {
        NAME(vector) row[VECTORS];
        for (int v = 0; v < vectors; v++)
            row[v] = *(const NAME(loose) *)(packed + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[r][v] += factors[r * apart] * row[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            *(NAME(loose) *)(g + r * COLUMNS + v * LANES) = sums[r][v];
}

/* The number of vectors is a constant of each call: only then do the sums stay in registers. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(const float *factors, int64_t step, int64_t apart,
                                                                    const float *packed, int64_t count,
                                                                    int64_t columns, int onto, float *g)
{
    switch ((columns + LANES - 1) / LANES) {
    case 1:
        NAME(multiply)(factors, step, apart, packed, count, 1, onto, g);
        break;
    case 2:
        NAME(multiply)(factors, step, apart, packed, count, 2, onto, g);
        break;
    case VECTORS - 1 > 2 ? VECTORS - 1 : -1:
        NAME(multiply)(factors, step, apart, packed, count, VECTORS - 1, onto, g);
        break;
    default:
        NAME(multiply)(factors, step, apart, packed, count, VECTORS, onto, g);
    }
}

/* A row of gradients into the weights. */
TARGET static inline __attribute__((always_inline)) void NAME(apply_here)(const struct rule *rule,
                                                                          const float *restrict g, int64_t size,
                                                                          float *restrict w, float *restrict m,
                                                                          float *restrict v)
{
    switch (rule->kind) {
    case PLAIN:
        for (int64_t j = 0; j < size; j++)
            w[j] = normal(rule->beta * w[j] + rule->alpha * g[j]);
        return;
    case MOMENTUM:
        for (int64_t j = 0; j < size; j++) {
            float slope = g[j] + rule->decay * w[j];
            m[j] = normal(rule->beta * m[j] + slope);
            w[j] -= rule->rate * (rule->nesterov ? slope + rule->beta * m[j] : m[j]);
        }
        return;
    case ADAM:
        for (int64_t j = 0; j < size; j++) {
            float slope = g[j] + rule->decay * w[j];
            m[j] = normal(m[j] + rule->share1 * (slope - m[j]));
            v[j] = normal(v[j] + rule->share2 * (slope * slope - v[j]));
            w[j] -= rule->rate * m[j] / (sqrtf(v[j]) * rule->spread + rule->eps);
        }
    }
}

TARGET static void NAME(apply)(const struct rule *rule, const float *g, int64_t size, float *w, float *m, float *v)
{
    NAME(apply_here)(rule, g, size, w, m, v);
}

/* `size` columns of rows that are `stride` apart, `width` of them next to each other; zeros fill the last. */
TARGET static void NAME(pack)(const float *rows, int64_t batch, int64_t stride, int64_t size, int64_t width,
                              float *packed)
{
    for (int64_t b = 0; b < batch; b++, rows += stride, packed += width) {
        for (int64_t j = 0; j < size; j++)
            packed[j] = rows[j];
        for (int64_t j = size; j < width; j++)
            packed[j] = 0;
    }
}

TARGET static void NAME(update)(const struct rule *rule, struct shape s, const float *dz, const float *x, float *w,
                                float *m, float *v, float *scratch, int threads)
{
    int64_t blocks = (s.outputs + ROWS - 1) / ROWS, panels = (s.inputs + COLUMNS - 1) / COLUMNS;
    float *packed_x = scratch, *packed_dz = scratch + panels * COLUMNS * s.batch;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) nowait
        for (int64_t p = 0; p < panels; p++)
            NAME(pack)(x + p * COLUMNS, s.batch, s.inputs, least(s.inputs - p * COLUMNS, COLUMNS), COLUMNS,
                       packed_x + p * COLUMNS * s.batch);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < blocks; o++)
            NAME(pack)(dz + o * ROWS, s.batch, s.outputs, least(s.outputs - o * ROWS, ROWS), ROWS,
                       packed_dz + o * ROWS * s.batch);
#pragma omp for schedule(static)
        for (int64_t o = 0; o < blocks; o++)
            for (int64_t p = 0; p < panels; p++) {
                int64_t rows = least(s.outputs - o * ROWS, ROWS), columns = least(s.inputs - p * COLUMNS, COLUMNS);
                int64_t at = o * ROWS * s.inputs + p * COLUMNS;
                float g[ROWS * COLUMNS];
                /* The next tile's weights are on their way while this one is computed. */
                int64_t next = p + 1 < panels ? at + COLUMNS : (o + 1) * ROWS * s.inputs;
                if (p + 1 < panels || o + 2 < blocks)
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t j = 0; j < COLUMNS; j += 16) {
                            __builtin_prefetch(w + next + r * s.inputs + j, 1);
                            if (rule->kind != PLAIN)
                                __builtin_prefetch(m + next + r * s.inputs + j, 1);
                            if (rule->kind == ADAM)
                                __builtin_prefetch(v + next + r * s.inputs + j, 1);
                        }
                NAME(tile)(packed_dz + o * ROWS * s.batch, ROWS, 1, packed_x + p * COLUMNS * s.batch, s.batch, columns, 0,
                           g);
                for (int64_t r = 0; r < rows; r++, at += s.inputs)
                    if (columns == COLUMNS) /* a constant size: its loop is unrolled */
                        NAME(apply_here)(rule, g + r * COLUMNS, COLUMNS, w + at, m + at, v + at);
                    else
                        NAME(apply_here)(rule, g + r * COLUMNS, columns, w + at, m + at, v + at);
            }
    }
}

/* packed (count, COLUMNS) = x^T of `size` samples and at most LANES of their inputs; the other columns are zeros. */
TARGET static void NAME(turn)(const float *x, int64_t inputs, int64_t size, int64_t count, float *packed)
{
    if (size < COLUMNS)
        memset(packed, 0, count * COLUMNS * sizeof *packed);
    for (int64_t b = 0; b < size; b++, x += inputs)
        for (int64_t i = 0; i < count; i++)
            packed[i * COLUMNS + b] = x[i];
}

/* y (B, ROWS) of `samples`, `apart` from each other, from rows `from` on: sums g (ROWS, COLUMNS) through bias and
 * LeakyReLU. */
TARGET static void NAME(finish)(const float *g, const float *bias, float slope, int64_t samples, int64_t from,
                                int64_t apart, float *y)
{
    float shift[ROWS];
    for (int r = 0; r < ROWS; r++)
        shift[r] = bias ? bias[r] : 0;
    if (from == 0)
        for (int64_t b = 0; b < samples; b++)
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++)
                y[b * apart + r] = leaky(g[r * COLUMNS + b] + shift[r], slope);
    else
        for (int64_t b = 0; b < samples; b++)
            for (int64_t r = from; r < ROWS; r++)
                y[b * apart + r] = leaky(g[r * COLUMNS + b] + shift[r], slope);
}

/* sums (ROWS, rest, LANES) += products of w's rows with `samples` of the rest, lane by lane. */
TARGET static inline __attribute__((always_inline)) void NAME(lanes)(const float *w, const float *x, int64_t inputs,
                                                                     int64_t count, int samples, int64_t rest,
                                                                     float *sums)
{
    NAME(vector) own[ROWS][2];
    int64_t i = 0;
    for (int r = 0; r < ROWS; r++)
        for (int b = 0; b < samples; b++)
            own[r][b] = *(const NAME(loose) *)(sums + (r * rest + b) * LANES);
    for (; i + LANES <= count; i += LANES)
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            NAME(vector) factors = *(const NAME(loose) *)(w + r * inputs + i);
#pragma GCC unroll 2
            for (int b = 0; b < samples; b++)
                own[r][b] += factors * *(const NAME(loose) *)(x + b * inputs + i);
        }
    for (; i < count; i++)
        for (int r = 0; r < ROWS; r++)
            for (int b = 0; b < samples; b++)
                own[r][b][0] += w[r * inputs + i] * x[b * inputs + i];
    for (int r = 0; r < ROWS; r++)
        for (int b = 0; b < samples; b++)
            *(NAME(loose) *)(sums + (r * rest + b) * LANES) = own[r][b];
}

/* Inputs that are multiplied before the next: their packed samples stay in the first cache. */
#define DEPTH 128
/* Samples that are finished together: a divisor of COLUMNS. */
#define FEW 4

/* y (B, O) = x w^T + bias, through LeakyReLU. Samples lie in lanes; the few that would leave most of a vector empty
 * have their products' inputs there instead. The last block of outputs reaches back into the one before. */
TARGET static void NAME(linear)(struct shape s, const float *x, const float *w, const float *bias, float slope,
                                float *y, float *scratch, int threads)
{
    int64_t blocks = (s.outputs + ROWS - 1) / ROWS, rest = s.batch % LANES > LANES / 4 ? 0 : s.batch % LANES;
    int64_t whole = s.batch - rest, panels = (whole + COLUMNS - 1) / COLUMNS;
    float *packed = scratch, *sums = packed + panels * COLUMNS * s.inputs;
    int64_t size = ROWS * (panels * COLUMNS + rest * LANES); /* sums of a block */
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) collapse(2)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t i = 0; i < s.inputs; i += LANES)
                NAME(turn)(x + p * COLUMNS * s.inputs + i, s.inputs, least(whole - p * COLUMNS, COLUMNS),
                           least(s.inputs - i, LANES), packed + (p * s.inputs + i) * COLUMNS);
        for (int64_t start = 0; start == 0 || start < s.inputs; start += DEPTH) { /* once if there are none */
            int64_t depth = least(s.inputs - start, DEPTH);
#pragma omp for schedule(static) nowait /* the same blocks to the same threads each time */
            for (int64_t o = 0; o < blocks; o++) {
                const float *own = w + least(o * ROWS, s.outputs - ROWS) * s.inputs + start;
                float *g = sums + o * size;
                if (o + 2 < blocks)
                    for (int64_t r = 0; r < ROWS; r++)
                        for (int64_t i = 0; i < depth; i += 16)
                            __builtin_prefetch(own + (ROWS + r) * s.inputs + i);
                for (int64_t p = 0; p < panels; p++, g += ROWS * COLUMNS) {
                    const float *samples = packed + (p * s.inputs + start) * COLUMNS;
                    int64_t columns = least(whole - p * COLUMNS, COLUMNS);
                    if (start == 0)
                        NAME(tile)(own, 1, s.inputs, samples, depth, columns, 0, g);
                    else
                        NAME(tile)(own, 1, s.inputs, samples, depth, columns, 1, g);
                }
                if (start == 0)
                    for (int64_t j = 0; j < ROWS * rest * LANES; j++)
                        g[j] = 0;
                const float *last = x + whole * s.inputs + start;
                for (int64_t b = 0; b + 2 <= rest; b += 2) /* two at a time: w is read half as often */
                    NAME(lanes)(own, last + b * s.inputs, s.inputs, depth, 2, rest, g + b * LANES);
                if (rest % 2)
                    NAME(lanes)(own, last + (rest - 1) * s.inputs, s.inputs, depth, 1, rest, g + (rest - 1) * LANES);
            }
        }
        /* Each thread finishes its own blocks: no waiting. A few samples at a time: rows of y often lie a multiple of
         * 4 KB apart, where the cache holds only some. */
        for (int64_t b = 0; b < whole; b += FEW)
#pragma omp for schedule(static) nowait
            for (int64_t o = 0; o < blocks; o++) {
                int64_t first = least(o * ROWS, s.outputs - ROWS);
                NAME(finish)(sums + o * size + b / COLUMNS * ROWS * COLUMNS + b % COLUMNS, bias ? bias + first : NULL,
                             slope, least(FEW, whole - b), o * ROWS - first, s.outputs, y + b * s.outputs + first);
            }
        for (int64_t b = 0; b < rest; b++)
#pragma omp for schedule(static) nowait
            for (int64_t o = 0; o < blocks; o++) {
                int64_t first = least(o * ROWS, s.outputs - ROWS);
                const float *own = sums + o * size + panels * ROWS * COLUMNS + b * LANES;
                float g[ROWS * COLUMNS];
                for (int r = 0; r < ROWS; r++) {
                    g[r * COLUMNS] = 0;
                    for (int lane = 0; lane < LANES; lane++)
                        g[r * COLUMNS] += own[r * rest * LANES + lane];
                }
                NAME(finish)(g, bias ? bias + first : NULL, slope, 1, o * ROWS - first, s.outputs,
                             y + (whole + b) * s.outputs + first);
            }
    }
}
#undef FEW
#undef DEPTH

/* Floats of scratch memory. */
static int64_t NAME(scratch)(struct shape s)
{
    int64_t samples = (s.batch + COLUMNS - 1) / COLUMNS * COLUMNS + LANES / 4 * LANES;
    int64_t inputs = (s.inputs + COLUMNS - 1) / COLUMNS * COLUMNS, outputs = (s.outputs + ROWS - 1) / ROWS * ROWS;
    int64_t update = (inputs + outputs) * s.batch, linear = (s.inputs + outputs) * samples;
    return update > linear ? update : linear;
}

#undef COLUMNS
#undef NAME
#undef TARGET
#undef LANES
#undef ROWS
#undef VECTORS
