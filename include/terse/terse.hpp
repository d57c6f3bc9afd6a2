/// The cache and every policy. Beside it: terse/cpu/attend.hpp (attention on the host),
/// terse/testing/ (checks for policies of your own).
#pragma once

#include "terse/cache/export_plain.hpp"
#include "terse/cache/import_plain.hpp"
#include "terse/cache/kv_cache.hpp"
#include "terse/evict/attention_gate.hpp"
#include "terse/evict/h2o.hpp"
#include "terse/evict/streaming_llm.hpp"
#include "terse/layout/contiguous.hpp"
#include "terse/layout/paged.hpp"
#include "terse/layout/plain_pages.hpp"
#include "terse/lowrank/palu.hpp"
#include "terse/quant/fp8.hpp"
#include "terse/quant/int4_rotated.hpp"
#include "terse/quant/int8.hpp"
#include "terse/quant/kivi.hpp"
#include "terse/quant/nvfp4.hpp"
#include "terse/quant/q4_0.hpp"
#include "terse/quant/q8_0.hpp"
#include "terse/quant/turboquant.hpp"
#include "terse/version.hpp"
