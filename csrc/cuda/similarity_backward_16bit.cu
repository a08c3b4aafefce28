// Row gradients of 16-bit elements; csrc/include/sslfast/similarity_backward.h.
#include "similarity_backward.h"

namespace sslfast::cuda {

template void launch_backward<Bfloat16>(const Similarities&, const Plan&, RowStatistics,
                                       ColumnStatistics, const BackwardResults&, void*);
template void launch_backward<Float16>(const Similarities&, const Plan&, RowStatistics,
                                      ColumnStatistics, const BackwardResults&, void*);

}  // namespace sslfast::cuda
