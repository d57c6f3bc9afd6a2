// The tables of docs/policies.md and docs/stored_format.md say what the types say.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

#include "support/catch.hpp"

namespace {

using namespace terse;  // NOLINT(google-build-using-namespace): a test's own file

using Shared = PagedLayout<>;
using PerHead = PagedLayout<HeadPaging::per_head>;
using Lines = std::vector<std::string>;

std::string row(const std::vector<std::string>& cells) {
  std::string line = "|";
  for (const std::string& cell : cells) line += cell.empty() ? " |" : " " + cell + " |";
  return line;
}

std::string code(const std::string& text) { return "`" + text + "`"; }

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g", value);
  return text;
}

/// The lines of a page between `<!-- name -->` and `<!-- /name -->`, less the table's head.
Lines documented(const std::string& page, const std::string& name) {
  std::ifstream file(TERSE_TEST_DATA_DIR "/../../docs/" + page);
  Lines lines;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line == "<!-- /" + name + " -->") break;
    if (inside && !line.empty()) lines.push_back(line);
    if (line == "<!-- " + name + " -->") inside = true;
  }
  if (lines.size() > 2) lines.erase(lines.begin(), lines.begin() + 2);
  return lines;
}

void check_table(const std::string& page, const std::string& name, const Lines& expected) {
  std::string wanted;
  for (const std::string& line : expected) wanted += line + "\n";
  INFO("docs/" << page << ", table " << name << " should be\n" << wanted);
  CHECK(documented(page, name) == expected);
}

CacheConfig config_of(int head_dim) {
  return {.num_query_heads = 8,
          .num_kv_heads = 4,
          .head_dim = head_dim,
          .max_tokens = 256,
          .rope = {.rotary_dim = head_dim}};
}

template <class Policy>
PolicyConfig<Policy> policy_config() {
  PolicyConfig<Policy> config;
  if constexpr (Policy::projects) {
    static const float factor[1] = {};
    static const ProjectionFactors factors{64, 64, factor, factor};
    config.factors = {&factors, 1};
  }
  return config;
}

template <Layout L, class... Parts>
Expected<MemoryPlan> plan_of(int head_dim) {
  using Policy = Compose<Parts...>;
  return KVCache<L, Policy>::plan(config_of(head_dim), {policy_config<Policy>()});
}

template <class... Parts>
std::string in_all_layouts() {
  const bool works = plan_of<ContiguousLayout, Parts...>(64).ok() &&
                     plan_of<Shared, Parts...>(64).ok() && plan_of<PerHead, Parts...>(64).ok();
  return works ? "yes" : "no";
}

template <Layout L, class C>
std::string in_all_compositions() {
  const bool works = plan_of<L, C>(64).ok() && plan_of<L, C, StreamingLLM>(64).ok() &&
                     plan_of<L, C, H2O>(64).ok() && plan_of<L, C, AttentionGate>(64).ok() &&
                     plan_of<L, C, PaluJoint>(64).ok();
  return works ? "yes" : "no";
}

template <class... Parts>
bool is_open() {
  return plan_of<Shared, Parts...>(64)->classes[0].shape.open;
}

template <class C>
std::string matrix_row(const char* name) {
  const bool fast = cpu::is_specialized<KVCacheRef<Shared, Compose<C>>>;
  return row({code(name), in_all_layouts<C, StreamingLLM>(), in_all_layouts<C, H2O>(),
              in_all_layouts<C, AttentionGate>(), in_all_layouts<C, PaluJoint>(),
              in_all_compositions<ContiguousLayout, C>(), in_all_compositions<Shared, C>(),
              in_all_compositions<PerHead, C>(), is_open<C>() ? "open block" : "tail",
              is_open<C>() ? "anywhere" : "tail",
              detail::moves_exactly<Compose<C, H2O>> ? "exact" : "re-encodes",
              fast ? "yes" : "no"});
}

template <class C>
std::string bits_at(int head_dim) {
  const Expected<MemoryPlan> plan = plan_of<Shared, C>(head_dim);
  return plan.ok() ? number(plan->classes[0].bits_per_element) : "refused";
}

template <class C>
std::string codec_row(const char* name) {
  using Policy = Compose<C>;
  using Ref = KVCacheRef<Shared, Policy>;
  const TailSpec tail = Policy::tail;
  return row({code(name), bits_at<C>(64), bits_at<C>(80), bits_at<C>(128),
              std::to_string(tail.min_tokens) + " / " + std::to_string(tail.granule_tokens),
              UsesCalibration<typename Policy::key_codec>               ? "calibrated"
              : cpu::HasSignedHadamardBasis<typename Policy::key_codec> ? "signed Hadamard"
              : HasBasis<typename Policy::key_codec>                    ? "Hadamard"
                                                                        : "none",
              code(cpu::key_kernel_name<Ref>()), code(cpu::value_kernel_name<Ref>())});
}

template <class E>
std::string evictor_row(const char* name) {
  using Policy = Compose<E>;
  const char* signal = Policy::signal == Signal::column_sum   ? "attention column sums"
                       : Policy::signal == Signal::gate_logit ? "gate logits"
                                                              : "none";
  const std::size_t bytes = token_state_bytes<E> + (E::scatters ? sizeof(std::uint16_t) : 0);
  return row({code(name), signal, E::scatters ? "anywhere" : "a prefix and a window",
              Policy::reindex == Reindex::cache_index ? "in the cache" : "in the text",
              std::to_string(bytes), E::scatters ? "moves tokens together" : "drops dead blocks"});
}

template <Layout L>
std::string layout_row(const char* name) {
  const ClassShape shape = plan_of<L, Identity>(64)->classes[0].shape;
  const std::string lists = shape.rows == 1 ? "one" : "one per unit";
  return row({code(name), lists, L::paged ? "shared" : "copied",
              !L::paged         ? "with `compact`"
              : shape.rows == 1 ? "when the block is dead in every unit"
                                : "when the block is dead in its unit"});
}

/// Sizes at width 128, where keys and values of every codec agree.
template <class C>
std::string record_row(const char* name) {
  const Record r = Compose<C>::key_codec::record(Side::key, 128);
  const Record values = Compose<C>::value_codec::record(Side::value, 128);
  CHECK(values.num_sections == r.num_sections);
  CHECK(values.bytes == r.bytes);
  const auto offset = [&](int section) {
    return section < r.num_sections ? std::to_string(r.sections[section].offset_bytes) : "";
  };
  return row({code(name), std::to_string(r.sections[0].bytes), offset(1), offset(2),
              std::to_string(r.bytes)});
}

}  // namespace

TEST_CASE("the support matrix of docs/policies.md is that of the types") {
  check_table("policies.md", "support-matrix",
              {matrix_row<Identity>("Identity"),
               matrix_row<Fp8>("Fp8"),
               matrix_row<Int8>("Int8"),
               matrix_row<Q8_0>("Q8_0"),
               matrix_row<Int4Rotated>("Int4Rotated"),
               matrix_row<Q4_0>("Q4_0"),
               matrix_row<TurboQuant4>("TurboQuant4"),
               matrix_row<TurboQuant3>("TurboQuant3"),
               matrix_row<TurboQuant2>("TurboQuant2"),
               matrix_row<TurboQuantProd3>("TurboQuantProd3"),
               matrix_row<NvFp4>("NvFp4"),
               matrix_row<Kivi4>("Kivi4"),
               matrix_row<Kivi3>("Kivi3"),
               matrix_row<Kivi2>("Kivi2"),
               matrix_row<KVarN4K2V>("KVarN4K2V"),
               matrix_row<KVQuant3>("KVQuant3"),
               matrix_row<Shaped3K2V>("Shaped3K2V"),
               matrix_row<Shaped2K1V>("Shaped2K1V"),
               matrix_row<ShapedTrellis2>("ShapedTrellis2"),
               matrix_row<AlignedKV>("AlignedKV"),
               matrix_row<AlignedInt8>("AlignedInt8")});
}

TEST_CASE("the codec table of docs/policies.md is that of the types") {
  check_table("policies.md", "codec-table",
              {codec_row<Identity>("Identity"),
               codec_row<Fp8>("Fp8"),
               codec_row<Int8>("Int8"),
               codec_row<Q8_0>("Q8_0"),
               codec_row<Int4Rotated>("Int4Rotated"),
               codec_row<Q4_0>("Q4_0"),
               codec_row<TurboQuant4>("TurboQuant4"),
               codec_row<TurboQuant3>("TurboQuant3"),
               codec_row<TurboQuant2>("TurboQuant2"),
               codec_row<TurboQuantProd4>("TurboQuantProd4"),
               codec_row<TurboQuantProd3>("TurboQuantProd3"),
               codec_row<TurboQuantProd2>("TurboQuantProd2"),
               codec_row<NvFp4>("NvFp4"),
               codec_row<Kivi4>("Kivi4"),
               codec_row<Kivi3>("Kivi3"),
               codec_row<Kivi2>("Kivi2"),
               codec_row<KVarN4K2V>("KVarN4K2V"),
               codec_row<KVarN2>("KVarN2"),
               codec_row<KVQuant3>("KVQuant3"),
               codec_row<KVQuant2>("KVQuant2"),
               codec_row<Shaped4>("Shaped4"),
               codec_row<Shaped4Searched>("Shaped4Searched"),
               codec_row<Shaped3>("Shaped3"),
               codec_row<Shaped3K2V>("Shaped3K2V"),
               codec_row<Shaped2>("Shaped2"),
               codec_row<Shaped2K1V>("Shaped2K1V"),
               codec_row<ShapedTrellis4>("ShapedTrellis4"),
               codec_row<ShapedTrellis3>("ShapedTrellis3"),
               codec_row<ShapedTrellis3K2V>("ShapedTrellis3K2V"),
               codec_row<ShapedTrellis2>("ShapedTrellis2"),
               codec_row<ShapedTrellis2K1V>("ShapedTrellis2K1V"),
               codec_row<AlignedKV>("AlignedKV"),
               codec_row<AlignedFixed16>("AlignedFixed16"),
               codec_row<AlignedInt8>("AlignedInt8"),
               codec_row<AlignedInt4>("AlignedInt4")});
}

TEST_CASE("the evictor table of docs/policies.md is that of the types") {
  check_table("policies.md", "evictor-table",
              {evictor_row<StreamingLLM>("StreamingLLM"), evictor_row<SinkWindow>("SinkWindow"),
               evictor_row<H2O>("H2O"), evictor_row<AttentionGate>("AttentionGate")});
}

TEST_CASE("the layout table of docs/policies.md is that of the types") {
  check_table(
      "policies.md", "layout-table",
      {layout_row<ContiguousLayout>("ContiguousLayout"), layout_row<Shared>("PagedLayout<>"),
       layout_row<PerHead>("PagedLayout<HeadPaging::per_head>")});
}

TEST_CASE("the record table of docs/stored_format.md is that of the types") {
  check_table("stored_format.md", "record-table",
              {record_row<Identity>("Identity"), record_row<Fp8>("Fp8"), record_row<Int8>("Int8"),
               record_row<Q8_0>("Q8_0"), record_row<Int4Rotated>("Int4Rotated"),
               record_row<Q4_0>("Q4_0"), record_row<TurboQuant4>("TurboQuant4"),
               record_row<TurboQuant3>("TurboQuant3"), record_row<TurboQuant2>("TurboQuant2"),
               record_row<NvFp4>("NvFp4"), record_row<Kivi4>("Kivi4"), record_row<Kivi3>("Kivi3"),
               record_row<Kivi2>("Kivi2"), record_row<Shaped3>("Shaped3"),
               record_row<Shaped2>("Shaped2"), record_row<ShapedTrellis2>("ShapedTrellis2")});
}
