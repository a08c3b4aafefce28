// What is used of DLPack 1.3 (github.com/dmlc/dlpack): PyTorch 2.10 and later describe a tensor
// through it in some 20 ns, where each of its attributes costs more when Python reads it.
#pragma once

#include <cstdint>

namespace sslfast::dlpack {

struct Device {
    std::int32_t type;  // 1: CPU, 2: CUDA
    std::int32_t index;
};
constexpr std::int32_t cpu = 1, cuda = 2;

struct DataType {
    std::uint8_t code;  // 2: IEEE floating point, 4: bfloat16
    std::uint8_t bits;
    std::uint16_t lanes;
};

// Shape and strides (in elements) belong to the tensor.
struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    DataType dtype;
    std::int64_t* shape;
    std::int64_t* strides;
    std::uint64_t byte_offset;
};

// In the capsule torch.Tensor.__dlpack_c_exchange_api__.
struct ExchangeApi {
    std::uint32_t major, minor;
    ExchangeApi* previous;
    void (*unused[3])();
    int (*describe)(void* object, Tensor* out);  // 0, or -1 and a Python exception; owns nothing
};
constexpr char capsule_name[] = "dlpack_exchange_api";

}  // namespace sslfast::dlpack
