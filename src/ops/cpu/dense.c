/* The meaning of products, SwiGLU, RMSNorm and the elementwise ops. Each forward, then its backward. */
#include "ops/cpu/plain.h"
#include <string.h>

/* ---- linear ----------------------------------------------------------------------------------- */

/* One expert's part of a product: rows `first` .. `first + rows - 1` of the tokens, and weights [n, k] from
 * `w` on. */
typedef struct {
    int64_t first, rows, w;
} Part;

/* A dense product is that of one expert which owns all rows. `weights`: elements of one expert's [n, k]. */
static Part part_of(const int64_t *rows, int64_t expert, int64_t all_rows, int64_t weights) {
    if (rows == NULL) return (Part){.rows = all_rows};
    Part p = {.rows = rows[expert], .w = expert * weights};
    for (int64_t e = 0; e < expert; e++) p.first += rows[e];
    return p;
}

/* y[r,i] = sum_j x[r,j] w[i,j] */
void plain_linear(Stream *s, const void *arguments) {
    (void)s;
    const LinearArgs *a = arguments;
    Tensor y = a->out, x = a->left, w = a->right;
    int64_t n = y.dim[1], k = x.dim[1], experts = a->rows == NULL ? 1 : w.dim[0];
    for (int64_t e = 0; e < experts; e++) {
        Part p = part_of(a->rows, e, x.dim[0], n * k);
        for (int64_t r = p.first; r < p.first + p.rows; r++) {
            for (int64_t i = 0; i < n; i++) {
                double sum = 0;
                for (int64_t j = 0; j < k; j++) sum += tensor_get(x, r * k + j) * tensor_get(w, p.w + i * k + j);
                tensor_put(y, r * n + i, sum);
            }
        }
    }
}

/* dx[r,j] (+)= sum_i dy[r,i] w[i,j] */
void plain_linear_dx(Stream *s, const void *arguments) {
    (void)s;
    const LinearArgs *a = arguments;
    Tensor dx = a->out, dy = a->left, w = a->right;
    int64_t n = dy.dim[1], k = dx.dim[1], experts = a->rows == NULL ? 1 : w.dim[0];
    for (int64_t e = 0; e < experts; e++) {
        Part p = part_of(a->rows, e, dy.dim[0], n * k);
        for (int64_t r = p.first; r < p.first + p.rows; r++) {
            for (int64_t j = 0; j < k; j++) {
                double sum = a->add ? tensor_get(dx, r * k + j) : 0;
                for (int64_t i = 0; i < n; i++) sum += tensor_get(dy, r * n + i) * tensor_get(w, p.w + i * k + j);
                tensor_put(dx, r * k + j, sum);
            }
        }
    }
}

/* dw[i,j] += sum_r dy[r,i] x[r,j] */
void plain_linear_dw(Stream *s, const void *arguments) {
    (void)s;
    const LinearArgs *a = arguments;
    Tensor dw = a->out, dy = a->left, x = a->right;
    int64_t n = dy.dim[1], k = x.dim[1], experts = a->rows == NULL ? 1 : dw.dim[0];
    for (int64_t e = 0; e < experts; e++) {
        Part p = part_of(a->rows, e, dy.dim[0], n * k);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < k; j++) {
                double sum = 0;
                for (int64_t r = p.first; r < p.first + p.rows; r++)
                    sum += tensor_get(dy, r * n + i) * tensor_get(x, r * k + j);
                tensor_add(dw, p.w + i * k + j, sum);
            }
        }
    }
}

/* ---- swiglu ----------------------------------------------------------------------------------- */

static double sigmoid(double a) {
    return 1 / (1 + exp(-a));
}

/* y = weight silu(gate) up */
void plain_swiglu(Stream *s, const void *arguments) {
    (void)s;
    const SwigluArgs *a = arguments;
    int64_t width = a->y.dim[1];
    for (int64_t i = 0; i < tensor_count(a->y); i++) {
        double gate = tensor_get(a->gate, i), up = tensor_get(a->up, i);
        double weight = tensor_none(a->weight) ? 1 : tensor_get(a->weight, i / width);
        tensor_put(a->y, i, weight * gate * sigmoid(gate) * up);
    }
}

/* dgate = dy weight up silu'(gate),  dup = dy weight silu(gate),  dweight = sum dy silu(gate) up;
 * silu'(a) = sigmoid(a) (1 + a (1 - sigmoid(a))) */
void plain_swiglu_backward(Stream *s, const void *arguments) {
    (void)s;
    const SwigluArgs *a = arguments;
    bool weighted = !tensor_none(a->weight);
    int64_t rows = a->dy.dim[0], width = a->dy.dim[1];
    for (int64_t r = 0; r < rows; r++) {
        double weight = weighted ? tensor_get(a->weight, r) : 1, dweight = 0;
        for (int64_t i = r * width; i < (r + 1) * width; i++) {
            double gate = tensor_get(a->gate, i), up = tensor_get(a->up, i), dy = tensor_get(a->dy, i);
            double sigma = sigmoid(gate), silu = gate * sigma;
            dweight += dy * silu * up;
            tensor_put(a->dgate, i, dy * weight * up * sigma * (1 + gate * (1 - sigma)));
            tensor_put(a->dup, i, dy * weight * silu);
        }
        if (weighted) tensor_put(a->dweight, r, dweight);
    }
}

/* ---- rms_norm --------------------------------------------------------------------------------- */

/* y = round(x inverse) w,  inverse = 1 / sqrt(mean(x^2) + epsilon) */
void plain_rms_norm(Stream *s, const void *arguments) {
    (void)s;
    const NormArgs *a = arguments;
    int64_t rows = a->x.dim[0], width = a->x.dim[1];
    for (int64_t r = 0; r < rows; r++) {
        double squares = 0;
        for (int64_t i = 0; i < width; i++) squares += pow(tensor_get(a->x, r * width + i), 2);
        double inverse = 1 / sqrt(squares / (double)width + a->epsilon);
        tensor_put(a->inverse, r, inverse);
        for (int64_t i = 0; i < width; i++) {
            double xhat = type_round(a->y.type, tensor_get(a->x, r * width + i) * inverse);
            tensor_put(a->y, r * width + i, xhat * tensor_get(a->w, i));
        }
    }
}

/* dx (+)= inverse (dy w - xhat mean(dy w xhat)),  dw += sum_r dy xhat;  xhat = x inverse */
void plain_rms_norm_backward(Stream *s, const void *arguments) {
    (void)s;
    const NormArgs *a = arguments;
    int64_t rows = a->x.dim[0], width = a->x.dim[1];
    for (int64_t i = 0; i < width; i++) {
        double sum = 0;
        for (int64_t r = 0; r < rows; r++) {
            int64_t at = r * width + i;
            sum += tensor_get(a->dy, at) * tensor_get(a->x, at) * tensor_get(a->inverse, r);
        }
        tensor_add(a->dw, i, sum);
    }
    for (int64_t r = 0; r < rows; r++) {
        double inverse = tensor_get(a->inverse, r), mean = 0;
        for (int64_t i = 0; i < width; i++) {
            int64_t at = r * width + i;
            mean += tensor_get(a->dy, at) * tensor_get(a->w, i) * tensor_get(a->x, at) * inverse / (double)width;
        }
        for (int64_t i = 0; i < width; i++) {
            int64_t at = r * width + i;
            double dxhat = tensor_get(a->dy, at) * tensor_get(a->w, i), xhat = tensor_get(a->x, at) * inverse;
            double before = a->add ? tensor_get(a->dx, at) : 0;
            tensor_put(a->dx, at, before + inverse * (dxhat - xhat * mean));
        }
    }
}

/* ---- Elementwise ------------------------------------------------------------------------------ */

void plain_add(Stream *s, const void *arguments) {
    (void)s;
    const AddArgs *a = arguments;
    for (int64_t i = 0; i < tensor_count(a->y); i++) tensor_put(a->y, i, tensor_get(a->a, i) + tensor_get(a->b, i));
}

/* Of any type: zero is all bits 0. */
void plain_zero(Stream *s, const void *arguments) {
    (void)s;
    const AddArgs *a = arguments;
    memset(a->y.data, 0, tensor_bytes(a->y));
}

/* Of one type any bits travel unchanged; between real types each element is rounded. */
void plain_copy(Stream *s, const void *arguments) {
    (void)s;
    const AddArgs *a = arguments;
    if (a->y.type == a->a.type) {
        memmove(a->y.data, a->a.data, tensor_bytes(a->y));
        return;
    }
    for (int64_t i = 0; i < tensor_count(a->y); i++) tensor_put(a->y, i, tensor_get(a->a, i));
}

/* y[r, y_column + i] = x[r, x_column + i], or that added */
void plain_copy_columns(Stream *s, const void *arguments) {
    (void)s;
    const ColumnsArgs *a = arguments;
    size_t size = type_bytes(a->y.type);
    for (int64_t r = 0; r < a->y.dim[0]; r++) {
        int64_t to = r * a->y.dim[1] + a->y_column, from = r * a->x.dim[1] + a->x_column;
        if (a->y.type == a->x.type && !a->add) {
            memcpy((char *)a->y.data + (size_t)to * size, (const char *)a->x.data + (size_t)from * size,
                   (size_t)a->columns * size);
            continue;
        }
        for (int64_t i = 0; i < a->columns; i++) {
            double before = a->add ? tensor_get(a->y, to + i) : 0;
            tensor_put(a->y, to + i, before + tensor_get(a->x, from + i));
        }
    }
}
