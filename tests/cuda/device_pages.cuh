/// Pages of an engine's on the device, and both caches' imports from and exports to them.
#pragma once

#include <algorithm>
#include <numeric>

#include "terse/cuda/export_plain.cuh"
#include "terse/cuda/import_plain.cuh"

#include "cuda/cache_pair.cuh"
#include "support/engine_pages.hpp"

namespace terse::tests {

/// A device copy of pages and tables. `shift_bytes`: from an aligned address to the tensors.
struct DevicePages {
  EnginePages& host;
  std::size_t shift;
  DeviceBytes keys, values, block_table, indptr, indices;

  explicit DevicePages(EnginePages& pages, std::size_t shift_bytes = 0)
      : host(pages),
        shift(shift_bytes),
        keys(shift + pages.keys.size()),
        values(shift + pages.values.size()),
        block_table(DeviceBytes::copy_of(pages.block_table.data(), pages.block_table.size())),
        indptr(DeviceBytes::copy_of(pages.indptr.data(), pages.indptr.size())),
        indices(DeviceBytes::copy_of(pages.indices.data(), pages.indices.size())) {
    const auto send = [&](const DeviceBytes& to, const std::vector<std::byte>& from) {
      if (from.empty()) return;
      REQUIRE(cudaMemcpy(to.as<std::byte>() + shift, from.data(), from.size(), cudaMemcpyDefault) ==
              cudaSuccess);
    };
    send(keys, pages.keys);
    send(values, pages.values);
  }
  [[nodiscard]] PlainPages view(Dialect dialect) const {
    return host.view(host.table(dialect, block_table.as<std::int32_t>(), indptr.as<std::int32_t>(),
                                indices.as<std::int32_t>()));
  }
  [[nodiscard]] std::byte* key_tensor() const { return keys.as<std::byte>() + shift; }
  [[nodiscard]] std::byte* value_tensor() const {
    return host.is_combined() ? key_tensor() + host.value_shift() : values.as<std::byte>() + shift;
  }
  /// Whether the device's tensors are those of `other`.
  [[nodiscard]] bool equals(const EnginePages& other) const {
    const auto same = [&](const DeviceBytes& own, const std::vector<std::byte>& bytes) {
      const std::vector<std::byte> all = own.to_host<std::byte>();
      return std::equal(bytes.begin(), bytes.end(),
                        all.begin() + static_cast<std::ptrdiff_t>(shift));
    };
    return same(keys, other.keys) && same(values, other.values);
  }
};

/// Outputs of an export on the device, counts and positions -1 at first.
struct DeviceExport {
  static constexpr int max_places = 1024;
  std::size_t items;
  DeviceBytes ids, tokens, positions;

  DeviceExport(const std::vector<SequenceId>& sequences, int units)
      : items(sequences.size() * static_cast<std::size_t>(units)),
        ids(DeviceBytes::copy_of(sequences.data(), sequences.size())),
        tokens(items * sizeof(std::int32_t)),
        positions(items * max_places * sizeof(std::int32_t)) {}
  template <class Ref>
  Status launch(const Ref& view, const DevicePages& pages, Dialect dialect,
                cudaStream_t stream = nullptr) const {
    const auto count = static_cast<int>(ids.span().size() / sizeof(SequenceId));
    return cuda::export_plain(view, ids.as<SequenceId>(), count, pages.view(dialect),
                              {pages.key_tensor(), pages.value_tensor(), tokens.as<std::int32_t>(),
                               positions.as<std::int32_t>(), max_places},
                              stream);
  }
};

/// Exports of both caches into pages of 0xa5 agree: all bytes, counts and positions.
template <class P>
void check_export(const P& pair, const std::vector<SequenceId>& ids, EnginePages pages,
                  Dialect dialect, std::size_t shift = 0, int layer = 0) {
  const auto r = pair.host.cache.layer(layer);
  const DevicePages on_device(pages, shift);
  const DeviceExport call(ids, r.shape.unit.units);
  REQUIRE(call.launch(pair.device.layer(layer), on_device, dialect).ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  std::vector<std::int32_t> tokens(call.items, -1);
  std::vector<std::int32_t> positions(call.items * DeviceExport::max_places, -1);
  REQUIRE(export_plain(r, ids, pages.view(dialect),
                       {pages.key_tensor(), pages.value_tensor(), tokens.data(), positions.data(),
                        DeviceExport::max_places})
              .ok());
  CHECK((call.tokens.to_host<std::int32_t>() == tokens));
  CHECK((call.positions.to_host<std::int32_t>() == positions));
  CHECK(on_device.equals(pages));
}

/// In all forms of pages.
template <class P>
void check_exports(const P& pair, const std::vector<SequenceId>& ids) {
  const std::vector<int> places(ids.size(), 700);
  for (const PageForm& form : page_forms) {
    INFO("order " << int(form.order) << ", page_tokens " << form.page_tokens);
    check_export(pair, ids, EnginePages(form, kv_heads, dim, places), form.dialect,
                 form.order == PageOrder::hnd ? std::size_t{4} : std::size_t{0});
  }
}

/// Both caches take one step from pages, layer 0 only.
template <class P>
void import_step(P& pair, EnginePages& pages, const DevicePages& on_device, Dialect dialect,
                 const std::vector<StepPart>& parts, const std::vector<PageRange>& ranges) {
  std::size_t rows = 0;
  for (const PageRange& range : ranges) rows += static_cast<std::size_t>(range.tokens);
  std::vector<std::int64_t> source_rows(rows);
  REQUIRE(find_source_rows(pages.view(dialect), ranges, source_rows).ok());
  const DeviceBytes device_ranges = DeviceBytes::copy_of(ranges.data(), ranges.size());
  const DeviceBytes device_rows(rows * sizeof(std::int64_t));
  const Span<std::int64_t> found(device_rows.as<std::int64_t>(), rows);
  REQUIRE(pair.host.cache.begin_step(parts).ok());
  REQUIRE(pair.device.begin_step(parts, nullptr).ok());
  REQUIRE(cuda::find_source_rows(on_device.view(dialect), device_ranges.as<PageRange>(),
                                 static_cast<int>(ranges.size()), found, nullptr)
              .ok());
  REQUIRE(pair.host.cache
              .append(0, *inputs_from_pages(pages.view(dialect), pair.shape(0), pages.key_tensor(),
                                            pages.value_tensor(), source_rows))
              .ok());
  REQUIRE(
      pair.device
          .append(0,
                  *inputs_from_pages(on_device.view(dialect), pair.shape(0), on_device.key_tensor(),
                                     on_device.value_tensor(), {found.data(), found.size()}),
                  nullptr)
          .ok());
  REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
  REQUIRE((device_rows.to_host<std::int64_t>() == source_rows));
  REQUIRE(pair.difference(4) == "");
  REQUIRE(pair.host.cache.commit_step().ok());
  REQUIRE(pair.device.commit_step(nullptr).ok());
}

/// Both caches take the same steps, all layers by the same source rows in any order. Gives the
/// sequence.
template <class P>
SequenceId check_gathered(P& pair, const RopeTable& on_host = {}, const RopeTable& on_device = {}) {
  const SequenceId id = pair.create();
  for (const int tokens : {100, 1, 90}) {
    constexpr int spare = 7;
    std::vector<std::int64_t> rows(static_cast<std::size_t>(tokens + spare));
    std::iota(rows.begin(), rows.end(), 0);
    for (std::size_t i = rows.size(); i > 1; --i) {
      std::swap(rows[i - 1], rows[static_cast<std::size_t>(pair.random.below(int(i)))]);
    }
    const DeviceBytes device_rows = DeviceBytes::copy_of(rows.data(), rows.size());
    const StepPart part{id, tokens};
    REQUIRE(pair.host.cache.begin_step({&part, 1}).ok());
    REQUIRE(pair.device.begin_step({&part, 1}, nullptr).ok());
    for (int layer = 0; layer < pair.host.config.num_layers; ++layer) {
      const TwinInputs in(pair.random, pair.shape(layer), tokens + spare, Scalar::f16);
      terse::AppendInputs a = in.on_host(), b = in.on_device();
      a.source_rows = rows;
      b.source_rows = {device_rows.as<std::int64_t>(), rows.size()};
      a.num_source_rows = b.num_source_rows = tokens + spare;
      a.rope = on_host;
      b.rope = on_device;
      REQUIRE(pair.host.cache.append(layer, a).ok());
      REQUIRE(pair.device.append(layer, b, nullptr).ok());
      REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    }
    REQUIRE(pair.host.cache.commit_step().ok());
    REQUIRE(pair.device.commit_step(nullptr).ok());
    REQUIRE(pair.difference(1) == "");
  }
  return id;
}

}  // namespace terse::tests
