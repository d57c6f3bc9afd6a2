/// One layout with one policy, every operation of the host's cache: what a unit of an engine
/// compiles once.
#include "terse/cpu/attend.hpp"
#include "terse/terse.hpp"

using Cache = terse::KVCache<terse::PagedLayout<>, terse::Kivi2>;

template class terse::KVCache<terse::PagedLayout<>, terse::Kivi2>;

terse::Status attend(const Cache& cache, const terse::AttendInputs& in,
                     const terse::AttendOutputs& out, terse::Span<std::byte> workspace);

terse::Status attend(const Cache& cache, const terse::AttendInputs& in,
                     const terse::AttendOutputs& out, terse::Span<std::byte> workspace) {
  return terse::cpu::attend(cache.layer(0), in, out, workspace);
}
