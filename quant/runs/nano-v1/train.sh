#!/bin/sh
# Trains nano from a data folder. A killed run goes on where it stopped when the script is started again.
#   quant/runs/nano-v1/train.sh DATA RUNS MODEL
set -eu
data=$1 runs=$2 model=$3
mix="text.*=0.4 qed=6 tydiqa=6 text.en=8 text2.en=4 openstax=2 medquad=2 scitldr=2 python-docs=1 tldr=0.3
     tldr-parallel=0.3 omw-parallel=0.4 omw-definitions=0.3 oewn=0.6 ntrex-parallel=0.7 gesetze=0.7
     edgeai-course=0.5 edgeai-course-parallel=0.5"
held_out="qed tydiqa openstax jaquad iapp-wiki-qa text.en text.hi ntrex-parallel"

[ -f "$runs/tokenizer/tokenizer.json" ] || python -m pplx_quant.tokenizer --data "$data" --out "$runs/tokenizer"
[ -f "$runs/packed/packed.json" ] ||
    python -m pplx_quant.pack --data "$data" --tokenizer "$runs/tokenizer" --out "$runs/packed"

# shellcheck disable=SC2086  # the lists are meant to be split
python -m pplx_quant.stages.pair --data "$runs/packed" --tokenizer "$runs/tokenizer" --out "$runs/bag" --no-blocks \
    --steps 500 --batch 2048 --block 512 --max-query 48 --max-positive 128 --embedding-rate 0.05 --vector-rate 0.02 \
    --warmup 10 --decay-share 0.8 --save-every 50 --validate-every 50 --validate-on $held_out --boost $mix

# shellcheck disable=SC2086
python -m pplx_quant.stages.pair --data "$runs/packed" --init "$runs/bag/checkpoint" --out "$runs/pair" \
    --steps 120 --batch 192 --block 96 --max-query 32 --max-positive 80 --embedding-rate 0.001 --matrix-rate 0.0001 \
    --vector-rate 0.001 --warmup 5 --decay-share 0.5 --save-every 10 --log-every 2 --boost $mix

python -m pplx_quant.export --checkpoint "$runs/pair/checkpoint" --out "$model"
