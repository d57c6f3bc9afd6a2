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
            divides = divides && offset % view.offset_unit() == 0;
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

TEST_CASE("gaps between tokens and pages", "[layout]") {
  for (const PageForm& form : page_forms) {
    INFO("order " << int(form.order) << ", page_tokens " << form.page_tokens);
    EnginePages pages(form, 2, 64, {70});
    const PlainPages view = pages.view(form.dialect);
    REQUIRE(view.validate(2, 64).ok());
    bool agree = true;
    for (int place = 0; place < 70; ++place) {
      const std::int64_t at = view.offset(0, place);
      agree = agree && at % view.offset_unit() == 0 && at <= view.last_offset() &&
              pages.key_tensor() + (at + view.head_stride) * scalar_bytes(form.scalar) ==
                  pages.at(Side::key, 0, place, 1, 0);
    }
    CHECK(agree);
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
  CHECK(refuses([](PlainPages& v) { v.page_stride = -v.page_stride; }));
  CHECK(refuses([](PlainPages& v) { v.page_stride = std::int64_t{1} << 47; }));
  CHECK(refuses([](PlainPages& v) { v.page_tokens = 0; }));
  CHECK(refuses([](PlainPages& v) { v.num_pages = 0; }));
  PlainPages view = pages.view(Dialect::dense);
  view.table.pages = nullptr;
  CHECK(view.validate(2, 8).code == StatusCode::null_pointer);
  view = pages.view(Dialect::dense);
  view.table.rows = 0;
  CHECK(view.validate(2, 8).code == StatusCode::invalid_argument);
}

TEST_CASE("strides whose vectors overlap are refused", "[layout]") {
  const std::int32_t page = 0;
  const PageTable table = PageTable::dense(&page, 1, 1);
  struct Strides {
    std::int64_t page, token, head;
    bool fits;
  };
  // 3 pages of 4 tokens of 2 heads of 8 channels.
  for (const Strides& s : {
           Strides{64, 16, 8, true},    // tokens of heads
           Strides{64, 8, 32, true},    // heads of tokens
           Strides{8, 48, 24, true},    // tokens of heads of pages
           Strides{80, 17, 9, true},    // gaps everywhere
           Strides{61, 15, 8, false},   // a token inside a token's heads
           Strides{64, 8, 31, false},   // a head inside a head's tokens
           Strides{63, 16, 8, false},   // a page inside a page
           Strides{64, 16, 16, false},  // heads inside tokens
           Strides{64, 7, 32, false},   // a token inside a vector
           Strides{7, 48, 24, false},   // a page inside a vector
           Strides{16, 16, 8, false},   // pages at tokens
           Strides{64, 0, 8, false},    // all tokens in one place
       }) {
    INFO("page " << s.page << ", token " << s.token << ", head " << s.head);
    const PlainPages view{Scalar::f16, 4, 3, s.page, s.token, s.head, table};
    CHECK(view.validate(2, 8).ok() == s.fits);
  }
  // Pages of fewer heads, or narrower ones, than are asked for.
  const PlainPages nhd = PlainPages::nhd(Scalar::f16, {2, 16, 2, 8}, table);
  CHECK(nhd.validate(2, 8).ok());
  CHECK(nhd.validate(1, 16).ok());
  CHECK_FALSE(nhd.validate(4, 8).ok());
  CHECK_FALSE(nhd.validate(2, 9).ok());
  const PlainPages hnd = PlainPages::hnd(Scalar::f16, {2, 16, 2, 8}, table);
  CHECK(hnd.validate(2, 8).ok());
  CHECK_FALSE(hnd.validate(3, 8).ok());
}

TEST_CASE("strides of what is there once do not matter", "[layout]") {
  const std::int32_t page = 0;
  const PageTable table = PageTable::dense(&page, 1, 1);
  PlainPages view = PlainPages::nhd(Scalar::f16, {3, 1, 1, 8}, table);
  view.token_stride = view.head_stride = -5;
  CHECK(view.validate(1, 8).ok());
  CHECK(view.offset_unit() == 8);
  view = PlainPages::nhd(Scalar::f16, {1, 4, 2, 8}, table);
  view.page_stride = 0;
  CHECK(view.validate(2, 8).ok());
  CHECK(view.offset_unit() == 16);
  view.page_tokens = 1;
  CHECK(view.offset_unit() == 1);
  CHECK(view.last_offset() == 0);
}
