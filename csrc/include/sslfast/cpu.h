// Entry points of the CPU backend. Raw pointers, row-major contiguous arrays, explicit threads.
#pragma once

#include <cstdint>

#include <sslfast/pairing.h>
#include <sslfast/rows.h>

namespace sslfast::cpu {

void philox_random_bits(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                        std::uint64_t seed, std::int64_t stream, std::int64_t count,
                        std::int64_t* out, int threads);

// Logits scale <rows_i, columns_j>; columns null: the symmetric form, rows against themselves,
// whose positives are mutual (2 shift = length = m).
struct Similarities {
    const float* rows;
    std::int64_t m;
    const float* columns;
    std::int64_t n;
    int dim;
    float scale;
    Pairing pairing;
    int threads;
};

// Log-sum-exps (natural) over the columns or rows that the pairing does not leave out, and their
// upstream gradients g.
struct Statistics {
    const double* lse;
    const double* g;
};

// Memory of `size` floats for logits that a backward pass would recompute; null for none.
struct Kept {
    float* data;
    std::int64_t size;
};

// lse [m], positive [m] (untouched where a row has none) and, unless null, column_lse [n].
void similarity_forward(const Similarities& problem, double* lse, double* positive,
                        double* column_lse, Kept kept);

// d_rows [m, dim] = sum_j G_ij columns_j and, unless null, d_columns [n, dim] = sum_i G_ij rows_i
// with G_ij = g_i exp(t_ij - lse_i) + h_j exp(t_ij - column_lse_j) over the negatives; either
// statistics may be null. At the positive of row i, G is positive[i], or 0 where positive is null.
// Symmetric: column is row, and d_columns is null. kept: what the forward pass of the same problem
// saved there; only read. Its first float is 1, or another where nothing was saved.
void similarity_backward(const Similarities& problem, Statistics row, Statistics column,
                         const float* positive, Kept kept, float* d_rows, float* d_columns);

// Which logits are what: of the same group, positives; otherwise left out where the ignored ids are
// the same or the inner product exceeds the threshold; negatives all others. Row i is column
// own + i, which is neither; own is -m or less where rows are no columns.
struct Groups {
    const int *row, *column, *row_ignored, *column_ignored;
    double threshold;  // infinity: none
    std::int64_t own;
};

// Log-sum-exps over the negatives and over the positives of rows [m] and, unless null, columns [n].
void grouped_forward(const Similarities& problem, const Groups& groups, double* lse,
                     double* positive_lse, double* column_lse, double* column_positive_lse,
                     Kept kept);

// d_rows and d_columns as in similarity_backward, of both log-sum-exps of both sides.
void grouped_backward(const Similarities& problem, const Groups& groups, Statistics row,
                      Statistics row_positive, Statistics column, Statistics column_positive,
                      Kept kept, float* d_rows, float* d_columns);

// Prefixes of rows and columns: `count` of them, in the order of their lengths `ends`, multiples of
// 32 of which the last is dim. row [count, m] and column [count, n] hold 1 / norm of every prefix,
// 0 for one without direction; symmetric: column is row.
struct Prefixes {
    const std::int64_t* ends;
    int count;
    const double *row, *column;
    const std::int64_t* kept;  // [count], 1 for those whose inner products a forward pass keeps
};

// The similarity softmax of every prefix in one sweep: logits are scale row_i column_j times the
// inner product of the prefixes. lse, positive [count, m] and, unless null, column_lse [count, n].
void matryoshka_forward(const Similarities& problem, const Prefixes& prefixes, double* lse,
                        double* positive, double* column_lse, Kept kept);

// With G as in similarity_backward, for every prefix p, statistics and positive [count, ...] (the
// latter not null), and C_p the cosines: d_rows_i = sum_p sum_j G_p,ij row_p,i column_p,j y_j, of
// which a prefix reaches its own features only, and row_inner_p,i = sum_j G_p,ij C_p,ij, [count,
// m]; for the columns likewise, unless null. Symmetric: these are null.
void matryoshka_backward(const Similarities& problem, const Prefixes& prefixes, Statistics row,
                         Statistics column, const float* positive, Kept kept, float* d_rows,
                         float* d_columns, float* row_inner, float* column_inner);

// Logits <hidden_i, weight_j> + bias_j; bias may be null. targets[i] in [0, v), or null where the
// targets are no class: then target_logit is given. Unless softcap is 0, logits t stand for softcap
// tanh(t / softcap).
struct LinearClassifier {
    const float* hidden;
    std::int64_t n;
    const float* weight;
    std::int64_t v;
    int dim;
    const float* bias;
    const std::int64_t* targets;
    double softcap;
    int threads;
};

// Of sum_i row_weight_i loss_i, t_i the target's logit and row_weight the upstream gradient, with
//     loss_i = log(1 + exp(lse_i - t_i)) + smoothing (t_i - mean_j t_ij);
// any of d_hidden [n, dim], d_weight [v, dim], d_bias [v] may be null.
struct LinearGradients {
    const float* row_weight;
    float smoothing;
    float *d_hidden, *d_weight, *d_bias;
};

// lse [n], over all classes but the target, target_logit [n] unless it is given, and gradients
// unless null.
void linear_cross_entropy(const LinearClassifier& problem, float* lse, float* target_logit,
                          const LinearGradients* gradients);

// One side's rows [views, samples, dim] and prototypes [k, dim]; its scores are
// scale <row, prototype> + bias, bias [views, k] or null.
struct PrototypeSide {
    const float* rows;
    std::int64_t views;
    const float* weight;
    int dim;
    double scale;
    const float* bias;
};

// See kernels/prototype_cross_entropy; pairs [student.views, teacher.views].
struct PrototypeScores {
    PrototypeSide student, teacher;
    std::int64_t samples, k;
    const float* pairs;
    int threads;
};

// loss [student.views, samples], entropy [teacher.views, samples], usage [k]. row_weight, as loss
// is, is the upstream gradient, or null; d_rows, as student.rows are, and d_weight [k, dim] are
// null without it, and may be.
struct PrototypeResults {
    float *loss, *entropy, *usage;
    const float* row_weight;
    float *d_rows, *d_weight;
};

void prototype_cross_entropy(const PrototypeScores& problem, const PrototypeResults& results);

// With t_ij = scale <rows_i, columns_j> + bias and z_ij = 1 for the pairing's positives, else -1:
// loss_i = sum_j log(1 + exp(-z_ij t_ij)), loss [m]. row_weight [m]: the upstream gradient. Unless
// it is null, with G_ij = -row_weight_i z_ij / (1 + exp(z_ij t_ij)):
//     d_rows [m, dim] = sum_j G_ij columns_j, d_columns [n, dim] = sum_i G_ij rows_i,
//     d_bias [m] = sum_j G_ij.
void sigmoid_contrast(const Similarities& problem, float bias, const float* row_weight, float* loss,
                      float* d_rows, float* d_columns, float* d_bias);

// Of `length` patches of each sample `keep` stay; see kernels/patch_mask. ids_keep [batch, keep],
// ids_restore and mask [batch, length].
void random_patch_mask(const std::int64_t* sample_ids, std::int64_t batch, std::int64_t step,
                       std::uint64_t seed, std::int64_t stream, std::int64_t length,
                       std::int64_t keep, std::int64_t* ids_keep, std::int64_t* ids_restore,
                       bool* mask, int threads);

// Marks in each row [length] of keys in [0, 2^key_bits) the counts[row] smallest, ties by index.
void smallest_keys(const std::int64_t* keys, const std::int64_t* counts, std::int64_t batch,
                   std::int64_t length, int key_bits, bool* chosen, int threads);

void compact_mask(const bool* mask, std::int64_t batch, std::int64_t length, std::int64_t keep,
                  std::int64_t* ids_keep, std::int64_t* ids_restore, int threads);

// out [batch, keep] = tokens [batch, length] at ids [batch, keep], rows of row_bytes; whether all
// ids were inside [0, length). Rows of others are left as they are.
bool gather_rows(const char* tokens, const std::int64_t* ids, std::int64_t batch,
                 std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                 int threads);

// The reverse: out [batch, length], zeros elsewhere; whether a sample's ids were all different. Of
// equal ones the last is written.
bool scatter_rows(const char* rows, const std::int64_t* ids, std::int64_t batch,
                  std::int64_t length, std::int64_t keep, std::int64_t row_bytes, char* out,
                  int threads);

// out [batch, length, dim]; positions [length, dim] or null. Whether all ids were inside
// [0, length).
bool restore_with_tokens(const float* visible, const float* token, const std::int64_t* ids_restore,
                         const float* positions, std::int64_t batch, std::int64_t length,
                         std::int64_t keep, std::int64_t dim, float* out, int threads);

// gradient [batch, length, dim], the upstream gradient. d_visible [batch, keep, dim]: sums over the
// places of a row, zeros where it has none; d_token [batch, dim]: over a sample's hidden places.
void restore_with_tokens_backward(const float* gradient, const std::int64_t* ids_restore,
                                  std::int64_t batch, std::int64_t length, std::int64_t keep,
                                  std::int64_t dim, float* d_visible, float* d_token, int threads);

// Images [batch, channels, frames, height, width]; an image has one frame.
struct PatchGrid {
    std::int64_t channels, frames, height, width, patch_frames, patch_height, patch_width;
};

// out [batch, keep, channels, patch_frames, patch_height, patch_width]; whether all ids were in
// range.
bool cut_patches(const char* images, const std::int64_t* ids, std::int64_t batch, std::int64_t keep,
                 const PatchGrid& grid, std::int64_t item_bytes, char* out, int threads);

// prediction and target [rows, dim], mask [rows].
struct Patches {
    const float* prediction;
    const float* target;
    const bool* mask;
    std::int64_t rows, dim;
    bool norm_target;
    float eps;
    int threads;
};

// loss [rows], 0 where the mask is false.
void masked_mse(const Patches& patches, float* loss);

// gradient [rows], the upstream gradient; d_prediction and, unless null, d_target [rows, dim].
void masked_mse_backward(const Patches& patches, const float* gradient, float* d_prediction,
                         float* d_target);

// Mean and biased variance [columns] of x [rows, columns].
void column_moments(const float* x, std::int64_t rows, std::int64_t columns, int threads,
                    float* mean, float* variance);

// Rows that begin `stride` apart.
template <typename T>
struct StridedRows {
    T* data;
    std::int64_t stride;
    T* row(std::int64_t r) const { return data + r * stride; }
};

// out [rows, columns] = (x - mean) factor.
void standardize_columns(StridedRows<const float> x, std::int64_t rows, std::int64_t columns,
                         const float* mean, const float* factor, int threads,
                         StridedRows<float> out);

// out [columns] = sums over the rows of a b, both [rows, columns].
void column_products(StridedRows<const float> a, StridedRows<const float> b, std::int64_t rows,
                     std::int64_t columns, int threads, float* out);

// The gradient g = alpha product + beta other of standardized features `own`, all [rows, columns],
// and its way back to the features: factor (g - own along), or g where factor is null. along
// [columns] is the mean over the rows of g own; null: taken here, of these rows.
struct CorrelationGradient {
    StridedRows<const float> product, own, other;
    std::int64_t rows, columns;
    float alpha;
    const float *beta, *along, *factor;
};

void correlation_gradient(const CorrelationGradient& gradient, int threads, StridedRows<float> out);

// Numbers p [views, rows, columns], of which waves cos(k step p) and sin(k step p) are taken for
// k = 1 .. count.
struct Projections {
    std::int64_t views, rows, columns;
    double step;
    int count, threads;
};

// sums [views, 2, count, columns] over rows: of cosines, and of sines.
void wave_sums(const float* p, const Projections& projections, double* sums);

// p <- sum_k a_k cos(k step p) + b_k sin(k step p), with a and b in coefficients
// [views, 2, count, columns].
void wave_gradient(float* p, const Projections& projections, const float* coefficients);

// teacher <- momentum teacher + (1 - momentum) student, for all rows; see rows.h.
void ema_update(const Row* rows, std::int64_t n, double momentum, int threads);

// Doubles that optimisers take for each group of parameters: update.h says which.
constexpr int adamw_fields = 5, lars_fields = 4;

// One step for all rows, and their teachers. control: factor of the gradients, momentum of the
// teacher; a negative factor leaves the step out. groups [number of groups, fields]; trust [n], a
// ratio for each row.
void adamw_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
                int threads);
void lars_step(const Row* rows, std::int64_t n, const double* control, const double* groups,
               const double* trust, int threads);

// The level of the instruction set in use: "v4", "v3" (x86-64) or "baseline".
const char* instruction_set();

}  // namespace sslfast::cpu
