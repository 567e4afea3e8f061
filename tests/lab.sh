#!/bin/sh
# tutorial/lab.sh with programs in place of train and run that do nothing: what fails is named at the end, what is
# complete is not repeated, a signal ends what runs. Ends with "N passed, N failed".
# SPDX-License-Identifier: MIT
passed=0
failed=0
check() {
    if [ "$1" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)) && echo "failed: $2"; fi
}
script=$PWD/tutorial/lab.sh
work=$(mktemp -d) && cd "$work" || exit 1
export QUICK=1 SEEDS=1 DEVICE=cpu JOBS=2
unset RESULTS

# The lines of standard input become train and run.
programs() {
    { echo '#!/bin/sh' && cat; } >train
    chmod +x train && cp train run
    : >calls
}

programs <<'END'
case $* in *lab/quick-copying-delta-1/*) echo "no such delta" && exit 3 ;; esac
END
sh "$script" copying >out 2>err
check $(($? != 1)) "a run fails: expected exit status 1"
[ "$(cat err)" = "lab.sh: not complete: quick-copying-delta-1; build/lab/RUN.log says why" ]
check $? "a run fails: what is said at the end: $(cat err)"
grep -q '^quick-copying-delta-1: not complete: no such delta$' out
check $? "a run fails: its last line: $(cat out)"
[ -f build/lab/quick-copying-all-1.txt ] && [ -f build/lab/quick-copying-none-1.txt ]
check $? "a run fails: the others must be complete"

programs <<'END'
echo "$*" >>calls
END
sh "$script" copying >out 2>err
check $? "again, and nothing fails: expected exit status 0"
check $(($(grep -c quick-copying-delta-1 calls) != 2 || $(wc -l <calls) != 2)) "again: what was run: $(cat calls)"

programs <<'END'
echo "$*" >>calls
sleep 10
echo "to its end" >>calls
END
sh "$script" recall >out 2>err &
while [ "$(wc -l <calls)" -lt 2 ]; do sleep 0.1; done
kill $!
wait $!
check $(($? != 130)) "SIGTERM: expected exit status 130"
check $(($(wc -l <calls) != 2)) "SIGTERM: what runs must end, and nothing begin: $(cat calls)"
[ ! -f build/lab/quick-recall-1-1.txt ]
check $? "SIGTERM: no run is complete"

cd / && rm -r "$work"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
