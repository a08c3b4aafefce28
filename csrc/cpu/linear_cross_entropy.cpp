// Cross-entropy over the classes of a linear layer, with its gradients, row block by row block.
//
// A block of rows meets all classes: their logits, transposed [v, rows] and to base 2, are the only
// large thing in memory. Once a block's log-sum-exps are known, its logits are turned into weights
// in place and multiplied into the gradients: 6 n v dim FLOP for value and gradients, 2 n v dim for
// the value alone (with one scratch tile a thread and no block). The weight matrix is read as it
// lies and packed a tile at a time; nothing of its size is copied.
#include <sslfast/cpu.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <omp.h>

#include "buffer.h"
#include "class_gradients.h"
#include "factor.h"
#include "packed.h"
#include "schedule.h"
#include "tile.h"

namespace sslfast::cpu {
namespace {

constexpr int row_block = 256;
constexpr int class_block = ClassGradients::class_block;

class Work {
  public:
    Work(const LinearClassifier& problem, const LinearGradients* gradients)
        : p_(problem),
          g_(gradients),
          kernels_(tile_kernels()),
          blocks_(ClassGradients::blocks(p_.v)),
          height_(static_cast<int>(std::min<std::int64_t>(row_block, p_.n))),
          transposed_(height_, p_.dim, kernels_.width),
          gradients_(p_.weight, p_.v, p_.dim, height_, p_.threads,
                     g_ != nullptr && g_->d_hidden != nullptr,
                     g_ == nullptr ? nullptr : g_->d_weight),
          logits_(make_buffer(g_ == nullptr ? 1 : static_cast<std::size_t>(p_.v) * height_)),
          maxima_(make_buffer(blocks_ * height_)),
          sums_(make_buffer(blocks_ * height_)),
          target_(height_),
          maximum_(height_),
          weight_(height_),
          target_weight_(height_) {
        if (g_ == nullptr || p_.softcap != 0)
            tiles_ = make_buffer(static_cast<std::size_t>(class_block) * height_ * p_.threads);
        if (g_ == nullptr) return;
        if (g_->d_bias != nullptr) std::fill_n(g_->d_bias, p_.v, 0.0f);
    }

    void rows(std::int64_t first, float* lse, float* target_logit) {
        first_ = first;
        count_ = static_cast<int>(std::min<std::int64_t>(height_, p_.n - first));
        const float* x = p_.hidden + first * p_.dim;
        transposed_.pack(x, count_, p_.threads);
#pragma omp parallel for num_threads(p_.threads) schedule(dynamic)
        for (std::int64_t b = 0; b < blocks_; ++b)
            forward(ClassGradients::block(p_.v, b), b, transposed_.of({0, count_}), target_logit);
#pragma omp parallel for num_threads(p_.threads) schedule(static)
        for (int r = 0; r < count_; ++r) finish_row(r, lse, target_logit);
        if (g_ == nullptr) return;
        gradients_.add(
            x, count_, height_, [&](Block classes) { return weigh(classes); },
            [&](Block classes) { add_targets(classes); });
        if (g_->d_hidden != nullptr) add_hidden();
    }

    // After all rows: the weights' gradient becomes a matrix.
    void finish() { gradients_.finish(); }

  private:
    // This thread's scratch tile, for one block.
    float* own_tile() {
        return tiles_.get() +
               static_cast<std::size_t>(class_block) * height_ * omp_get_thread_num();
    }
    // Calls visit(row, class within the block) for the rows whose target is in a block.
    template <typename Visit>
    void for_targets(Block classes, Visit visit) const {
        for (int r = 0; p_.targets != nullptr && r < count_; ++r) {
            const std::int64_t j = p_.targets[first_ + r] - classes.first;
            if (0 <= j && j < classes.size) visit(r, j);
        }
    }

    void forward(Block classes, std::int64_t b, Panels columns, float* target_logit) {
        float* tile = g_ == nullptr ? own_tile() : logits_.get() + classes.first * height_;
        kernels_.multiply(classes.size, count_, p_.dim,
                          {p_.weight + classes.first * p_.dim, p_.dim, 1}, columns, &factor_, false,
                          tile, height_);
        for (int j = 0; p_.bias != nullptr && j < classes.size; ++j) {
            const float bias = p_.bias[classes.first + j] * log2_e;
            for (int r = 0; r < count_; ++r) tile[j * height_ + r] += bias;
        }
        if (p_.softcap != 0)
            kernels_.softcap(tile, height_, classes.size, count_, inverse_cap_, cap_);
        for_targets(classes, [&](int r, std::int64_t j) {
            target_[r] = tile[j * height_ + r];
            target_logit[first_ + r] = target_[r] * ln_2;
            tile[j * height_ + r] = -std::numeric_limits<float>::infinity();
        });
        kernels_.column_sums(tile, height_, classes.size, count_, maxima_.get() + b * height_,
                             sums_.get() + b * height_);
    }

    void finish_row(int r, float* lse, const float* target_logit) {
        float maximum = -1e30f;
        double others = 0;
        for (std::int64_t b = 0; b < blocks_; ++b)
            maximum = std::max(maximum, maxima_[b * height_ + r]);
        for (std::int64_t b = 0; b < blocks_; ++b)
            others += sums_[b * height_ + r] * std::exp2(maxima_[b * height_ + r] - maximum);
        const std::int64_t i = first_ + r;
        lse[i] = static_cast<float>((maximum + std::log2(others)) / log2_e_exact);
        if (g_ == nullptr) return;
        // p_j = 2^(t_j - greatest) / total, without a log-sum-exp: rounded to a float, the large
        // ones of a low temperature have few digits behind the point.
        const double target = p_.targets == nullptr ? target_logit[i] * log2_e_exact : target_[r];
        const double greatest = std::max<double>(maximum, target);
        others *= std::exp2(maximum - greatest);
        const double total = others + std::exp2(target - greatest);
        const double weight = g_->row_weight[i];
        maximum_[r] = static_cast<float>(greatest);
        weight_[r] = static_cast<float>(weight / total * std::exp2(maximum_[r] - greatest));
        // 1 - p of the target without cancellation: p may be close to 1.
        double slope = 1;
        if (p_.softcap != 0) {
            const double share = target / (p_.softcap * log2_e_exact);
            slope -= share * share;
        }
        target_weight_[r] =
            static_cast<float>(weight * (g_->smoothing - uniform_ - others / total) * slope);
    }

    // A tile of logits becomes the weights G, those of the targets aside.
    const float* weigh(Block classes) {
        float* tile = logits_.get() + classes.first * height_;
        // Of the softcap, 1 - tanh^2, from the logits before the weights take their place.
        float* slopes = p_.softcap == 0 ? nullptr : own_tile();
        for (int j = 0; slopes != nullptr && j < classes.size; ++j)
            for (int r = 0; r < count_; ++r) {
                const float share = inverse_cap_ * tile[j * height_ + r];
                slopes[j * height_ + r] = 1.0f - share * share;
            }
        kernels_.weigh(tile, height_, classes.size, count_, nullptr, nullptr, maximum_.data(),
                       weight_.data(), nullptr);
        for (int j = 0; uniform_ != 0.0f && j < classes.size; ++j)
            for (int r = 0; r < count_; ++r)
                tile[j * height_ + r] -= uniform_ * g_->row_weight[first_ + r];
        for (int j = 0; slopes != nullptr && j < classes.size; ++j)
            for (int r = 0; r < count_; ++r) tile[j * height_ + r] *= slopes[j * height_ + r];
        for_targets(classes, [&](int r, std::int64_t j) { tile[j * height_ + r] = 0.0f; });
        if (g_->d_bias != nullptr)
            for (int j = 0; j < classes.size; ++j) {
                float sum = 0.0f;
                for (int r = 0; r < count_; ++r) sum += tile[j * height_ + r];
                g_->d_bias[classes.first + j] += sum;
            }
        return tile;
    }

    // The targets are added last, outside the products: beside them the small terms of the other
    // classes would lose digits.
    void add_targets(Block classes) {
        for_targets(classes, [&](int r, std::int64_t j) {
            if (g_->d_bias != nullptr) g_->d_bias[classes.first + j] += target_weight_[r];
            gradients_.add_to_weight(classes, j, target_weight_[r],
                                     p_.hidden + (first_ + r) * p_.dim);
        });
    }
    void add_hidden() {
        gradients_.write_rows([&](int r) { return g_->d_hidden + (first_ + r) * p_.dim; });
        for (int r = 0; p_.targets != nullptr && r < count_; ++r) {
            const float* target = p_.weight + p_.targets[first_ + r] * p_.dim;
            float* out = g_->d_hidden + (first_ + r) * p_.dim;
            for (int d = 0; d < p_.dim; ++d) out[d] += target_weight_[r] * target[d];
        }
    }

    const LinearClassifier& p_;
    const LinearGradients* g_;
    const TileKernels& kernels_;
    Factor factor_ = make_factor(log2_e_exact);  // logits are to base 2
    Factor cap_ = make_factor(p_.softcap * log2_e_exact);
    float inverse_cap_ = static_cast<float>(1 / (p_.softcap * log2_e_exact));  // unused without
    std::int64_t blocks_;
    int height_;  // rows of a full block
    PackedTransposed transposed_;
    ClassGradients gradients_;
    Buffer logits_, maxima_, sums_, tiles_;
    // Of the current rows: the targets' logits and the greatest, to base 2, and the weights of
    // 2^(t - greatest) and of the target.
    std::vector<float> target_, maximum_, weight_, target_weight_;
    float uniform_ = g_ == nullptr ? 0.0f : g_->smoothing / static_cast<float>(p_.v);
    std::int64_t first_ = 0;
    int count_ = 0;
};

}  // namespace

void linear_cross_entropy(const LinearClassifier& problem, float* lse, float* target_logit,
                          const LinearGradients* gradients) {
    Work work(problem, gradients);
    for (std::int64_t first = 0; first < problem.n; first += row_block)
        work.rows(first, lse, target_logit);
    work.finish();
}

}  // namespace sslfast::cpu
