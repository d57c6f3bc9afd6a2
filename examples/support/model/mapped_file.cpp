#include "mapped_file.hpp"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>
#include <utility>

#include <sys/mman.h>
#include <sys/stat.h>

#include "input_error.hpp"

namespace terse::examples {

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) {
    throw InputError(path + ": cannot be opened: " + std::strerror(errno));
  }
  struct stat status {};
  const bool is_file = ::fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  if (!is_file || status.st_size == 0) {
    ::close(descriptor);
    throw InputError(path + (is_file ? ": is empty" : ": is not a regular file"));
  }
  mapped_bytes_ = static_cast<std::size_t>(status.st_size);
  address_ = ::mmap(nullptr, mapped_bytes_, PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (address_ == MAP_FAILED) {
    throw InputError(path + ": cannot be mapped: " + std::strerror(error));
  }
}

MappedFile::MappedFile(std::vector<std::byte> buffer) : buffer_(std::move(buffer)) {}

MappedFile::~MappedFile() {
  if (address_ != nullptr) {
    ::munmap(address_, mapped_bytes_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(address_, other.address_);
  std::swap(mapped_bytes_, other.mapped_bytes_);
  std::swap(buffer_, other.buffer_);
  return *this;
}

std::span<const std::byte> MappedFile::bytes() const {
  if (address_ != nullptr) {
    return {static_cast<const std::byte*>(address_), mapped_bytes_};
  }
  return buffer_;
}

}  // namespace terse::examples
