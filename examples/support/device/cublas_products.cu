#include <cublas_v2.h>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "device/device_buffer.cuh"
#include "evaluation/device.hpp"
#include "report/input_error.hpp"

namespace terse::examples {

namespace {

void check(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) {
    throw std::runtime_error(std::string("cuBLAS: ") + cublasGetStatusString(status));
  }
}

class CublasProducts final : public MatrixProducts {
 public:
  CublasProducts() {
    check(cublasCreate(&handle_));
    // All of fp32's bits: policies are told apart by differences of 1e-3.
    check(cublasSetMathMode(handle_, CUBLAS_PEDANTIC_MATH));
  }
  CublasProducts(const CublasProducts&) = delete;
  CublasProducts& operator=(const CublasProducts&) = delete;
  ~CublasProducts() override { cublasDestroy(handle_); }

  void multiply(const float* x, int rows, const float* w, int in, int out, float* y) override {
    const std::lock_guard lock(mutex_);
    const auto elements = [](int a, int b) {
      return static_cast<std::size_t>(a) * static_cast<std::size_t>(b);
    };
    const float* weights = on_device(w, elements(in, out));
    auto* inputs = x_.make<float>(elements(rows, in));
    auto* outputs = y_.make<float>(elements(rows, out));
    examples::check(cudaMemcpy(inputs, x, elements(rows, in) * sizeof(float), cudaMemcpyDefault));
    // Column by column, as cuBLAS has it: y^T = w x^T.
    const float one = 1.0f, zero = 0.0f;
    check(cublasSgemm(handle_, CUBLAS_OP_T, CUBLAS_OP_N, out, rows, in, &one, weights, in, inputs,
                      in, &zero, outputs, out));
    examples::check(cudaMemcpy(y, outputs, elements(rows, out) * sizeof(float), cudaMemcpyDefault));
  }

 private:
  const float* on_device(const float* w, std::size_t count) {
    auto at = weights_.find(w);
    if (at == weights_.end()) {
      DeviceBuffer copy;
      examples::check(
          cudaMemcpy(copy.make<float>(count), w, count * sizeof(float), cudaMemcpyDefault));
      at = weights_.emplace(w, std::move(copy)).first;
    }
    return reinterpret_cast<const float*>(at->second.span().data());
  }

  std::mutex mutex_;
  cublasHandle_t handle_ = nullptr;
  DeviceBuffer x_, y_;
  std::unordered_map<const float*, DeviceBuffer> weights_;  // by where they lie on the host
};

}  // namespace

std::string device_name() {
  int device = 0;
  cudaDeviceProp properties{};
  if (const cudaError_t code = cudaGetDevice(&device); code != cudaSuccess) {
    throw InputError(std::string("no CUDA device can be used: ") + cudaGetErrorString(code));
  }
  examples::check(cudaGetDeviceProperties(&properties, device));
  return properties.name;
}

std::unique_ptr<MatrixProducts> make_device_products() {
  return std::make_unique<CublasProducts>();
}

}  // namespace terse::examples
