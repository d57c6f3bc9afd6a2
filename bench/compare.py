"""Compares two Google Benchmark JSON files: each benchmark is faster, slower or unclear.

    compare.py BASE.json CHANGE.json [--threshold 0.02] [--alpha 0.05] [--metric real_time]
               [--filter REGEX] [--strict]

Both files come from programs run with --benchmark_repetitions=N (five or more) and
--benchmark_format=json, in one job on one machine. A verdict other than "unclear" needs all of:

  * the medians differ by more than the threshold (a share of the base's median);
  * the two lists of repetitions do not overlap: the best of one is worse than the worst of the
    other. From six repetitions on the slowest of each list is left out of this test, because an
    interrupted run is slow and never fast;
  * a two-sided Mann-Whitney U test (exact, ties included) of the full lists has p < alpha. Fewer
    than four repetitions a side cannot reach 0.05.

Exit code: 0 nothing is slower; 1 at least one benchmark is slower; 2 bad input (a file that cannot
be read, no benchmark in both files, a benchmark that failed or vanished in the change); 3 with
--strict, no benchmark has a clear verdict.
"""

import argparse
import json
import math
import re
import statistics
import sys

FASTER, SLOWER, UNCLEAR = "faster", "slower", "unclear"
NOTHING_SLOWER, SOMETHING_SLOWER, BAD_INPUT, ONLY_UNCLEAR = 0, 1, 2, 3

NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
REPETITIONS_WITH_ONE_TO_SPARE = 6


class InputError(Exception):
    """What the caller gave cannot be compared; the text says why."""


def mann_whitney_p(first, second):
    """Two-sided p-value of the Mann-Whitney U test, exact for any ties.

    Counts, among all ways to choose len(first) of the pooled samples, those whose rank sum lies at
    least as far from its mean as the one seen. Ranks are doubled so that midranks stay integers.
    """
    pooled = sorted([*first, *second])
    doubled_rank = {}
    for index, value in enumerate(pooled):
        doubled_rank.setdefault(value, 2 * index + pooled.count(value) + 1)
    chosen = len(first)
    seen = sum(doubled_rank[value] for value in first)
    mean = chosen * (len(pooled) + 1)  # of the doubled rank sum

    # ways[k][s]: subsets of k samples whose doubled ranks add up to s.
    ways = [{} for _ in range(chosen + 1)]
    ways[0][0] = 1
    for value in pooled:
        rank = doubled_rank[value]
        for size in range(chosen, 0, -1):
            for total, count in ways[size - 1].items():
                ways[size][total + rank] = ways[size].get(total + rank, 0) + count
    extreme = sum(count for total, count in ways[chosen].items()
                  if abs(total - mean) >= abs(seen - mean))
    return extreme / math.comb(len(pooled), chosen)


def without_slowest(times):
    return sorted(times)[:-1] if len(times) >= REPETITIONS_WITH_ONE_TO_SPARE else times


def judge(base, change, threshold, alpha):
    """(verdict, relative change of the median, p-value) of two lists of times."""
    base_median = statistics.median(base)
    relative = statistics.median(change) / base_median - 1.0
    p_value = mann_whitney_p(base, change)
    if abs(relative) > threshold and p_value < alpha:
        base_kept, change_kept = without_slowest(base), without_slowest(change)
        if max(change_kept) < min(base_kept):
            return FASTER, relative, p_value
        if min(change_kept) > max(base_kept):
            return SLOWER, relative, p_value
    return UNCLEAR, relative, p_value


def read_times(path, metric, name_filter):
    """{name: [nanoseconds of each repetition]} of a file; None for a benchmark that failed."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)["benchmarks"]
        times = {}
        for entry in entries:
            if entry.get("run_type", "iteration") != "iteration":
                continue
            name = entry.get("run_name", entry["name"])
            if not name_filter.search(name):
                continue
            if entry.get("error_occurred"):
                times[name] = None
                continue
            time = float(entry[metric]) * NANOSECONDS[entry.get("time_unit", "ns")]
            if not (math.isfinite(time) and time > 0.0):
                raise InputError(f"{path}: {name}: {metric} is {time}")
            if times.setdefault(name, []) is not None:
                times[name].append(time)
        return times
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the JSON of Google Benchmark ({error!r})") from error


def compare(base, change, threshold, alpha):
    """(rows, complaints): a row is (name, verdict, base median, change median, relative, p)."""
    rows, complaints = [], []
    for name, base_times in base.items():
        if base_times is None:
            complaints.append(f"{name}: failed in the base")
        elif name not in change:
            complaints.append(f"{name}: not in the change")
        elif change[name] is None:
            complaints.append(f"{name}: failed in the change")
        else:
            verdict, relative, p_value = judge(base_times, change[name], threshold, alpha)
            rows.append((name, verdict, statistics.median(base_times),
                         statistics.median(change[name]), relative, p_value))
    if not rows:
        complaints.append("no benchmark has times in both files")
    return rows, complaints


def print_rows(rows):
    width = max((len(row[0]) for row in rows), default=0)
    print(f"{'benchmark':{width}}  verdict  {'base us':>12} {'change us':>12} {'change':>8} {'p':>8}")
    for name, verdict, base, change, relative, p_value in rows:
        print(f"{name:{width}}  {verdict:7}  {base / 1e3:12.3f} {change / 1e3:12.3f} "
              f"{relative:+8.1%} {p_value:8.4f}")
    counts = {verdict: sum(row[1] == verdict for row in rows)
              for verdict in (FASTER, SLOWER, UNCLEAR)}
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


def exit_code(rows, complaints, strict):
    verdicts = {row[1] for row in rows}
    if SLOWER in verdicts:
        return SOMETHING_SLOWER
    if complaints:
        return BAD_INPUT
    if strict and verdicts == {UNCLEAR}:
        return ONLY_UNCLEAR
    return NOTHING_SLOWER


def share(text):
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not in [0, 1)")
    return value


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("change")
    parser.add_argument("--threshold", type=share, default=0.02)
    parser.add_argument("--alpha", type=share, default=0.05)
    parser.add_argument("--metric", choices=("real_time", "cpu_time"), default="real_time")
    parser.add_argument("--filter", type=pattern, default=pattern(""))
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args(arguments)
    try:
        base = read_times(options.base, options.metric, options.filter)
        change = read_times(options.change, options.metric, options.filter)
    except InputError as error:
        print(f"compare.py: {error}", file=sys.stderr)
        return BAD_INPUT
    rows, complaints = compare(base, change, options.threshold, options.alpha)
    print_rows(rows)
    for name in change.keys() - base.keys():
        print(f"{name}: new in the change")
    for complaint in complaints:
        print(f"compare.py: {complaint}", file=sys.stderr)
    return exit_code(rows, complaints, options.strict)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
