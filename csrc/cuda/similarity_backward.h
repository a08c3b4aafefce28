// The row-gradient kernel's launcher; its instances are compiled in two files, in parallel.
#pragma once

#include <sslfast/similarity_backward.h>

#include "machine.h"
#include "similarity_launch.h"

namespace sslfast::cuda {

template <class T>
__global__ void __launch_bounds__(T::threads)
    backward_kernel(const __grid_constant__ Similarity p, const RowStatistics row,
                    const ColumnStatistics column, const __grid_constant__ BackwardResults out) {
    Machine machine;
    backward_block<T>(machine, p, row, column, out);
}

template <class E>
void launch_backward(const Similarities& p, const Plan& plan, RowStatistics row,
                     ColumnStatistics column, const BackwardResults& out, void* stream) {
    const Similarity s = similarity<E>(p, plan);
    if (plan.wide)
        launch<WideTile<E>>(backward_kernel<WideTile<E>>, "similarity_backward", p, plan, stream, s,
                            row, column, out);
    else
        launch<NarrowTile<E>>(backward_kernel<NarrowTile<E>>, "similarity_backward", p, plan,
                              stream, s, row, column, out);
}

// In similarity_backward_16bit.cu and similarity_backward_32bit.cu.
extern template void launch_backward<Bf16>(const Similarities&, const Plan&, RowStatistics,
                                           ColumnStatistics, const BackwardResults&, void*);
extern template void launch_backward<Fp16>(const Similarities&, const Plan&, RowStatistics,
                                           ColumnStatistics, const BackwardResults&, void*);
extern template void launch_backward<Tf32>(const Similarities&, const Plan&, RowStatistics,
                                           ColumnStatistics, const BackwardResults&, void*);
extern template void launch_backward<Ieee32>(const Similarities&, const Plan&, RowStatistics,
                                             ColumnStatistics, const BackwardResults&, void*);

}  // namespace sslfast::cuda
