# Reads what `cargo test -- --show-output` printed, names the tests that were
# skipped, repeats the last lines of those that failed, and ends with "N passed,
# N failed, N skipped".
#
# A test that says "SKIPPED:" counts as passed for cargo, and as skipped here.
# A test binary that ended without its result line (killed, aborted) fails with
# all tests that had not passed. If cargo failed (-v status=N) but no test did,
# a build did: that is one failure.

function close_binary() {
  if (open) {
    passed += ok
    skipped += ignored
    failed += expected - ok - ignored
  }
  open = 0
}

/^ +(Running|Doc-tests) / { binary++ }
/^running [0-9]+ tests?$/ {
  close_binary()
  open = 1; expected = $2; ok = ignored = 0; section = ""
}
/^test .* \.\.\. ok$/ { ok++ }
/^test .* \.\.\. ignored/ { ignored++ }
/^test .* \.\.\. FAILED$/ { fell[binary, $2] = 1 }
section != "" && (binary, section) in fell && !/^$|^failures:$|^test result: |^ +[0-9]+: |^ +at / {
  said[binary, section, ++lines[binary, section]] = $0
}
/^test result: / {
  # test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; ...
  for (i = 2; i <= NF; i++) {
    if ($i == "passed;") passed += $(i - 1)
    if ($i == "failed;") failed += $(i - 1)
    if ($i == "ignored;") skipped += $(i - 1)
  }
  open = 0; section = ""
}
/^---- .* ----$/ { section = $2 }
/SKIPPED:/ {
  # A test may say it more than once, and fail nevertheless. What stands in no
  # test's section went past the test harness: then the text is its name.
  name = section != "" ? section : $0
  if (!((binary, name) in fell) && !seen[binary, name]++) {
    print "skipped: " (section != "" ? section ": " : "") $0
    passed--; skipped++
  }
}

END {
  close_binary()
  for (test in fell) {
    split(test, parts, SUBSEP)
    print "failed: " parts[2]
    for (at = lines[test] > 60 ? lines[test] - 59 : 1; at <= lines[test]; at++) {
      print "  " substr(said[test, at], 1, 400)
    }
  }
  if (status && !failed) failed = 1
  printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped
}
