#!/bin/sh
# The selectivity lab: trains and measures what chapter 8 shows. In the root of the repository, after make:
#
#     sh tutorial/lab.sh [NAME...]      runs whose names begin so; copying, induction, recall, stories; else all
#
# A run leaves build/lab/RUN.txt: its commands, what they print, and the seconds. One that has left it is not repeated,
# so what was stopped, by Ctrl-C too, goes on where the last complete run ended.
#
#     QUICK=1        small settings, for two cores
#     RESULTS=DIR    copies RUN.txt there
#     DEVICE=cpu     not the GPU
#     SEEDS="1 2"    only these, or others
#     JOBS=N         runs side by side; else eight on each GPU, or one on each core. Those on a GPU take turns, unless
#                    nvidia-cuda-mps-control -d was started before: then they run at once
#     CUDA_VISIBLE_DEVICES=0,2    on these GPUs
#
# SPDX-License-Identifier: MIT

# RUN|train's options for each stage, separated by ;|options of run's last measurement, or nothing
# The number at the end of RUN is the seed. A stage starts from the weights of the one before. Runs that take long come
# first, so that those beside them end together.
settings() {
    adam="--weight-decay 0"
    stories="stories --d-model 96 --n-layer 1 --lr 0.01 --steps 600 --eval-every 0"
    if [ -n "$QUICK" ]; then
        adam="$adam --eval-every 250 --log-every 250"
        for seed in ${SEEDS:-1}; do
            for of in all delta none; do
                echo "quick-copying-$of-$seed|copying --d-model 64 --selective $of --len 64 --items 8 --batch 32\
 --lr 0.006 --steps 1750 $adam|--len 64:512 --items 8"
            done
            echo "quick-induction-grown-$seed|induction --d-model 64 --len 64 --batch 32 --lr 0.003 --steps 1500\
 --until 1 $adam;induction --len 1024 --batch 4 --lr 0.001 --steps 150 $adam|--len 64:16384 --sequences 16"
            for n in 1 2 4; do
                recall="--batch 32 --lr 0.005 --until 0.99 $adam"
                echo "quick-recall-$n-$seed|recall --d-model 64 --d-state $n --vocab-size 128 --len 16 --items 2\
 --steps 4000 --lr-min 0.005 $recall;recall --len 16 --items 4 --steps 1000 $recall;\
recall --len 32 --items 8 --steps 500 $recall;recall --len 64 --items 16 --steps 500 $recall;\
recall --len 128 --items 32 --steps 400 $recall;recall --len 256 --items 60 --steps 300 $recall|"
            done
            for of in none delta all; do
                echo "stories-$of-$seed|$stories --selective $of|"
            done
        done
        return
    fi
    copying="--items 16 --eval-tokens 131072 $adam"
    for seed in ${SEEDS:-1 2}; do
        for of in none all; do
            echo "copying-$of-$seed|copying --d-model 64 --selective $of --len 4096 --batch 4 --lr 0.001 --steps 120000\
 --until 0.9995 --eval-every 2000 --log-every 2000 $copying|--len 256:16384 --items 16"
        done
    done
    # As published: a constant rate, and Adam as PyTorch has it where nothing else is said.
    induction="--len 256 --batch 8 --steps 204800 --lr 0.001 --lr-min 0.001 --warmup 0 --beta2 0.999 --clip 0 $adam\
 --eval-tokens 65536 --eval-every 8192 --log-every 8192"
    for seed in ${SEEDS:-1 2 3 4 5 6}; do
        echo "induction-$seed|induction --d-model 64 $induction|--len 64:1048576"
    done
    for seed in ${SEEDS:-1}; do
        echo "induction-none-$seed|induction --d-model 64 --selective none $induction|--len 64:1048576"
    done
    copying="--batch 64 --lr 0.003 --eval-every 500 --log-every 500 $copying"
    for seed in ${SEEDS:-1 2 3}; do
        for of in none all; do
            echo "copying-grown-$of-$seed|copying --d-model 64 --selective $of --len 256 --steps 6000 $copying;\
copying --len 1024 --steps 2500 $copying;copying --len 4096 --steps 1500 $copying|--len 256:16384 --items 16"
        done
    done
    induction="--lr 0.001 --eval-tokens 65536 $adam --eval-every 1000 --log-every 1000"
    for seed in ${SEEDS:-1 2 3}; do
        echo "induction-long-$seed|induction --d-model 64 --len 64 --batch 32 --steps 3000 --until 1 $induction\
 --lr 0.003;induction --len 1024 --batch 8 --steps 4500 $induction;\
induction --len 16384 --batch 2 --steps 3200 $induction;induction --len 131072 --batch 1 --steps 1400 $induction|\
--len 64:1048576"
    done
    recall="--lr 0.005 $adam --eval-tokens 8192 --eval-every 2000 --log-every 2000"
    for of in 64 16 8 4 2 1 none; do
        model="--d-state $of" seeds="1 2 3"
        if [ $of = none ]; then model="--selective none" seeds="1 2"; fi
        for seed in ${SEEDS:-$seeds}; do
            echo "recall-$of-$seed|recall --d-model 64 $model --vocab-size 256 --len 16 --items 2 --batch 32\
 --steps 5000 --lr-min 0.005 $recall;recall --len 16 --items 4 --batch 64 --steps 8000 $recall;\
recall --len 32 --items 8 --batch 64 --steps 10000 $recall;recall --len 64 --items 16 --batch 64 --steps 10000 $recall;\
recall --len 128 --items 32 --batch 64 --steps 8000 $recall;\
recall --len 256 --items 60 --batch 64 --steps 6000 $recall;\
recall --len 512 --items 120 --batch 32 --steps 5000 $recall|"
        done
    done
    for of in none C B delta delta,C B,C delta,B all; do
        for seed in ${SEEDS:-1 2 3 4 5}; do
            echo "stories-$of-$seed|$stories --selective $of|"
        done
    done
}

# Those of the settings that are wanted: whose names begin with one of NAMES.
wanted() {
    settings | while read -r line; do
        for begin in ${NAMES:-""}; do case $line in "$begin"* | quick-"$begin"*) echo "$line" && break ;; esac; done
    done
}

# Prints a command and its output; fails where it does, or after SIGTERM. A shell acts on a signal between commands, or
# at once while it waits for one behind &; the worker then passes it on.
say() {
    echo "\$ $*"
    "$@" </dev/null 2>&1 &
    if [ -n "$stopped" ]; then kill $!; fi
    wait $! && [ -z "$stopped" ] && return
    while kill -0 $! 2>/dev/null; do wait $!; done # a signal ends a wait, not the command
    return 1
}

# A run: name, stages, measurement.
run() {
    began=$(date +%s) stage=0 from="" at="--device ${DEVICE:-auto} --threads $threads"
    never="--save-every 0 --sample-every 0 --sample-tokens 1"
    IFS=';'
    for options in $2; do
        unset IFS
        stage=$((stage + 1))
        # shellcheck disable=SC2086
        say ./train $options $from --seed "${1##*-}" $at ${gpus:+--dtype tf32} $never -o "build/lab/$1/$stage" &&
            ! grep -q '^stopped after step' "build/lab/$1.log" || return 1 # by a signal, of which only train knows
        from="--init build/lab/$1/$stage"
    done
    unset IFS
    # shellcheck disable=SC2086
    if [ -n "$3" ]; then say ./run "build/lab/$1/$stage" --task "${2%% *}" $3 $at || return 1; fi
    echo "seconds: $(($(date +%s) - began))"
}

# Takes runs that nobody has taken yet. Neither it nor what it starts hears Ctrl-C, but for train once it trains: by
# SIGTERM they stop.
worker() {
    trap '' INT
    trap 'stopped=1; kill $! 2>/dev/null' TERM
    while IFS='|' read -r name stages measure; do
        if [ -n "$stopped" ] || ! mkdir "build/lab/$name.taken" 2>/dev/null; then continue; fi
        echo $$ >"build/lab/$name.taken/by"
        if [ ! -f "build/lab/$name.txt" ]; then
            rm -rf "build/lab/${name:?}"
            if run "$name" "$stages" "$measure" >"build/lab/$name.log"; then
                mv "build/lab/$name.log" "build/lab/$name.txt"
                if [ -n "$RESULTS" ]; then cp "build/lab/$name.txt" "$RESULTS"; fi
                echo "$name: $(tail -n 1 "build/lab/$name.txt")"
            else
                echo "$name: not complete: $(tail -n 1 "build/lab/$name.log")"
                continue # nobody else tries it again
            fi
        fi
        rm -r "build/lab/$name.taken"
    done <<EOF
$runs
EOF
}

NAMES=$*
mkdir -p build/lab ${RESULTS:+"$RESULTS"} || exit 1
runs=$(wanted)
if [ -z "$runs" ]; then
    echo "lab.sh: no run's name begins with: $NAMES" >&2
    exit 1
fi
for taken in build/lab/*.taken; do # by a lab.sh that was killed
    if [ -d "$taken" ] && ! kill -0 "$(cat "$taken/by")" 2>/dev/null; then rm -r "$taken"; fi
done
cores=$(getconf _NPROCESSORS_ONLN)
gpus=
if [ "$DEVICE" != cpu ]; then
    gpus=${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)}
    gpus=$(echo "$gpus" | tr ',\n' '  ')
fi
# shellcheck disable=SC2086
set -- $gpus
gpus=$*
jobs=${JOBS:-${1:+$((8 * $#))}}
jobs=${jobs:-$cores}
threads=$((cores > jobs ? cores / jobs : 1))
stopped='' workers=''
trap 'stopped=1; kill $workers 2>/dev/null' INT TERM
i=0
while [ $i -lt "$jobs" ] && [ -z "$stopped" ]; do
    # shellcheck disable=SC2086
    if [ $# -eq 0 ]; then set -- $gpus; fi
    if [ -n "$1" ]; then export CUDA_VISIBLE_DEVICES="$1" && shift; fi
    worker &
    workers="$workers $!"
    i=$((i + 1))
done
until wait; do :; done # a signal ends a wait, not the workers
if [ -n "$stopped" ]; then exit 130; fi
failed=''
for taken in build/lab/*.taken; do
    if [ "$(cat "$taken/by" 2>/dev/null)" = $$ ]; then failed="$failed $(basename "$taken" .taken)"; fi
done
if [ -n "$failed" ]; then
    echo "lab.sh: not complete:$failed; build/lab/RUN.log says why" >&2
    exit 1
fi
