/// The same on the device, with attention over heads of one size.
#include "terse/terse.cuh"

using Cache = terse::cuda::KVCache<terse::PagedLayout<>, terse::Kivi2>;

template class terse::cuda::KVCache<terse::PagedLayout<>, terse::Kivi2>;

terse::Status attend(const Cache& cache, const terse::cuda::AttendInputs& in,
                     const terse::cuda::AttendOutputs& out, terse::Span<std::byte> workspace,
                     cudaStream_t stream);

terse::Status attend(const Cache& cache, const terse::cuda::AttendInputs& in,
                     const terse::cuda::AttendOutputs& out, terse::Span<std::byte> workspace,
                     cudaStream_t stream) {
  return terse::cuda::attend<terse::cuda::HeadDims<128>>(cache.layer(0), in, out, workspace, {},
                                                         stream);
}
