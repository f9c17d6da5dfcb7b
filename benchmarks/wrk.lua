-- The request of every scenario, and the report as one line of JSON behind a marker that load.py looks for.

wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = os.getenv("BENCH_BODY")

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    'REPORT {"microseconds": %d, "requests": %d, "p50_us": %d, "p99_us": %d, '
      .. '"errors": {"status above 399": %d, "connect": %d, "read": %d, "write": %d, "timeout": %d}}\n',
    summary.duration, summary.requests, latency:percentile(50), latency:percentile(99),
    e.status, e.connect, e.read, e.write, e.timeout))
end
