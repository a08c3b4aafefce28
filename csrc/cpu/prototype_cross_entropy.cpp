// Cross-entropy between a teacher's and a student's softmax over prototypes, with its gradients.
//
// A block of samples, all views of student and teacher, meets all prototypes: its scores,
// transposed [k, rows] and to base 2, are the only large thing in memory. Once their log-sum-exps
// are known, one pass turns the teacher's into probabilities and the student's into the weights of
// the gradients, which are multiplied while they are in cache: 2 (3 S + T) G k dim FLOP.
#include <sslfast/cpu.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <omp.h>

#include "buffer.h"
#include "class_gradients.h"
#include "factor.h"
#include "packed.h"
#include "tile.h"

namespace sslfast::cpu {
namespace {

// More rows read the prototypes less often, fewer take less memory for their scores.
constexpr std::int64_t row_block = 256;         // of the student
constexpr std::int64_t score_block = 12 << 20;  // floats
constexpr std::int64_t least_rows = 64;

// Samples of a block; whole panels of each view where there are as many.
std::int64_t samples_of_a_block(const PrototypeScores& p) {
    const std::int64_t views = p.student.views + p.teacher.views;
    const std::int64_t most = row_block * views / p.student.views;
    const std::int64_t rows = std::clamp(score_block / p.k, least_rows, most);
    const std::int64_t samples = std::max<std::int64_t>(rows / views, 1);
    return std::min(samples < 16 ? samples : samples / 16 * 16, p.samples);
}

// One side's rows of a block, one view after the other.
class SideRows {
  public:
    SideRows(const PrototypeSide& side, std::int64_t samples, std::int64_t block, int width)
        : side_(side),
          samples_(samples),
          factor_(make_factor(side.scale * log2_e_exact)),
          rows_(make_buffer(side.views * block * side.dim)),
          transposed_(side.views * block, side.dim, width) {}

    void gather(std::int64_t first, int count, int threads) {
        for (std::int64_t view = 0; view < side_.views; ++view)
            std::copy_n(side_.rows + (view * samples_ + first) * side_.dim, count * side_.dim,
                        rows_.get() + view * count * side_.dim);
        count_ = static_cast<int>(side_.views) * count;
        transposed_.pack(rows_.get(), count_, threads);
    }
    int count() const { return count_; }
    const float* rows() const { return rows_.get(); }

    // Base-2 scores of some of the k prototypes: tile [prototypes, count], rows ld apart.
    void score(Block prototypes, std::int64_t k, float* tile, std::ptrdiff_t ld) const {
        tile_kernels().multiply(prototypes.size, count_, side_.dim,
                                {side_.weight + prototypes.first * side_.dim, side_.dim, 1},
                                transposed_.of({0, count_}), &factor_, false, tile, ld);
        if (side_.bias == nullptr) return;
        const int samples = count_ / static_cast<int>(side_.views);
        for (int j = 0; j < prototypes.size; ++j)
            for (int view = 0; view < side_.views; ++view) {
                const float bias = side_.bias[view * k + prototypes.first + j] * log2_e;
                float* scores = tile + j * ld + view * samples;
                for (int r = 0; r < samples; ++r) scores[r] += bias;
            }
    }

  private:
    const PrototypeSide& side_;
    std::int64_t samples_;
    Factor factor_;  // scores are to base 2
    Buffer rows_;
    PackedTransposed transposed_;
    int count_ = 0;
};

class Work {
  public:
    Work(const PrototypeScores& problem, const PrototypeResults& results)
        : p_(problem),
          r_(results),
          block_(samples_of_a_block(p_)),
          blocks_(ClassGradients::blocks(p_.k)),
          height_((p_.teacher.views + p_.student.views) * block_),
          teacher_(p_.teacher, p_.samples, block_, tile_kernels().width),
          student_(p_.student, p_.samples, block_, tile_kernels().width),
          gradients_(p_.student.weight, p_.k, p_.student.dim,
                     static_cast<int>(p_.student.views * block_), p_.threads, r_.d_rows != nullptr,
                     r_.d_weight),
          scores_(make_buffer(static_cast<std::size_t>(p_.k) * height_)),
          maxima_(make_buffer(blocks_ * height_)),
          sums_(make_buffer(blocks_ * height_)),
          targets_(make_buffer(block_ * p_.threads)),
          greatest_(height_),
          log_total_(height_),
          factor_(height_),
          upstream_(p_.student.views * block_) {
        std::fill_n(r_.usage, p_.k, 0.0f);
    }

    void run() {
        for (std::int64_t first = 0; first < p_.samples; first += block_) samples(first);
        gradients_.finish();
        const auto targets = static_cast<float>(p_.teacher.views * p_.samples);
        for (std::int64_t k = 0; k < p_.k; ++k) r_.usage[k] /= targets;
    }

  private:
    void samples(std::int64_t first) {
        first_ = first;
        count_ = static_cast<int>(std::min(block_, p_.samples - first));
        teacher_.gather(first, count_, p_.threads);
        student_.gather(first, count_, p_.threads);
        ld_ = teacher_.count() + student_.count();
#pragma omp parallel for num_threads(p_.threads) schedule(dynamic)
        for (std::int64_t b = 0; b < blocks_; ++b) {
            const Block block = ClassGradients::block(p_.k, b);
            float* tile = scores_.get() + block.first * ld_;
            teacher_.score(block, p_.k, tile, ld_);
            student_.score(block, p_.k, tile + teacher_.count(), ld_);
            tile_kernels().column_sums(tile, ld_, block.size, ld_, maxima_.get() + b * ld_,
                                       sums_.get() + b * ld_);
        }
        for (int r = 0; r < ld_; ++r) finish_row(r);
        gradients_.add(
            student_.rows(), student_.count(), ld_, [&](Block block) { return weigh(block); },
            [](Block) {});
        if (r_.d_rows != nullptr)
            gradients_.write_rows([&](int r) { return r_.d_rows + place(r) * p_.student.dim; });
        for (int r = 0; r < ld_; ++r) {
            double sum = 0;
            for (std::int64_t b = 0; b < blocks_; ++b) sum += sums_[b * ld_ + r];
            const auto value = static_cast<float>(sum * std::log(2.0));
            if (r < teacher_.count())
                r_.entropy[place(r)] = value;
            else
                r_.loss[place(r - teacher_.count())] = value;
        }
    }

    // Where row r of a block's side is among all rows of that side.
    std::int64_t place(int r) const { return r / count_ * p_.samples + first_ + r % count_; }

    void finish_row(int r) {
        float greatest = -1e30f;
        double total = 0;
        for (std::int64_t b = 0; b < blocks_; ++b)
            greatest = std::max(greatest, maxima_[b * ld_ + r]);
        for (std::int64_t b = 0; b < blocks_; ++b)
            total += sums_[b * ld_ + r] * std::exp2(double{maxima_[b * ld_ + r]} - greatest);
        greatest_[r] = greatest;
        log_total_[r] = static_cast<float>(std::log2(total));
        double factor = 1;
        if (r >= teacher_.count()) {
            const int s = r - teacher_.count();
            const float* pairs = p_.pairs + s / count_ * p_.teacher.views;
            double share = 0;
            for (std::int64_t t = 0; t < p_.teacher.views; ++t) share += pairs[t];
            const double upstream = r_.row_weight == nullptr ? 0 : r_.row_weight[place(s)];
            upstream_[s] = static_cast<float>(upstream * p_.student.scale);
            factor = upstream * p_.student.scale * share;
        }
        factor_[r] = static_cast<float>(factor / total);
    }

    // The student's part of a tile becomes the weights G; its sums are taken.
    const float* weigh(Block block) {
        const std::int64_t b = block.first / ClassGradients::class_block;
        float* tile = scores_.get() + block.first * ld_;
        const SoftTargets targets{count_,
                                  static_cast<int>(p_.teacher.views),
                                  static_cast<int>(p_.student.views),
                                  p_.pairs,
                                  greatest_.data(),
                                  log_total_.data(),
                                  factor_.data(),
                                  r_.row_weight == nullptr ? nullptr : upstream_.data()};
        tile_kernels().soft_targets(tile, ld_, block.size, targets,
                                    targets_.get() + block_ * omp_get_thread_num(),
                                    sums_.get() + b * ld_, r_.usage + block.first);
        return tile + teacher_.count();
    }

    const PrototypeScores& p_;
    const PrototypeResults& r_;
    std::int64_t block_, blocks_, height_;
    SideRows teacher_, student_;
    ClassGradients gradients_;
    Buffer scores_, maxima_, sums_, targets_;
    // Of the current rows, the teacher's first: the greatest score, the logarithm of the sum of
    // 2^(score - greatest), what makes its terms probabilities (times the upstream gradient for the
    // student); and the student's upstream gradients.
    std::vector<float> greatest_, log_total_, factor_, upstream_;
    std::int64_t first_ = 0;
    int count_ = 0, ld_ = 0;
};

}  // namespace

void prototype_cross_entropy(const PrototypeScores& problem, const PrototypeResults& results) {
    Work(problem, results).run();
}

}  // namespace sslfast::cpu
