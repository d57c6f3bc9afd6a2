#include "evaluation.hpp"

#include <algorithm>
#include <functional>

#include "evaluation/decoder.hpp"
#include "evaluation/job_queue.hpp"
#include "evaluation/low_rank.hpp"
#include "evaluation/window.hpp"
#include "report/statistics.hpp"

namespace terse::examples {

namespace {

/// Positions whose mean is one sample of the paired error.
constexpr int error_block_tokens = 64;
/// Steps of evaluation: large enough to fill the kernels, small enough for their scratch.
constexpr int evaluation_step_tokens = 128;

}  // namespace

/// Results of one policy, filled by jobs.
struct Evaluation::Work {
  std::vector<std::vector<TokenScore>> windows;
  std::vector<WindowMemory> memory;
  std::vector<PasskeyScore> passkeys;
};

Evaluation::Evaluation(const Settings& settings, LlamaModel& model,
                       std::vector<const PolicyRow*> policies)
    : settings_(settings), model_(model), policies_(std::move(policies)) {}

bool Evaluation::needs_factors() const {
  for (const PolicyRow* row : policies_) {
    if (row->factors.needed()) return true;
  }
  return false;
}

bool Evaluation::lacks_calibration() const {
  return !calibration_ && std::any_of(policies_.begin(), policies_.end(),
                                      [](const PolicyRow* row) { return row->calibrated; });
}

SessionConfig Evaluation::session_config(const PolicyRow& row, int tokens) const {
  SessionConfig config{.model = &model_,
                       .max_tokens = tokens,
                       .max_step_tokens = std::min(evaluation_step_tokens, tokens),
                       .chunk_tail = settings_.chunk_tail,
                       .processor = settings_.processor};
  if (row.factors.needed()) config.factors = &factors_.at(row.factors);
  if (row.calibrated) config.calibration = &*calibration_;
  return config;
}

double Evaluation::total_weight() const {
  double tokens = static_cast<double>(calibration_text_.size()) *
                  (static_cast<int>(needs_factors()) + static_cast<int>(lacks_calibration()));
  for (const auto& window : windows_) {
    tokens += static_cast<double>(window.size()) * (1.0 + static_cast<double>(policies_.size()));
  }
  for (const PasskeyCase& passkey : passkeys_) {
    tokens += static_cast<double>(passkey.tokens.size() * policies_.size());
  }
  return tokens;
}

void Evaluation::make_factors(ProgressBar& progress) {
  if (!needs_factors()) return;
  progress.set_label("low-rank factors");
  const std::vector<LayerMoments> moments =
      moments_of(model_, calibration_text_, settings_.threads,
                 [&](int tokens) { progress.advance(static_cast<double>(tokens)); });
  for (const PolicyRow* row : policies_) {
    if (row->factors.needed()) factors_.try_emplace(row->factors);
  }
  std::vector<std::function<void()>> jobs;
  for (auto& entry : factors_) {
    jobs.emplace_back([this, &moments, request = entry.first, factors = &entry.second] {
      *factors = factorise(model_, moments, request);
    });
  }
  run_jobs(settings_.threads, jobs);
}

void Evaluation::make_calibration(ProgressBar& progress) {
  if (!lacks_calibration()) return;
  progress.set_label("calibration");
  calibration_ = calibrate(model_, fingerprint_of_model(settings_.model_path), calibration_text_,
                           settings_.threads,
                           [&](int tokens) { progress.advance(static_cast<double>(tokens)); });
}

void Evaluation::score_windows(ProgressBar& progress, std::vector<Work>* work) {
  // As many windows at a time as there are threads: their reference logits are large.
  const auto group = static_cast<std::size_t>(settings_.threads);
  for (std::size_t first = 0; first < windows_.size(); first += group) {
    const std::size_t last = std::min(first + group, windows_.size());
    std::vector<std::vector<float>> references(last - first);
    std::vector<std::function<void()>> jobs;
    progress.set_label("reference");
    for (std::size_t w = first; w < last; ++w) {
      jobs.emplace_back([&, w] {
        const auto& tokens = windows_[w];
        const auto [begin, end] = scored(static_cast<int>(tokens.size()));
        const std::vector<float> x = run_reference(model_, tokens);
        auto& logits = references[w - first];
        for_each_logits(model_, x, begin, end, [&](int, const float* row) {
          logits.insert(logits.end(), row, row + model_.config().vocabulary);
        });
        progress.advance(static_cast<double>(tokens.size()));
      });
    }
    run_jobs(settings_.threads, jobs);
    jobs.clear();
    for (std::size_t p = 0; p < policies_.size(); ++p) {
      for (std::size_t w = first; w < last; ++w) {
        jobs.emplace_back([&, p, w] {
          const auto& tokens = windows_[w];
          const int length = static_cast<int>(tokens.size());
          const auto [begin, end] = scored(length);
          progress.set_label(policies_[p]->name);
          const SessionConfig config = session_config(*policies_[p], length);
          const auto session = policies_[p]->make_session(config);
          Work& own = (*work)[p];
          const std::vector<float> x = run_window(model_, config, *session, tokens, &own.memory[w]);
          const int vocabulary = model_.config().vocabulary;
          const int scored_begin = begin;
          for_each_logits(model_, x, begin, end, [&](int position, const float* logits) {
            own.windows[w].push_back(score_token(
                references[w - first].data() + static_cast<std::size_t>(position - scored_begin) *
                                                   static_cast<std::size_t>(vocabulary),
                logits, vocabulary, tokens[static_cast<std::size_t>(position) + 1]));
          });
          progress.advance(static_cast<double>(length));
        });
      }
    }
    run_jobs(settings_.threads, jobs);
  }
}

void Evaluation::score_passkeys(ProgressBar& progress, std::vector<Work>* work) {
  std::vector<std::function<void()>> jobs;
  for (std::size_t p = 0; p < policies_.size(); ++p) {
    for (std::size_t k = 0; k < passkeys_.size(); ++k) {
      jobs.emplace_back([&, p, k] {
        progress.set_label(policies_[p]->name + ", passkey");
        const int length = static_cast<int>(passkeys_[k].tokens.size());
        const SessionConfig config = session_config(*policies_[p], length);
        const auto session = policies_[p]->make_session(config);
        (*work)[p].passkeys[k] = score_passkey(model_, config, *session, passkeys_[k]);
        progress.advance(length);
      });
    }
  }
  run_jobs(settings_.threads, jobs);
}

std::vector<ResultRow> Evaluation::run() {
  ProgressBar progress(total_weight());
  make_factors(progress);
  make_calibration(progress);
  std::vector<Work> work(policies_.size());
  for (Work& own : work) {
    own.windows.resize(windows_.size());
    own.memory.resize(windows_.size());
    own.passkeys.resize(passkeys_.size());
  }
  score_windows(progress, &work);
  score_passkeys(progress, &work);
  progress.finish();

  const LlamaConfig& shape = model_.config();
  const double plain_bytes = 4.0 * shape.layers * shape.kv_heads * shape.head_dim;
  std::vector<ResultRow> rows;
  for (std::size_t p = 0; p < policies_.size(); ++p) {
    ResultRow row;
    row.policy = policies_[p]->name;
    row.description = policies_[p]->description;
    row.family = policies_[p]->family;
    if (!windows_.empty()) {
      const QualitySummary quality = summarise(work[p].windows, error_block_tokens);
      reference_perplexity_ = quality.perplexity_reference;  // the same in every row
      row.set_quality(quality);
      row.bits_per_element = work[p].memory.front().bits_per_element;
      std::vector<double> bytes;
      std::vector<double> read;
      for (const WindowMemory& memory : work[p].memory) {
        bytes.push_back(memory.bytes_per_token);
        read.push_back(memory.share_read);
      }
      row.bytes_per_token = mean(bytes);
      row.share_read = mean(read);
      row.compression_ratio = plain_bytes / row.bytes_per_token;
    }
    PasskeyScore total;
    for (const PasskeyScore& one : work[p].passkeys) {
      total.digits += one.digits;
      total.digits_right += one.digits_right;
      total.nll += one.nll;
    }
    if (total.digits > 0) {
      row.passkey_digits_right = static_cast<double>(total.digits_right) / total.digits;
      row.passkey_nll = total.nll / total.digits;
    }
    rows.push_back(std::move(row));
  }
  // Speed needs the factors too, and sessions of the whole model.
  if (settings_.speed_steps > 0) {
    ThreadPool pool(settings_.threads);
    ThreadPool& alone = model_.pool();
    model_.use_pool(pool);
    ProgressBar speed(static_cast<double>(policies_.size()));
    for (std::size_t p = 0; p < policies_.size(); ++p) {
      speed.set_label(policies_[p]->name + ", speed");
      SessionConfig config = session_config(*policies_[p], settings_.window_tokens);
      config.layers = shape.layers;
      config.pool = &pool;
      const auto session = policies_[p]->make_session(config);
      rows[p].tokens_per_second =
          decode_speed(model_, config, *session, settings_.window_tokens, settings_.speed_steps);
      speed.advance(1);
    }
    speed.finish();
    model_.use_pool(alone);
  }
  return rows;
}

}  // namespace terse::examples
