#!/bin/sh
# Trains nano through every stage. A killed run goes on where it stopped when the script is started again.
#   quant/runs/nano-v2/train.sh DATA RUNS TEACHER MODEL
# TEACHER is the directory of all-MiniLM-L6-v2. The tokenizer lies in pplx_edge/nano; it was made by
#   python -m pplx_quant tokenizer --data DATA --out DIR
set -euf
data=$1 runs=$2 teacher=$3 model=$4
packed=$runs/packed.npz
mix="text.*=0.4 qed=6 tydiqa=6 text.en=8 text2.en=6 openstax=3 medquad=2 scitldr=2 python-docs=2 tldr=0.7
     tldr-parallel=0.5 omw-parallel=0.5 omw-definitions=0.4 oewn=1.5 ntrex-parallel=1.5 gesetze=0.7 edgeai-course=0.5
     edgeai-course-parallel=0.7 seal-tools=2 apibench=1.5"
held_out="qed tydiqa openstax jaquad iapp-wiki-qa text.en text2.hi ntrex-parallel seal-tools"
stage() {
    name=$1; shift
    echo "$(date +%T) $name" >&2
    python -m pplx_quant "$name" --data "$packed" "$@"
}

[ -f "$packed" ] || {
    python -m pplx_quant pack --data "$data" --tokenizer pplx_edge/nano --out "$packed" --per-paragraph 2 \
        --cap oewn=50000 omw-definitions=16000 tldr=50000 ntrex-parallel=70000 omw-parallel=90000 tldr-parallel=30000 \
        fastapi-docs-parallel=14000 python-docs-parallel=14000 edgeai-course-parallel=10000 edgeai-course=10000 \
        text.*=700 text.en=28000 text.de=4000 text.ja=3000 text.zh=2000 text.ko=2000 text2.*=1800 text2.en=16000 \
        chunks.*=5000 chunks.jaquad=9999 chunks.openstax=9999 chunks.medquad=16000 chunks.python-docs=7000 \
        chunks.gesetze=9000 chunks.edgeai-course=6000
    python -m pplx_quant teach --packed "$packed" --tokenizer pplx_edge/nano --teacher "$teacher" --width 224 \
        --max-tokens 128 --cap *=2500 qed=9000 tydiqa=4000 medquad=7000 openstax=8000 scitldr=4000 python-docs=3000 \
        seal-tools=3000 apibench=3000 fastapi-docs-parallel=3000 tldr=7000 oewn=5000 omw-parallel=8000 \
        ntrex-parallel=2000 python-docs-parallel=4000 tldr-parallel=5000 text.en=9000 text2.en=5000
}

# shellcheck disable=SC2086  # the lists are meant to be split
{
    stage pair --tokenizer pplx_edge/nano --out "$runs/table" --no-blocks --layers 4 --steps 500 --batch 2048 \
        --block 512 --max-query 48 --max-positive 128 --embedding-rate 0.05 --vector-rate 0.02 --warmup 10 \
        --decay-share 0.8 --dims 384 256 192 128 --binary-weight 0.3 --teacher-weight 5 --save-every 100 \
        --validate-on $held_out --boost $mix
    stage diffuse --init "$runs/table/checkpoint" --out "$runs/diffuse" --no-tied-head --compile --steps 40 \
        --batch 48 --length 256 --call-tokens 4096 --embedding-rate 0.0005 --matrix-rate 0.001 --vector-rate 0.001 \
        --warmup 10 --decay-share 0.4 --save-every 20 --log-every 5

    common="--dims 384 256 192 128 --binary-weight 0.3 --teacher-weight 5 --max-query 48 --max-positive 128
            --call-tokens 4096 --embedding-rate 0.002 --matrix-rate 0.0005 --vector-rate 0.002 --warmup 10
            --decay-share 0.5 --save-every 12 --log-every 4"
    quantized="--weights int8 --table int8 --activations"
    stage pair --init "$runs/diffuse/checkpoint" --out "$runs/pair" --block-scale 0.03 --context-prior 0.7 --compile \
        --steps 24 --batch 256 --block 64 $common --validate-on qed tydiqa jaquad --pool 300 --boost $mix
    stage context --init "$runs/pair/checkpoint" --out "$runs/context" --steps 16 --batch 12 --plain 64 --block 32 \
        --max-document 4096 $common $quantized --embedding-rate 0.0005 --matrix-rate 0.00003 --vector-rate 0.0005 \
        --warmup 2 --boost $mix
    python -m pplx_quant mine --data "$packed" --model "$runs/pair/checkpoint" --out "$runs/mined" --cap *=600 \
        --group qed tydiqa jaquad iapp-wiki-qa arcd cmrc2018 openstax medquad scitldr python-docs tldr seal-tools \
        apibench oewn gesetze thealgorithms fastapi-docs text.en
    stage triplet --init "$runs/pair/checkpoint" --out "$runs/triplet" --negatives "$runs/mined/negatives.npy" \
        --steps 12 --batch 192 --block 64 $common $quantized --boost qed=3 tydiqa=3 text.en=2
}
[ -d "$runs/merged" ] || python -m pplx_quant merge --first "$runs/context/checkpoint" \
    --second "$runs/triplet/checkpoint" --out "$runs/merged" --weight 0.7
python -m pplx_quant export --checkpoint "$runs/merged" --out "$model" --quiet-constant 0.25
