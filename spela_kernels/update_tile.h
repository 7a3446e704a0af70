/* The update for one width of vectors; `update.c` includes this once a width, with
 *   NAME(x)  x under this width's name
 *   TARGET   what the compiler may use
 *   LANES    floats in a vector
 *   ROWS     outputs in a tile
 *   VECTORS  vectors of inputs in a tile; ROWS * VECTORS sums and VECTORS + 1 more fit the registers.
 */
#define COLUMNS (VECTORS * LANES)

typedef float NAME(vector) __attribute__((vector_size(4 * LANES)));
typedef float NAME(loose) __attribute__((vector_size(4 * LANES), aligned(4)));

/* g (ROWS, COLUMNS) = dz^T x for a tile that is `vectors` wide, from packed dz (B, ROWS) and x (B, COLUMNS). */
TARGET static inline __attribute__((always_inline)) void NAME(multiply)(const float *dz, const float *x, int64_t batch,
                                                                        int vectors, float *g)
{
    NAME(vector) sums[ROWS][VECTORS];
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            sums[r][v] = (NAME(vector)){0};
    for (int64_t b = 0; b < batch; b++, dz += ROWS, x += COLUMNS) {
        NAME(vector) row[VECTORS];
        for (int v = 0; v < vectors; v++)
            row[v] = *(const NAME(loose) *)(x + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++)
                sums[r][v] += dz[r] * row[v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < vectors; v++)
            *(NAME(loose) *)(g + r * COLUMNS + v * LANES) = sums[r][v];
}

TARGET static void NAME(tile)(const float *dz, const float *x, int64_t batch, int64_t columns, float *g)
{
    if (columns > (VECTORS - 1) * LANES) /* a constant width: only then do the sums stay in registers */
        NAME(multiply)(dz, x, batch, VECTORS, g);
    else if (columns > LANES)
        NAME(multiply)(dz, x, batch, VECTORS - 1, g);
    else
        NAME(multiply)(dz, x, batch, 1, g);
}

/* One row of a tile into the weights. */
TARGET static void NAME(apply)(const struct rule *rule, const float *restrict g, int64_t size, float *restrict w,
                               float *restrict m, float *restrict v)
{
    if (!rule->adam) {
        for (int64_t j = 0; j < size; j++)
            w[j] = rule->beta * w[j] + rule->alpha * g[j];
        return;
    }
    for (int64_t j = 0; j < size; j++) {
        float slope = g[j] + rule->weight_decay * w[j];
        m[j] += rule->share1 * (slope - m[j]);
        v[j] += rule->share2 * (slope * slope - v[j]);
        w[j] -= rule->rate * m[j] / (sqrtf(v[j]) * rule->spread + rule->eps);
    }
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
                if (p + 1 < panels)
                    for (int64_t r = 0; r < rows; r++)
                        for (int64_t j = COLUMNS; j < 2 * COLUMNS; j += 16) {
                            __builtin_prefetch(w + at + r * s.inputs + j, 1);
                            if (rule->adam) {
                                __builtin_prefetch(m + at + r * s.inputs + j, 1);
                                __builtin_prefetch(v + at + r * s.inputs + j, 1);
                            }
                        }
                NAME(tile)(packed_dz + o * ROWS * s.batch, packed_x + p * COLUMNS * s.batch, s.batch, columns, g);
                for (int64_t r = 0; r < rows; r++, at += s.inputs)
                    NAME(apply)(rule, g + r * COLUMNS, columns, w + at, m + at, v + at);
            }
    }
}

static int64_t NAME(scratch)(struct shape s)
{
    return ((s.inputs + COLUMNS - 1) / COLUMNS * COLUMNS + (s.outputs + ROWS - 1) / ROWS * ROWS) * s.batch;
}

#undef COLUMNS
#undef NAME
#undef TARGET
#undef LANES
#undef ROWS
#undef VECTORS
