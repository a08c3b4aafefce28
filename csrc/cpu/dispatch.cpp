// Chooses the level of the instruction set when kernels are first used.
#include <sslfast/cpu.h>

#include "elements.h"
#include "tile.h"
#include "waves.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sslfast::cpu {

extern const ElementKernels element_kernels_baseline;
extern const TileKernels tile_kernels_baseline;
extern const WaveKernels wave_kernels_baseline;
#ifdef __x86_64__
extern const ElementKernels element_kernels_v3, element_kernels_v4;
extern const TileKernels tile_kernels_v3, tile_kernels_v4;
extern const WaveKernels wave_kernels_v3, wave_kernels_v4;
#endif

namespace {

struct Level {
    const TileKernels& tile;
    const ElementKernels& elements;
    const WaveKernels& waves;
};

Level choose() {
    const char* wanted = std::getenv("SSLFAST_CPU_LEVEL");
    const auto take = [wanted](const char* level) {
        return wanted == nullptr || std::strcmp(wanted, level) == 0;
    };
#ifdef __x86_64__
    __builtin_cpu_init();
    if (take("v4") && __builtin_cpu_supports("x86-64-v4"))
        return {tile_kernels_v4, element_kernels_v4, wave_kernels_v4};
    if (take("v3") && __builtin_cpu_supports("x86-64-v3"))
        return {tile_kernels_v3, element_kernels_v3, wave_kernels_v3};
#endif
    if (take("baseline"))
        return {tile_kernels_baseline, element_kernels_baseline, wave_kernels_baseline};
    throw std::runtime_error("SSLFAST_CPU_LEVEL=" + std::string(wanted) +
                             " is not a level of this processor; leave it unset");
}

const Level& level() {
    static const Level chosen = choose();
    return chosen;
}

}  // namespace

const ElementKernels& element_kernels() { return level().elements; }

const TileKernels& tile_kernels() { return level().tile; }

const WaveKernels& wave_kernels() { return level().waves; }

const char* instruction_set() { return tile_kernels().level; }

}  // namespace sslfast::cpu
