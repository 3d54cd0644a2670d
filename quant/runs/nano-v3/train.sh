#!/bin/sh
# Trains nano on from nano-v2: wider vectors, more code. Started again, a killed run goes on where it stopped.
#   quant/runs/nano-v3/train.sh DATA RUNS NANO_V2 MODEL
# NANO_V2 is the model that quant/runs/nano-v2/train.sh makes.
set -euf
data=$1 runs=$2 start=$3 model=$4
packed=$runs/packed.npz docstrings=$runs/pairs.docstrings.jsonl.gz
mix="text.*=0.4 qed=6 tydiqa=6 text.en=8 text2.en=6 openstax=3 medquad=2 scitldr=2 python-docs=2 tldr=0.7
     tldr-parallel=0.5 omw-parallel=0.5 omw-definitions=0.4 oewn=1.5 ntrex-parallel=1.5 gesetze=0.7 edgeai-course=0.5
     edgeai-course-parallel=0.7 seal-tools=2 apibench=1.5 thealgorithms=2 docstrings=1"
held_out="qed tydiqa openstax jaquad iapp-wiki-qa arcd cmrc2018 text.en text2.hi text2.ru text2.el text2.ko text2.ar
          ntrex-parallel seal-tools apibench tldr docstrings"
stage() {
    name=$1; shift
    echo "$(date +%T) $name" >&2
    python -m pplx_quant "$name" --data "$packed" "$@"
}

[ -f "$docstrings" ] || python -m pplx_quant docstring-pairs --out "$docstrings"
[ -f "$packed" ] || python -m pplx_quant pack --data "$data" --more "$docstrings" --tokenizer pplx_edge/nano \
    --out "$packed" --per-paragraph 2 \
    --cap oewn=50000 omw-definitions=16000 tldr=50000 ntrex-parallel=70000 omw-parallel=90000 tldr-parallel=30000 \
    fastapi-docs-parallel=14000 python-docs-parallel=14000 edgeai-course-parallel=10000 edgeai-course=10000 \
    docstrings=40000 text.*=700 text.en=28000 text.de=4000 text.ja=3000 text.zh=2000 text.ko=2000 text2.*=1800 \
    text2.en=16000 chunks.*=5000 chunks.jaquad=9999 chunks.openstax=9999 chunks.medquad=16000 \
    chunks.python-docs=7000 chunks.gesetze=9000 chunks.edgeai-course=6000

# shellcheck disable=SC2086  # the lists are meant to be split
{
    table="--no-blocks --batch 2048 --block 512 --max-query 48 --max-positive 128 --warmup 10 --decay-share 0.9
           --save-every 100 --log-every 10 --validate-on $held_out"
    stage pair --init "$start" --out "$runs/table" $table --steps 300 --embedding-rate 0.01 --vector-rate 0.005 \
        --dims 384 256 192 128 --binary-weight 1.5 --boost $mix
    [ -d "$runs/wide" ] || python -m pplx_quant widen --checkpoint "$runs/table/checkpoint" --out "$runs/wide" \
        --hidden-size 512
    stage pair --init "$runs/wide" --out "$runs/wide-table" $table --steps 350 --embedding-rate 0.03 \
        --vector-rate 0.01 --dims 512 384 256 128 --binary-weight 1.0 --boost $mix

    [ -d "$runs/spread" ] || python -m pplx_quant widen --checkpoint "$runs/wide-table/checkpoint" \
        --out "$runs/spread" --hidden-size 512 --constants 8

    common="--dims 512 384 256 128 --binary-weight 1.0 --max-query 48 --max-positive 128 --call-tokens 4096
            --embedding-rate 0.002 --matrix-rate 0.0005 --vector-rate 0.002 --warmup 4 --decay-share 0.5 --save-every 12
            --log-every 4"
    quantized="--weights int8 --table int8 --activations"
    stage pair --init "$runs/spread" --out "$runs/pair" --context-prior 0.7 --compile --steps 24 \
        --batch 256 --block 64 $common --validate-on qed tydiqa jaquad --pool 300 --boost $mix
    stage context --init "$runs/pair/checkpoint" --out "$runs/context" --steps 16 --batch 12 --plain 64 --block 32 \
        --max-document 4096 $common $quantized --embedding-rate 0.0005 --matrix-rate 0.00003 --vector-rate 0.0005 \
        --warmup 2 --boost $mix
    [ -d "$runs/miner" ] || python -m pplx_quant export --checkpoint "$runs/pair/checkpoint" --out "$runs/miner" \
        --quiet-constant 0.25
    python -m pplx_quant mine --data "$packed" --model "$runs/miner" --out "$runs/mined" --cap *=500 \
        --group qed tydiqa jaquad iapp-wiki-qa arcd cmrc2018 openstax medquad scitldr python-docs tldr seal-tools \
        apibench oewn gesetze thealgorithms fastapi-docs text.en docstrings
    stage triplet --init "$runs/pair/checkpoint" --out "$runs/triplet" --negatives "$runs/mined/negatives.npy" \
        --steps 12 --batch 192 --block 64 $common $quantized --boost qed=3 tydiqa=3 text.en=2
}
[ -d "$runs/merged" ] || python -m pplx_quant merge --first "$runs/context/checkpoint" \
    --second "$runs/triplet/checkpoint" --out "$runs/merged" --weight 0.5
[ -d "$runs/wide-v2" ] || python -m pplx_quant widen --checkpoint "$start" --out "$runs/wide-v2" --hidden-size 512 \
    --constants 8
[ -d "$runs/souped" ] || python -m pplx_quant merge --first "$runs/merged" --second "$runs/wide-v2" \
    --out "$runs/souped" --weight 0.5
python -m pplx_quant export --checkpoint "$runs/souped" --out "$model" --quiet-constant 0.25
