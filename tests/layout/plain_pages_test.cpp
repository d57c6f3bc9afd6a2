// Engines' pages: where the numbers of a table row lie, in every order and dialect.
#include "terse/layout/plain_pages.hpp"

#include "support/catch.hpp"
#include "support/engine_pages.hpp"

using namespace terse;
using namespace terse::tests;

TEST_CASE("offsets are those of the tensor's indices", "[layout]") {
  for (const PageOrder order :
       {PageOrder::nhd, PageOrder::hnd, PageOrder::combined_nhd, PageOrder::combined_hnd}) {
    for (const int page_tokens : {1, 3, 16, 64}) {
      EnginePages pages(order, Scalar::bf16, page_tokens, 3, 8, {70, 0, 5});
      for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
        INFO("order " << int(order) << ", page_tokens " << page_tokens << ", dialect "
                      << int(dialect));
        const PlainPages view = pages.view(dialect);
        REQUIRE(view.validate(3, 8).ok());
        bool agree = true, divides = true;
        for (const int row : {0, 2}) {
          for (int place = 0; place < (row == 0 ? 70 : 5); ++place) {
            const std::int64_t offset = view.offset(row, place);
            divides = divides && offset % view.row_stride() == 0;
            for (int head = 0; head < 3; ++head) {
              const std::int64_t at = 2 * (offset + head * view.head_stride);
              agree = agree &&
                      pages.key_tensor() + at == pages.at(Side::key, row, place, head, 0) &&
                      pages.value_tensor() + at == pages.at(Side::value, row, place, head, 0);
            }
          }
        }
        CHECK(agree);
        CHECK(divides);
      }
    }
  }
}

TEST_CASE("places and pages that do not exist", "[layout]") {
  EnginePages pages(PageOrder::nhd, Scalar::f16, 16, 2, 8, {40, 10});
  for (const Dialect dialect : {Dialect::dense, Dialect::csr}) {
    INFO("dialect " << int(dialect));
    CHECK(pages.view(dialect).offset(0, -1) == -1);
    CHECK(pages.view(dialect).offset(0, 47) >= 0);
    CHECK(pages.view(dialect).offset(0, 48) == -1);
    CHECK(pages.view(dialect).places(-1) == 0);
    CHECK(pages.view(dialect).places(2) == 0);
    CHECK(pages.view(dialect).offset(-1, 0) == -1);
    CHECK(pages.view(dialect).offset(2, 0) == -1);
    for (const std::int32_t bad : {-1, pages.num_pages}) {
      EnginePages broken = pages;
      broken.numbers[0][1] = bad;
      broken.write_tables();
      CHECK(broken.view(dialect).offset(0, 15) >= 0);
      CHECK(broken.view(dialect).offset(0, 16) == -1);
      CHECK(broken.view(dialect).offset(0, 32) >= 0);
    }
  }
  CHECK(pages.view(Dialect::csr).places(1) == 16);
  CHECK(pages.view(Dialect::dense).places(1) == 48);  // room; what lies there is the engine's
  CHECK(pages.view(Dialect::dense).offset(1, 16) == -1);
  pages.indptr[1] = pages.indptr[2] + 1;  // rows end before they begin
  CHECK(pages.view(Dialect::csr).places(1) == 0);
  pages.indptr[1] = -1;
  CHECK(pages.view(Dialect::csr).places(1) == 0);
}

TEST_CASE("strides that cannot be are refused", "[layout]") {
  EnginePages pages(PageOrder::hnd, Scalar::f16, 16, 2, 8, {40});
  const auto refuses = [&](auto&& change) {
    PlainPages view = pages.view(Dialect::dense);
    REQUIRE(view.validate(2, 8).ok());
    change(view);
    return !view.validate(2, 8).ok();
  };
  CHECK(refuses([](PlainPages& v) { v.page_stride = 7; }));
  CHECK(refuses([](PlainPages& v) { v.token_stride = 7; }));
  CHECK(refuses([](PlainPages& v) { v.head_stride = 7; }));
  CHECK(refuses([](PlainPages& v) { v.page_tokens = 0; }));
  CHECK(refuses([](PlainPages& v) { v.num_pages = 0; }));
  CHECK(refuses([](PlainPages& v) { v.table.pages = nullptr; }));
  CHECK(refuses([](PlainPages& v) { v.table.rows = 0; }));
}
