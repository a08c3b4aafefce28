// Row gradients of 16-bit elements; csrc/include/sslfast/similarity_backward.h.
#include "similarity_backward.h"

namespace sslfast::cuda {

template void launch_backward<Bf16>(const Similarities&, const Plan&, RowStatistics,
                                    ColumnStatistics, const BackwardResults&, void*);
template void launch_backward<Fp16>(const Similarities&, const Plan&, RowStatistics,
                                    ColumnStatistics, const BackwardResults&, void*);

}  // namespace sslfast::cuda
