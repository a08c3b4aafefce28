// The arithmetic of moving averages and optimisers, on one element.
#pragma once

#include <sslfast/floats.h>

namespace sslfast {

SSLFAST_HOST_DEVICE float square_root(float x) { return __builtin_sqrtf(x); }
SSLFAST_HOST_DEVICE double square_root(double x) { return __builtin_sqrt(x); }

SSLFAST_HOST_DEVICE bool is_finite(float x) { return __builtin_fabsf(x) <= 3.402823466e38f; }
SSLFAST_HOST_DEVICE bool is_finite(double x) { return __builtin_fabs(x) <= 1.7976931348623157e308; }

// start + weight (end - start), exact at both ends: as torch.lerp. Infinities are weighted as they
// are, since the difference of equal ones is NaN; with weight 1 it is the end, whatever the start.
template <typename A>
SSLFAST_HOST_DEVICE A lerp(A start, A end, A weight) {
    const A difference = end - start, rest = A(1) - weight;
    const A between = weight < A(0.5) ? start + weight * difference : end - difference * rest;
    const A moved = is_finite(difference) ? between : rest * start + weight * end;
    return weight == A(1) ? end : moved;
}

// Conversion to another type; to its own the same bits, also those of a NaN.
template <typename T, typename S>
SSLFAST_HOST_DEVICE T converted(S x) {
    return narrow<T>(widen(x));
}
template <>
SSLFAST_HOST_DEVICE BFloat16 converted<BFloat16>(BFloat16 x) {
    return x;
}
template <>
SSLFAST_HOST_DEVICE Float16 converted<Float16>(Float16 x) {
    return x;
}

// The EMA of a teacher; an optimiser's student is the parameter as stored, after rounding.
template <typename T, typename S>
SSLFAST_HOST_DEVICE void follow(T& teacher, S student, double weight) {
    using A = typename Arithmetic<T, S>::type;
    teacher = narrow<T>(lerp<A>(widen(teacher), widen(student), static_cast<A>(weight)));
}

// Of one tensor, in one step.
template <typename A>
struct AdamwNumbers {
    A factor;                   // of the gradient: clipping
    A keep;                     // 1 - lr weight_decay
    A weight1, beta2, weight2;  // weight = 1 - beta
    A step_size;                // lr / (1 - beta1^step)
    A scale;                    // 1 / sqrt(1 - beta2^step)
    A eps;
};

template <typename A>
SSLFAST_HOST_DEVICE AdamwNumbers<A> numbers_as(const AdamwNumbers<double>& n) {
    return {A(n.factor),  A(n.keep),      A(n.weight1), A(n.beta2),
            A(n.weight2), A(n.step_size), A(n.scale),   A(n.eps)};
}

// group: lr, beta1, beta2, eps, weight_decay, in double, so that 1 - beta loses nothing;
// correction = 1 - beta^step.
SSLFAST_HOST_DEVICE AdamwNumbers<double> adamw_numbers(double factor, const double* group,
                                                       double correction1, double correction2) {
    const double lr = group[0], beta1 = group[1], beta2 = group[2];
    return {factor,
            1 - lr * group[4],
            1 - beta1,
            beta2,
            1 - beta2,
            lr / correction1,
            1 / square_root(correction2),
            group[3]};
}

// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2).
template <typename A>
SSLFAST_HOST_DEVICE void adamw(const AdamwNumbers<A>& n, A gradient, A& parameter, A& exp_avg,
                               A& exp_avg_sq) {
    const A g = n.factor * gradient;
    exp_avg += n.weight1 * (g - exp_avg);
    exp_avg_sq = n.beta2 * exp_avg_sq + n.weight2 * g * g;
    const A denominator = square_root(exp_avg_sq) * n.scale + n.eps;
    parameter = n.keep * parameter - n.step_size * exp_avg / denominator;
}

template <typename A>
struct LarsNumbers {
    A gradient, parameter;  // their coefficients: trust factor, trust weight_decay
    A momentum;
    A nesterov;  // 1 or 0
    A lr;
};

template <typename A>
SSLFAST_HOST_DEVICE LarsNumbers<A> numbers_as(const LarsNumbers<double>& n) {
    return {A(n.gradient), A(n.parameter), A(n.momentum), A(n.nesterov), A(n.lr)};
}

// group: lr, momentum, weight_decay, nesterov; trust: the layer's ratio (1 where there is none).
SSLFAST_HOST_DEVICE LarsNumbers<double> lars_numbers(double factor, const double* group,
                                                     double trust) {
    return {trust * factor, trust * group[2], group[1], group[3], group[0]};
}

// SGD with momentum as torch.optim.SGD's, on a direction scaled by the layer (You et al. 2017,
// arXiv:1708.03888, algorithm 1).
template <typename A>
SSLFAST_HOST_DEVICE void lars(const LarsNumbers<A>& n, A gradient, A& parameter, A& buffer) {
    const A direction = n.gradient * gradient + n.parameter * parameter;
    buffer = n.momentum * buffer + direction;
    const A step = n.nesterov != A(0) ? direction + n.momentum * buffer : buffer;
    parameter -= n.lr * step;
}

}  // namespace sslfast
