// Row gradients of float32; csrc/include/sslfast/similarity_backward.h.
#include "similarity_backward.h"

namespace sslfast::cuda {

template void launch_backward<Tf32>(const Similarities&, const Plan&, RowStatistics,
                                    ColumnStatistics, const BackwardResults&, void*);
template void launch_backward<Ieee32>(const Similarities&, const Plan&, RowStatistics,
                                      ColumnStatistics, const BackwardResults&, void*);

}  // namespace sslfast::cuda
