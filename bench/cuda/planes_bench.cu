/// Decode attention over planes, read as deep as tolerances ask, beside plain fp16 pages: what is
/// read, and whether the time falls with it.
#include <cmath>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "terse/quant/aligned_kv.hpp"

#include "cuda/attending.cuh"
#include "cuda/device_cache.cuh"
#include "cuda/run_benchmarks.hpp"
#include "cuda/timing.cuh"

namespace {

using namespace terse;
using namespace terse::bench;
using Planes = Compose<AlignedKV>;

/// A bell-shaped number of its own for each `i`.
__device__ float bell(std::uint32_t i) {
  float sum = -2.0f;
  for (int k = 0; k < 4; ++k) {
    i = i * 2654435761u + 0x9e3779b9u;
    i ^= i >> 15;
    i *= 0x85ebca6bu;
    i ^= i >> 13;
    sum += static_cast<float>(i >> 8) * 0x1p-24f;
  }
  return 1.7f * sum;
}

/// Encodes every run of every page, `sizes [channel]` times a bell-shaped number. A thread a run.
template <class Codec>
__global__ void fill_runs(Side side, int width, std::byte* pages, std::size_t page_bytes,
                          std::size_t unit_bytes, std::size_t offset, int units,
                          std::size_t num_pages, const float* sizes) {
  const int runs = Codec::runs(width), length = Codec::run_length(width);
  const std::size_t count = num_pages * static_cast<std::size_t>(units * runs);
  const CodecContext context{side, width};
  for (std::size_t i = blockIdx.x * static_cast<std::size_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<std::size_t>(gridDim.x) * blockDim.x) {
    const int run = static_cast<int>(i % runs);
    const std::size_t unit = i / runs;
    float x[128];
    for (int k = 0; k < length; ++k) {
      const int channel = side == Side::key ? run : k;
      x[k] = sizes[channel] * bell(static_cast<std::uint32_t>(i * 128 + k));
    }
    std::byte* block = pages + unit / units * page_bytes + unit % units * unit_bytes + offset;
    Codec::encode_run(context, x, 1, run, block);
  }
}

/// Sizes of key channels, which RoPE turns in pairs (c, c + 64): they span a factor of 64, and
/// every ninth pair is an outlier, four times as large as the largest of the others.
DeviceArray<float> key_sizes() {
  std::vector<float> sizes;
  for (int c = 0; c < 128; ++c) {
    const float log2_size = static_cast<float>(c % 64) / 64.0f * 6.0f - 4.0f;
    sizes.push_back(std::exp2(c % 64 % 9 == 0 ? 4.0f : log2_size));
  }
  return DeviceArray<float>(sizes);
}

void plane_rows(benchmark::State& state, const BatchShape& batch, const PlaneReading& reading) {
  const DeviceCache<Planes> cache(batch);
  const ClassShape& shape = cache.shape();
  const DeviceArray<float> of_keys = key_sizes(), of_values(std::vector<float>(128, 1.0f));
  std::byte* pages = cache.pages();
  fill_runs<AlignedKV::key_codec><<<2048, 128>>>(
      Side::key, 128, pages, shape.page_bytes, shape.unit_bytes, shape.key_offset(0),
      shape.unit.units, static_cast<std::size_t>(shape.num_pages), of_keys.data());
  fill_runs<AlignedKV::value_codec><<<2048, 128>>>(
      Side::value, 128, pages, shape.page_bytes, shape.unit_bytes, shape.value_offset(0),
      shape.unit.units, static_cast<std::size_t>(shape.num_pages), of_values.data());
  must(cudaGetLastError());
  must(cudaDeviceSynchronize());
  AttendParams params;
  params.planes = reading;
  const Attending<Planes> attending(cache, batch);
  const auto places = batch.lengths.size() * static_cast<std::size_t>(shape.unit.units);
  const DeviceArray<BytesRead> counts(places);
  const auto count = [&](const PlaneReading& planes) {
    AttendParams own;
    own.planes = planes;
    must(cudaMemset(counts.data(), 0, places * sizeof(BytesRead)));
    attending.launch(0, nullptr, own, counts.data());
    std::vector<BytesRead> host(places);
    must(
        cudaMemcpy(host.data(), counts.data(), places * sizeof(BytesRead), cudaMemcpyDeviceToHost));
    BytesRead sum;
    for (const BytesRead& x : host) {
      sum.keys += x.keys;
      sum.values += x.values;
    }
    return sum;
  };
  const BytesRead whole = count({}), own = count(reading);
  attending.run(state, params);
  const auto beside =
      static_cast<double>(cache.bytes_read()) - static_cast<double>(whole.keys + whole.values);
  report_bytes(state, beside + static_cast<double>(own.keys + own.values), "of_ceiling",
               read_ceiling());
  state.counters["keys_read"] = static_cast<double>(own.keys) / static_cast<double>(whole.keys);
  state.counters["values_read"] =
      static_cast<double>(own.values) / static_cast<double>(whole.values);
}

void plain_rows(benchmark::State& state, const BatchShape& batch) {
  const DeviceCache<Compose<Identity>> cache(batch);
  Attending<Compose<Identity>>(cache, batch).run(state);
  report_bytes(state, static_cast<double>(cache.bytes_read()), "of_ceiling", read_ceiling());
  state.counters["keys_read"] = state.counters["values_read"] = 1.0;
}

}  // namespace

int main(int argc, char** argv) {
  struct Row {
    const char* name;
    PlaneReading reading;
  };
  const Row rows[] = {
      {"everything", {}},
      {"K0_V1e-3", {PlaneRule::tolerance, 0.0f, 1e-3f}},
      {"K0.003_V1e-3", {PlaneRule::tolerance, 3e-3f, 1e-3f}},
      {"K0.01_V3e-3", {PlaneRule::tolerance, 1e-2f, 3e-3f}},
      {"K0.03_V1e-2", {PlaneRule::tolerance, 3e-2f, 1e-2f}},
      {"K0.1_V3e-2", {PlaneRule::tolerance, 0.1f, 3e-2f}},
      {"K0.3_V0.1", {PlaneRule::tolerance, 0.3f, 0.1f}},
      {"K1_V0.3", {PlaneRule::tolerance, 1.0f, 0.3f}},
  };
  for (const auto& [name, batch] :
       {std::pair{"8x32k", uniform(8, 32768, 32, 8)}, std::pair{"64x8k", uniform(64, 8192, 32, 8)},
        std::pair{"1x32k", uniform(1, 32768, 32, 8)}}) {
    add_row(std::string("f16/") + name,
            [batch = batch](benchmark::State& state) { plain_rows(state, batch); });
    for (const Row& row : rows) {
      add_row(std::string("planes_") + row.name + "/" + name,
              [batch = batch, reading = row.reading](benchmark::State& state) {
                plane_rows(state, batch, reading);
              });
    }
  }
  return run_benchmarks(argc, argv, "read_ceiling_GB/s", read_ceiling);
}
